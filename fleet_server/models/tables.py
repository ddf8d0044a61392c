"""The table of released packages."""

from __future__ import annotations

import sqlalchemy as sa

from fleet_server.database import metadata

packages = sa.Table(
    "packages",
    metadata,
    sa.Column("digest", sa.Text, primary_key=True),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("version", sa.Text, nullable=False),
    sa.Column("parent", sa.Text),
    sa.Column("manifest", sa.LargeBinary, nullable=False),  # the signed bytes: their SHA-256 is the digest
    sa.Column("evaluation", sa.JSON, nullable=False),
    sa.Column("published_at_ms", sa.BigInteger, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("state_at_ms", sa.BigInteger, nullable=False),
    sa.Column("state_reason", sa.Text, nullable=False),
    sa.UniqueConstraint("model", "version"),
    sa.Index(None, "model", "state", "state_at_ms"),
)
