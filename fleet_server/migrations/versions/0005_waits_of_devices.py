"""Until when a device's update waits for the device's own window.

This is history, as the first revision is: every name is written out, and nothing is changed here once it was released.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """One column; no row is touched."""
    op.add_column("reported_models", sa.Column("waits_until_ms", sa.BigInteger))
