"""Tables of devices: the two halves of each one's twin, and its events."""

from __future__ import annotations

import sqlalchemy as sa

from fleet_server.database import metadata

devices = sa.Table(
    "devices",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("enrolled_at_ms", sa.BigInteger, nullable=False),
    sa.Column("hardware", sa.JSON, nullable=False),
    sa.Column("online", sa.Boolean, nullable=False),
    sa.Column("online_changed_at_ms", sa.BigInteger),
    sa.Column("last_seen_ms", sa.BigInteger),
    sa.Column("agent_version", sa.Text),
    sa.Column("started_at_ms", sa.BigInteger),
    sa.Column("api", sa.Text),
    sa.Column("desired_revision", sa.BigInteger, nullable=False),
    sa.Column("reported_revision", sa.BigInteger, nullable=False),
    sa.Column("report_interval_s", sa.Float),
)

desired_models = sa.Table(
    "desired_models",
    metadata,
    sa.Column("device", sa.Text, sa.ForeignKey("devices.name"), primary_key=True),
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("version", sa.Text, nullable=False),
    sa.Column("package", sa.Text, nullable=False),
    sa.Column("release", sa.BigInteger, nullable=False),
    sa.Column("rollout", sa.Text, nullable=False),
)

reported_models = sa.Table(
    "reported_models",
    metadata,
    sa.Column("device", sa.Text, sa.ForeignKey("devices.name"), primary_key=True),
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("version", sa.Text, nullable=False),
    sa.Column("package", sa.Text, nullable=False),
    sa.Column("step", sa.Text, nullable=False),
    sa.Column("target", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("release", sa.BigInteger, nullable=False),
    sa.Column("rollout", sa.Text, nullable=False),
    sa.Column("requests", sa.BigInteger, nullable=False),
    sa.Column("failed", sa.BigInteger, nullable=False),
    sa.Column("received_at_ms", sa.BigInteger, nullable=False),
    sa.Column("runtime", sa.JSON(none_as_null=True)),  # ReportedRuntime; NULL from agents that do not tell
    sa.Column("waits_until_ms", sa.BigInteger),
    sa.Column("retries", sa.Boolean, nullable=False, server_default=sa.false()),
)

# What an administrator set for the whole fleet while it ran: above the server's own settings, restarts included.
fleet_settings = sa.Table(
    "fleet_settings",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("value", sa.JSON, nullable=False),
)

# One policy per model, for every device that is to serve it.
sampling_policies = sa.Table(
    "sampling_policies",
    metadata,
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("policy", sa.JSON, nullable=False),
)

events = sa.Table(
    "device_events",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("device", sa.Text, nullable=False),
    sa.Column("at_ms", sa.BigInteger, nullable=False),
    sa.Column("received_at_ms", sa.BigInteger, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("package", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("detail", sa.JSON, nullable=False),
    sa.Index(None, "device", "id"),
    sa.Index(None, "received_at_ms"),
)
