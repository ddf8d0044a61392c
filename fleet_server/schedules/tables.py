"""Tables of schedules and runs. A run is a row: what is due, who has it, and how it ended."""

from __future__ import annotations

import sqlalchemy as sa

from fleet_server.database import metadata

schedules = sa.Table(
    "schedules",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),  # "cron" | "interval"
    sa.Column("expression", sa.Text, nullable=False),  # five cron fields, or seconds
    sa.Column("timezone", sa.Text, nullable=False),
    sa.Column("catch_up", sa.Text, nullable=False),  # "skip" | "latest" | "all"
    sa.Column("enabled", sa.Boolean, nullable=False),
    sa.Column("anchor_ms", sa.BigInteger, nullable=False),  # intervals are counted from here
    sa.Column("cursor_ms", sa.BigInteger, nullable=False),  # every slot up to here has been dealt with
)

runs = sa.Table(
    "runs",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("schedule", sa.Text),  # NULL: asked for by a person or by the harm rule
    sa.Column("logical_time_ms", sa.BigInteger, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("trigger", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("seed", sa.BigInteger, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("created_at_ms", sa.BigInteger, nullable=False),
    sa.Column("started_at_ms", sa.BigInteger),
    sa.Column("ended_at_ms", sa.BigInteger),
    # The lease: who has it, until when, and the token that only the newest holder knows.
    sa.Column("worker", sa.Text, nullable=False, default=""),
    sa.Column("lease_until_ms", sa.BigInteger),
    sa.Column("fence", sa.Integer, nullable=False, default=0),
    sa.Column("attempts", sa.Integer, nullable=False, default=0),
    # What the worker says.
    sa.Column("stage", sa.Text, nullable=False, default=""),
    sa.Column("fraction", sa.Float, nullable=False, default=0.0),
    sa.Column("message", sa.Text, nullable=False, default=""),
    # What it was made from.
    sa.Column("samples_version", sa.BigInteger),
    sa.Column("labels_version", sa.BigInteger),
    sa.Column("champion", sa.Text),
    sa.Column("champion_version", sa.Text),
    # How it ended.
    sa.Column("package", sa.Text),
    sa.Column("version", sa.Text),
    sa.Column("reasons", sa.JSON, nullable=False, default=list),
    sa.Column("evaluation", sa.JSON, nullable=False, default=dict),
    sa.Column("announced", sa.Boolean, nullable=False, default=False),  # the release was handed on
    # One slot is one run, whoever inserts it; runs without a schedule (NULL) are all different.
    sa.UniqueConstraint("schedule", "logical_time_ms"),
)

# Of one model at most one run is under way ...
sa.Index(
    "uq_runs_running",
    runs.c.model,
    unique=True,
    sqlite_where=runs.c.state == "running",
    postgresql_where=runs.c.state == "running",
)
# ... and at most one that no schedule asked for waits or is under way.
_asked_for = sa.and_(runs.c.schedule.is_(None), runs.c.state.in_(["queued", "running"]))
sa.Index("uq_runs_asked_for", runs.c.model, unique=True, sqlite_where=_asked_for, postgresql_where=_asked_for)
sa.Index("ix_runs_waiting", runs.c.state, runs.c.created_at_ms)
