"""Whether a device tries an update that failed again by itself, and since when.

This is history, as the first revision is: every name is written out, and nothing is changed here once it was released.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Two columns; what is known of devices so far says no."""
    op.add_column("rollout_devices", sa.Column("failing_since_ms", sa.BigInteger))
    op.add_column("reported_models", sa.Column("retries", sa.Boolean, nullable=False, server_default=sa.false()))
