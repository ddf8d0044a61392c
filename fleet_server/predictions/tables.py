"""Where the answers of batch jobs are that no run of this server made."""

from __future__ import annotations

import sqlalchemy as sa

from fleet_server.database import metadata

batch_outputs = sa.Table(
    "batch_outputs",
    metadata,
    sa.Column("job", sa.Text, primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),  # "delta" | "parquet"
    sa.Column("path", sa.Text, nullable=False),
    sa.Column("registered_at_ms", sa.BigInteger, nullable=False),
)
