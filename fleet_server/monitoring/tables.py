"""Tables of monitoring. Times are Unix milliseconds; of metrics and windows they are the device's own."""

from __future__ import annotations

import sqlalchemy as sa

from fleet_server.database import metadata

# SQLite numbers rows by itself only where the key is an INTEGER (of 64 bits there).
_Id = sa.BigInteger().with_variant(sa.Integer, "sqlite")

metrics = sa.Table(
    "metrics",
    metadata,
    sa.Column("id", _Id, primary_key=True),
    sa.Column("device", sa.Text, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("version", sa.Text, nullable=False),
    sa.Column("package", sa.Text, nullable=False),
    sa.Column("from_ms", sa.BigInteger, nullable=False),
    sa.Column("until_ms", sa.BigInteger, nullable=False),
    sa.Column("requests", sa.BigInteger, nullable=False),
    sa.Column("rows", sa.BigInteger, nullable=False),
    sa.Column("refused", sa.BigInteger, nullable=False),
    sa.Column("failed", sa.BigInteger, nullable=False),
    sa.Column("latency_counts", sa.JSON, nullable=False),
    sa.Index("ix_metrics_model_until_ms", "model", "until_ms"),
)

# The newest state of each machine.
machines = sa.Table(
    "machines",
    metadata,
    sa.Column("device", sa.Text, primary_key=True),
    sa.Column("at_ms", sa.BigInteger, nullable=False),
    sa.Column("state", sa.JSON, nullable=False),  # DeviceMetrics
)

# What boards with a GPU or a power meter did, window by window.
machine_windows = sa.Table(
    "machine_windows",
    metadata,
    sa.Column("id", _Id, primary_key=True),
    sa.Column("device", sa.Text, nullable=False),
    sa.Column("from_ms", sa.BigInteger, nullable=False),
    sa.Column("until_ms", sa.BigInteger, nullable=False),
    sa.Column("inferences", sa.BigInteger, nullable=False),  # rows that its models answered
    sa.Column("energy_j", sa.Float),  # of the whole board
    sa.Column("power_w", sa.Float),
    sa.Column("throttled", sa.Boolean, nullable=False),
    sa.Index("ix_machine_windows_device_until_ms", "device", "until_ms"),
)

# The package that answers on each device now, as its metrics say.
serving = sa.Table(
    "serving",
    metadata,
    sa.Column("device", sa.Text, primary_key=True),
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("package", sa.Text, nullable=False),
    sa.Column("version", sa.Text, nullable=False),
    sa.Column("since_ms", sa.BigInteger, nullable=False),
    sa.Column("seen_ms", sa.BigInteger, nullable=False),
)

profile_windows = sa.Table(
    "profile_windows",
    metadata,
    sa.Column("id", _Id, primary_key=True),
    sa.Column("device", sa.Text, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("package", sa.Text, nullable=False),
    sa.Column("from_ms", sa.BigInteger, nullable=False),
    sa.Column("until_ms", sa.BigInteger, nullable=False),
    sa.Column("rows", sa.BigInteger, nullable=False),
    sa.Column("counts", sa.LargeBinary, nullable=False),  # msgpack of dict[str, FeatureCounts]
    sa.Column("pending", sa.Boolean, nullable=False),  # not judged yet
    sa.Index("ix_profile_windows_pending", "pending", "device", "model", "package"),
)

drift = sa.Table(
    "drift",
    metadata,
    sa.Column("id", _Id, primary_key=True),
    sa.Column("device", sa.Text, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("package", sa.Text, nullable=False),
    sa.Column("from_ms", sa.BigInteger, nullable=False),
    sa.Column("until_ms", sa.BigInteger, nullable=False),
    sa.Column("rows", sa.BigInteger, nullable=False),
    sa.Column("verdict", sa.Text, nullable=False),
    sa.Column("flagged", sa.JSON, nullable=False),  # names of the features flagged in this window
    sa.Column("features", sa.JSON, nullable=False),  # every feature's figures, the largest effect first
    sa.Column("estimated_accuracy", sa.Float),  # without labels
    # Since when the data has been as it is: the start of the drift, or of what came after it.
    sa.Column("since_ms", sa.BigInteger, nullable=False),
    sa.Column("judged_at_ms", sa.BigInteger, nullable=False),
    sa.Index("ix_drift_model_device_package", "model", "device", "package", "id"),
)

alerts = sa.Table(
    "alerts",
    metadata,
    sa.Column("id", _Id, primary_key=True),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),  # "drift" | "harm"
    sa.Column("device", sa.Text, nullable=False),  # empty: the fleet
    sa.Column("opened_at_ms", sa.BigInteger, nullable=False),
    sa.Column("closed_at_ms", sa.BigInteger),
    sa.Column("reason", sa.Text, nullable=False),  # the newest, while open
    sa.Column("closed_reason", sa.Text, nullable=False, default=""),
)
_open = alerts.c.closed_at_ms.is_(None)
sa.Index(
    "uq_alerts_open",
    alerts.c.model,
    alerts.c.kind,
    alerts.c.device,
    unique=True,
    sqlite_where=_open,
    postgresql_where=_open,
)

# The sampling that was last asked of each model's devices, and why.
label_budgets = sa.Table(
    "label_budgets",
    metadata,
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("policy", sa.JSON, nullable=False),  # SamplingPolicy
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("since_ms", sa.BigInteger, nullable=False),
)
