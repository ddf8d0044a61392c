"""The newest label of each request."""

from __future__ import annotations

import sqlalchemy as sa

from fleet_server.database import metadata

labels = sa.Table(
    "labels",
    metadata,
    sa.Column("device", sa.Text, primary_key=True),
    sa.Column("request_id", sa.Text, primary_key=True),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("package", sa.Text, nullable=False),
    sa.Column("label", sa.Text, nullable=False),
    sa.Column("prediction", sa.Text, nullable=False),
    sa.Column("correct", sa.Boolean, nullable=False),
    sa.Column("confidence", sa.Float, nullable=False),
    sa.Column("inclusion_probability", sa.Float, nullable=False),  # 0: volunteered, no estimate may rest on it
    sa.Column("at_ms", sa.BigInteger, nullable=False),
    sa.Column("labelled_at_ms", sa.BigInteger, nullable=False),
    sa.Index("ix_labels_model_labelled_at_ms", "model", "labelled_at_ms"),
)
