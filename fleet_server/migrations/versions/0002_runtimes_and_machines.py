"""What each model runs on, and a machine's power and throttling over time.

This is history, as the first revision is: every name is written out, and nothing is changed here once it was released.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

# SQLite numbers rows by itself only where the key is an INTEGER (of 64 bits there).
_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """One column, one table; no row is touched."""
    op.add_column("reported_models", sa.Column("runtime", sa.JSON))
    op.create_table(
        "machine_windows",
        sa.Column("id", _ID, nullable=False),
        sa.Column("device", sa.Text, nullable=False),
        sa.Column("from_ms", sa.BigInteger, nullable=False),
        sa.Column("until_ms", sa.BigInteger, nullable=False),
        sa.Column("inferences", sa.BigInteger, nullable=False),
        sa.Column("energy_j", sa.Float),
        sa.Column("power_w", sa.Float),
        sa.Column("throttled", sa.Boolean, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_machine_windows"),
    )
    op.create_index("ix_machine_windows_device_until_ms", "machine_windows", ["device", "until_ms"])
