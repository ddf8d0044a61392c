"""Whether a device tries an update that failed again by itself.

This is history, as the first revision is: every name is written out, and nothing is changed here once it was released.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """One column; what is known of devices so far says no."""
    op.add_column("reported_models", sa.Column("retries", sa.Boolean, nullable=False, server_default=sa.false()))
