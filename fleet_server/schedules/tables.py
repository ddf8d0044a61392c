"""Tables of schedules and runs. A run is a row: what is due, who has it, and how it ended."""

from __future__ import annotations

import sqlalchemy as sa

from fleet_server.database import metadata

# SQLite numbers rows by itself only where the key is an INTEGER (of 64 bits there).
_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")

schedules = sa.Table(
    "schedules",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),  # "cron" | "interval" | "labels" | "manual"
    sa.Column("expression", sa.Text, nullable=False),  # five cron fields, seconds, or how many new labels
    sa.Column("timezone", sa.Text, nullable=False),
    sa.Column("catch_up", sa.Text, nullable=False),  # "skip" | "latest" | "all"
    sa.Column("enabled", sa.Boolean, nullable=False),
    sa.Column("anchor_ms", sa.BigInteger, nullable=False),  # intervals are counted from here
    sa.Column("cursor_ms", sa.BigInteger, nullable=False),  # every slot up to here has been dealt with
    sa.Column("steps", sa.JSON, nullable=False, server_default="[]"),  # empty: one that trains
    # Labels of the model that there were when new ones last made runs.
    sa.Column("labels_seen", sa.BigInteger, nullable=False, server_default="0"),
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
    # Its step in the schedule's graph: what it does, what it waits for, what it takes.
    sa.Column("step", sa.Text, nullable=False, server_default=""),
    sa.Column("kind", sa.Text, nullable=False, server_default="train"),
    sa.Column("lane", sa.Text, nullable=False, server_default=""),  # of each, one run at a time
    sa.Column("needs", sa.JSON, nullable=False, server_default="[]"),  # names of steps
    sa.Column("options", sa.JSON, nullable=False, server_default="{}"),
    sa.Column("priority", sa.Integer, nullable=False, server_default="0"),  # the higher goes first
    sa.Column("cpus", sa.Float, nullable=False, server_default="0"),
    sa.Column("gpus", sa.Integer, nullable=False, server_default="0"),
    sa.Column("timeout_s", sa.Float),
    sa.Column("retries", sa.Integer, nullable=False, server_default="0"),
    sa.Column("backoff_s", sa.Float, nullable=False, server_default="0"),
    sa.Column("failures", sa.Integer, nullable=False, server_default="0"),  # those tried again after
    sa.Column("not_before_ms", sa.BigInteger),  # when it may be tried again
    # The lease: who has it, until when, and the token that only the newest holder knows.
    sa.Column("worker", sa.Text, nullable=False, default=""),
    sa.Column("lease_until_ms", sa.BigInteger),
    sa.Column("fence", sa.Integer, nullable=False, default=0),
    sa.Column("attempts", sa.Integer, nullable=False, default=0),
    # What the worker says.
    sa.Column("stage", sa.Text, nullable=False, default=""),
    sa.Column("fraction", sa.Float, nullable=False, default=0.0),
    sa.Column("message", sa.Text, nullable=False, default=""),
    sa.Column("metrics", sa.JSON, nullable=False, server_default="{}"),  # the newest values by name
    # What it was made from.
    sa.Column("samples_version", sa.BigInteger),
    sa.Column("labels_version", sa.BigInteger),
    sa.Column("champion", sa.Text),
    sa.Column("champion_version", sa.Text),
    sa.Column("inputs", sa.Text),  # digest of all that it is a function of
    # How it ended.
    sa.Column("package", sa.Text),
    sa.Column("version", sa.Text),
    sa.Column("reasons", sa.JSON, nullable=False, default=list),
    sa.Column("evaluation", sa.JSON, nullable=False, default=dict),
    sa.Column("announced", sa.Boolean, nullable=False, default=False),  # the release was handed on
    # One slot is one run of each step, whoever inserts it; runs without a schedule (NULL) are all different.
    sa.UniqueConstraint("schedule", "logical_time_ms", "step"),
    sa.Index("ix_runs_model_created_at_ms", "model", "created_at_ms"),
    sa.Index("ix_runs_lane_ended_at_ms", "lane", "ended_at_ms"),
)

# In one lane (a model's training, one batch job's output, the lake's upkeep) at most one run is under way ...
sa.Index(
    "uq_runs_running",
    runs.c.lane,
    unique=True,
    sqlite_where=runs.c.state == "running",
    postgresql_where=runs.c.state == "running",
)
# ... and at most one that no schedule asked for waits or is under way.
_asked_for = sa.and_(runs.c.schedule.is_(None), runs.c.state.in_(["queued", "running"]))
sa.Index("uq_runs_asked_for", runs.c.lane, unique=True, sqlite_where=_asked_for, postgresql_where=_asked_for)
sa.Index("ix_runs_waiting", runs.c.state, runs.c.created_at_ms)

# What runs have written, a piece per heartbeat; bounded per run, the oldest goes first.
run_logs = sa.Table(
    "run_logs",
    metadata,
    sa.Column("id", _ID, primary_key=True),
    sa.Column("run", sa.Text, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("at_ms", sa.BigInteger, nullable=False),
    sa.Column("text", sa.Text, nullable=False),
    sa.Index("ix_run_logs_run_id", "run", "id"),
)

# What runs have measured, over time: a row per heartbeat that brought new values.
run_metrics = sa.Table(
    "run_metrics",
    metadata,
    sa.Column("id", _ID, primary_key=True),
    sa.Column("run", sa.Text, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("at_ms", sa.BigInteger, nullable=False),
    sa.Column("fraction", sa.Float, nullable=False),
    sa.Column("metrics", sa.JSON, nullable=False),
    sa.Index("ix_run_metrics_run_id", "run", "id"),
)
