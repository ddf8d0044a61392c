"""Tables of rollouts."""

from __future__ import annotations

import sqlalchemy as sa

from fleet_server.database import metadata

rollouts = sa.Table(
    "rollouts",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("package", sa.Text, sa.ForeignKey("packages.digest"), nullable=False),
    sa.Column("version", sa.Text, nullable=False),
    sa.Column("waves", sa.JSON, nullable=False),
    sa.Column("gate", sa.JSON, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("wave", sa.Integer, nullable=False),
    sa.Column("healthy_since_ms", sa.BigInteger),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("note", sa.Text, nullable=False),
    sa.Column("revert", sa.Boolean, nullable=False),
    sa.Column("settled", sa.Boolean, nullable=False),  # nothing is left to do, not even to send a device back
    sa.Column("automatic", sa.Boolean, nullable=False),  # made by the server after a training run, not by a person
    sa.Column("created_at_ms", sa.BigInteger, nullable=False),
    sa.Column("ended_at_ms", sa.BigInteger),
    sa.Index(None, "settled"),
    sa.Index(None, "created_at_ms"),
)

members = sa.Table(
    "rollout_devices",
    metadata,
    sa.Column("rollout", sa.Text, sa.ForeignKey("rollouts.id"), primary_key=True),
    sa.Column("device", sa.Text, primary_key=True),
    sa.Column("progress", sa.Text, nullable=False),
    sa.Column("wave", sa.Integer),
    sa.Column("assigned_at_ms", sa.BigInteger),
    sa.Column("failing_since_ms", sa.BigInteger),
    sa.Column("release", sa.BigInteger, nullable=False),
    sa.Column("previous", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
)
