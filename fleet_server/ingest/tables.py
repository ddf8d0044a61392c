"""Tables of ingest: how far each stream of each device has come, and what could not be taken."""

from __future__ import annotations

import sqlalchemy as sa

from fleet_server.database import metadata

watermarks = sa.Table(
    "ingest_watermarks",
    metadata,
    sa.Column("device", sa.Text, primary_key=True),
    sa.Column("epoch", sa.Text, primary_key=True),
    sa.Column("stream", sa.Text, primary_key=True),
    sa.Column("sequence", sa.BigInteger, nullable=False),
    sa.Column("dropped", sa.BigInteger, nullable=False),  # never came: the device dropped them at its limit
    sa.Column("recent", sa.LargeBinary, nullable=False),  # fingerprints of the newest messages, see watermarks.py
    sa.Column("forked", sa.Boolean, nullable=False),
    sa.Column("updated_at_ms", sa.BigInteger, nullable=False),
)

set_aside = sa.Table(
    "ingest_set_aside",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column(
        "device", sa.Text, nullable=False
    ),  # of the topic, which the broker has checked; empty if it is none of ours
    sa.Column("sha256", sa.Text, nullable=False),  # of the payload: what comes again is counted, not kept again
    sa.Column("topic", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("payload", sa.LargeBinary, nullable=False),
    sa.Column("times", sa.BigInteger, nullable=False),
    sa.Column("first_at_ms", sa.BigInteger, nullable=False),
    sa.Column("last_at_ms", sa.BigInteger, nullable=False),
    sa.UniqueConstraint("device", "sha256"),
)
