"""The spool in front of the lake."""

from __future__ import annotations

import sqlalchemy as sa

from fleet_server.database import metadata

lake_spool = sa.Table(
    "lake_spool",
    metadata,
    # SQLite alone counts up from the rowid only where the key is INTEGER.
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("lake_table", sa.Text, nullable=False),
    sa.Column("batch", sa.BigInteger),  # set once the row is on its way into the lake
    sa.Column("row", sa.LargeBinary, nullable=False),  # msgpack of a dict by column name
    sa.Index("ix_lake_spool_lake_table_batch", "lake_table", "batch"),
)

lake_batches = sa.Table(
    "lake_batches",
    metadata,
    sa.Column("lake_table", sa.Text, primary_key=True),
    # Names this database to the lake: a new database beside an old lake counts its batches from 1 again.
    sa.Column("app_id", sa.Text, nullable=False),
    sa.Column("last", sa.BigInteger, nullable=False),
)
