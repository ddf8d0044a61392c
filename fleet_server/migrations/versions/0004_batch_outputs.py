"""Where the answers of batch jobs are.

This is history, as the first revision is: every name is written out, and nothing is changed here once it was released.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """One table, and the way to a job's newest run; no row is touched."""
    op.create_index("ix_runs_lane_ended_at_ms", "runs", ["lane", "ended_at_ms"])
    op.create_table(
        "batch_outputs",
        sa.Column("job", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("path", sa.Text, nullable=False),
        sa.Column("registered_at_ms", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("job", name="pk_batch_outputs"),
    )
