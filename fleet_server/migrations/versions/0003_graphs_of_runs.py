"""Schedules are graphs of steps; runs have kinds, priorities, retries, metrics and a log.

This is history, as the first revision is: every name is written out, and nothing is changed here once it was released.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

# SQLite numbers rows by itself only where the key is an INTEGER (of 64 bits there).
_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_ASKED_FOR = sa.text("schedule IS NULL AND state IN ('queued', 'running')")
_RUNNING = sa.text("state = 'running'")


def upgrade() -> None:
    """What was there goes on as graphs of one step: one that trains."""
    with op.batch_alter_table("schedules") as schedules:
        schedules.add_column(sa.Column("steps", sa.JSON, nullable=False, server_default="[]"))
        schedules.add_column(sa.Column("labels_seen", sa.BigInteger, nullable=False, server_default="0"))
    _runs()
    _reports()


def _runs() -> None:
    op.drop_index("uq_runs_running", "runs")
    op.drop_index("uq_runs_asked_for", "runs")
    with op.batch_alter_table("runs") as runs:
        runs.add_column(sa.Column("step", sa.Text, nullable=False, server_default=""))
        runs.add_column(sa.Column("kind", sa.Text, nullable=False, server_default="train"))
        runs.add_column(sa.Column("lane", sa.Text, nullable=False, server_default=""))
        runs.add_column(sa.Column("needs", sa.JSON, nullable=False, server_default="[]"))
        runs.add_column(sa.Column("options", sa.JSON, nullable=False, server_default="{}"))
        runs.add_column(sa.Column("priority", sa.Integer, nullable=False, server_default="0"))
        runs.add_column(sa.Column("cpus", sa.Float, nullable=False, server_default="0"))
        runs.add_column(sa.Column("gpus", sa.Integer, nullable=False, server_default="0"))
        runs.add_column(sa.Column("timeout_s", sa.Float))
        runs.add_column(sa.Column("retries", sa.Integer, nullable=False, server_default="0"))
        runs.add_column(sa.Column("backoff_s", sa.Float, nullable=False, server_default="0"))
        runs.add_column(sa.Column("failures", sa.Integer, nullable=False, server_default="0"))
        runs.add_column(sa.Column("not_before_ms", sa.BigInteger))
        runs.add_column(sa.Column("metrics", sa.JSON, nullable=False, server_default="{}"))
        runs.add_column(sa.Column("inputs", sa.Text))
        runs.drop_constraint("uq_runs_schedule_logical_time_ms", type_="unique")
        runs.create_unique_constraint("uq_runs_schedule_logical_time_ms_step", ["schedule", "logical_time_ms", "step"])
    op.execute("UPDATE runs SET lane = 'train:' || model")
    op.create_index("uq_runs_running", "runs", ["lane"], unique=True, sqlite_where=_RUNNING, postgresql_where=_RUNNING)
    op.create_index(
        "uq_runs_asked_for", "runs", ["lane"], unique=True, sqlite_where=_ASKED_FOR, postgresql_where=_ASKED_FOR
    )
    op.create_index("ix_runs_model_created_at_ms", "runs", ["model", "created_at_ms"])


def _reports() -> None:
    op.create_table(
        "run_logs",
        sa.Column("id", _ID, nullable=False),
        sa.Column("run", sa.Text, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_run_logs"),
    )
    op.create_index("ix_run_logs_run_id", "run_logs", ["run", "id"])
    op.create_table(
        "run_metrics",
        sa.Column("id", _ID, nullable=False),
        sa.Column("run", sa.Text, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("fraction", sa.Float, nullable=False),
        sa.Column("metrics", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_run_metrics"),
    )
    op.create_index("ix_run_metrics_run_id", "run_metrics", ["run", "id"])
