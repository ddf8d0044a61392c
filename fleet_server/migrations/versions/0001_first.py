"""The tables of the first version.

This is history: databases in the field were made by it. So every name is written out, nothing of ours is imported, and
nothing is changed here once it was released, whatever the features' ``tables.py`` say by then.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

# SQLite numbers rows by itself only where the key is an INTEGER (of 64 bits there).
_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Feature by feature; what is referred to comes first."""
    _access()
    _devices()
    _device_events()
    _models()
    _rollouts()
    _ingest()
    _samples()
    _labels()
    _windows()
    _judgements()
    _schedules()
    _runs()


def _access() -> None:
    op.create_table(
        "access_tokens",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("role", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("sha256", sa.Text, nullable=False),
        sa.Column("created_at_ms", sa.BigInteger, nullable=False),
        sa.Column("expires_at_ms", sa.BigInteger),
        sa.Column("ended_at_ms", sa.BigInteger),
        sa.PrimaryKeyConstraint("id", name="pk_access_tokens"),
        sa.UniqueConstraint("sha256", name="uq_access_tokens_sha256"),
    )

    op.create_table(
        "access_claims",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("sha256", sa.Text, nullable=False),
        sa.Column("device", sa.Text),
        sa.Column("created_at_ms", sa.BigInteger, nullable=False),
        sa.Column("expires_at_ms", sa.BigInteger, nullable=False),
        sa.Column("used_at_ms", sa.BigInteger),
        sa.Column("used_by", sa.Text),
        sa.PrimaryKeyConstraint("id", name="pk_access_claims"),
        sa.UniqueConstraint("sha256", name="uq_access_claims_sha256"),
    )

    op.create_table(
        "device_secrets",
        sa.Column("device", sa.Text, nullable=False),
        sa.Column("sha256", sa.Text, nullable=False),
        sa.Column("enrolled_at_ms", sa.BigInteger, nullable=False),
        sa.Column("revoked_at_ms", sa.BigInteger),
        sa.PrimaryKeyConstraint("device", name="pk_device_secrets"),
        sa.UniqueConstraint("sha256", name="uq_device_secrets_sha256"),
    )


def _devices() -> None:
    op.create_table(
        "devices",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("enrolled_at_ms", sa.BigInteger, nullable=False),
        sa.Column("hardware", sa.JSON, nullable=False),
        sa.Column("online", sa.Boolean, nullable=False),
        sa.Column("online_changed_at_ms", sa.BigInteger),
        sa.Column("last_seen_ms", sa.BigInteger),
        sa.Column("agent_version", sa.Text),
        sa.Column("started_at_ms", sa.BigInteger),
        sa.Column("api", sa.Text),
        sa.Column("desired_revision", sa.BigInteger, nullable=False),
        sa.Column("reported_revision", sa.BigInteger, nullable=False),
        sa.Column("report_interval_s", sa.Float),
        sa.PrimaryKeyConstraint("name", name="pk_devices"),
    )

    op.create_table(
        "desired_models",
        sa.Column("device", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("version", sa.Text, nullable=False),
        sa.Column("package", sa.Text, nullable=False),
        sa.Column("release", sa.BigInteger, nullable=False),
        sa.Column("rollout", sa.Text, nullable=False),
        sa.ForeignKeyConstraint(["device"], ["devices.name"], name="fk_desired_models_device_devices"),
        sa.PrimaryKeyConstraint("device", "model", name="pk_desired_models"),
    )

    op.create_table(
        "reported_models",
        sa.Column("device", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("version", sa.Text, nullable=False),
        sa.Column("package", sa.Text, nullable=False),
        sa.Column("step", sa.Text, nullable=False),
        sa.Column("target", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("release", sa.BigInteger, nullable=False),
        sa.Column("rollout", sa.Text, nullable=False),
        sa.Column("requests", sa.BigInteger, nullable=False),
        sa.Column("failed", sa.BigInteger, nullable=False),
        sa.Column("received_at_ms", sa.BigInteger, nullable=False),
        sa.ForeignKeyConstraint(["device"], ["devices.name"], name="fk_reported_models_device_devices"),
        sa.PrimaryKeyConstraint("device", "model", name="pk_reported_models"),
    )

    op.create_table(
        "sampling_policies",
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("policy", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("model", name="pk_sampling_policies"),
    )

    op.create_table(
        "fleet_settings",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("value", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_fleet_settings"),
    )


def _device_events() -> None:
    op.create_table(
        "device_events",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("device", sa.Text, nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("received_at_ms", sa.BigInteger, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("package", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("detail", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_device_events"),
    )
    op.create_index("ix_device_events_device_id", "device_events", ["device", "id"])
    op.create_index("ix_device_events_received_at_ms", "device_events", ["received_at_ms"])


def _models() -> None:
    op.create_table(
        "packages",
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("version", sa.Text, nullable=False),
        sa.Column("parent", sa.Text),
        sa.Column("manifest", sa.LargeBinary, nullable=False),
        sa.Column("evaluation", sa.JSON, nullable=False),
        sa.Column("published_at_ms", sa.BigInteger, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("state_at_ms", sa.BigInteger, nullable=False),
        sa.Column("state_reason", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("digest", name="pk_packages"),
        sa.UniqueConstraint("model", "version", name="uq_packages_model_version"),
    )
    op.create_index("ix_packages_model_state_state_at_ms", "packages", ["model", "state", "state_at_ms"])


def _rollouts() -> None:
    op.create_table(
        "rollouts",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("package", sa.Text, nullable=False),
        sa.Column("version", sa.Text, nullable=False),
        sa.Column("waves", sa.JSON, nullable=False),
        sa.Column("gate", sa.JSON, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("wave", sa.Integer, nullable=False),
        sa.Column("healthy_since_ms", sa.BigInteger),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("revert", sa.Boolean, nullable=False),
        sa.Column("settled", sa.Boolean, nullable=False),
        sa.Column("automatic", sa.Boolean, nullable=False),
        sa.Column("created_at_ms", sa.BigInteger, nullable=False),
        sa.Column("ended_at_ms", sa.BigInteger),
        sa.ForeignKeyConstraint(["package"], ["packages.digest"], name="fk_rollouts_package_packages"),
        sa.PrimaryKeyConstraint("id", name="pk_rollouts"),
    )
    op.create_index("ix_rollouts_created_at_ms", "rollouts", ["created_at_ms"])
    op.create_index("ix_rollouts_settled", "rollouts", ["settled"])

    op.create_table(
        "rollout_devices",
        sa.Column("rollout", sa.Text, nullable=False),
        sa.Column("device", sa.Text, nullable=False),
        sa.Column("progress", sa.Text, nullable=False),
        sa.Column("wave", sa.Integer),
        sa.Column("assigned_at_ms", sa.BigInteger),
        sa.Column("release", sa.BigInteger, nullable=False),
        sa.Column("previous", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.ForeignKeyConstraint(["rollout"], ["rollouts.id"], name="fk_rollout_devices_rollout_rollouts"),
        sa.PrimaryKeyConstraint("rollout", "device", name="pk_rollout_devices"),
    )


def _ingest() -> None:
    op.create_table(
        "ingest_watermarks",
        sa.Column("device", sa.Text, nullable=False),
        sa.Column("epoch", sa.Text, nullable=False),
        sa.Column("stream", sa.Text, nullable=False),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("dropped", sa.BigInteger, nullable=False),
        sa.Column("recent", sa.LargeBinary, nullable=False),
        sa.Column("forked", sa.Boolean, nullable=False),
        sa.Column("updated_at_ms", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("device", "epoch", "stream", name="pk_ingest_watermarks"),
    )

    op.create_table(
        "ingest_set_aside",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("device", sa.Text, nullable=False),
        sa.Column("sha256", sa.Text, nullable=False),
        sa.Column("topic", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("payload", sa.LargeBinary, nullable=False),
        sa.Column("times", sa.BigInteger, nullable=False),
        sa.Column("first_at_ms", sa.BigInteger, nullable=False),
        sa.Column("last_at_ms", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_ingest_set_aside"),
        sa.UniqueConstraint("device", "sha256", name="uq_ingest_set_aside_device_sha256"),
    )


def _samples() -> None:
    op.create_table(
        "lake_spool",
        sa.Column("id", _ID, nullable=False),
        sa.Column("lake_table", sa.Text, nullable=False),
        sa.Column("batch", sa.BigInteger),
        sa.Column("row", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_lake_spool"),
    )
    op.create_index("ix_lake_spool_lake_table_batch", "lake_spool", ["lake_table", "batch"])

    op.create_table(
        "lake_batches",
        sa.Column("lake_table", sa.Text, nullable=False),
        sa.Column("app_id", sa.Text, nullable=False),
        sa.Column("last", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("lake_table", name="pk_lake_batches"),
    )


def _labels() -> None:
    op.create_table(
        "labels",
        sa.Column("device", sa.Text, nullable=False),
        sa.Column("request_id", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("package", sa.Text, nullable=False),
        sa.Column("label", sa.Text, nullable=False),
        sa.Column("prediction", sa.Text, nullable=False),
        sa.Column("correct", sa.Boolean, nullable=False),
        sa.Column("confidence", sa.Float, nullable=False),
        sa.Column("inclusion_probability", sa.Float, nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("labelled_at_ms", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("device", "request_id", name="pk_labels"),
    )
    op.create_index("ix_labels_model_labelled_at_ms", "labels", ["model", "labelled_at_ms"])


def _windows() -> None:
    op.create_table(
        "metrics",
        sa.Column("id", _ID, nullable=False),
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
        sa.PrimaryKeyConstraint("id", name="pk_metrics"),
    )
    op.create_index("ix_metrics_model_until_ms", "metrics", ["model", "until_ms"])

    op.create_table(
        "machines",
        sa.Column("device", sa.Text, nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("state", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("device", name="pk_machines"),
    )

    op.create_table(
        "serving",
        sa.Column("device", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("package", sa.Text, nullable=False),
        sa.Column("version", sa.Text, nullable=False),
        sa.Column("since_ms", sa.BigInteger, nullable=False),
        sa.Column("seen_ms", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("device", "model", name="pk_serving"),
    )

    op.create_table(
        "profile_windows",
        sa.Column("id", _ID, nullable=False),
        sa.Column("device", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("package", sa.Text, nullable=False),
        sa.Column("from_ms", sa.BigInteger, nullable=False),
        sa.Column("until_ms", sa.BigInteger, nullable=False),
        sa.Column("rows", sa.BigInteger, nullable=False),
        sa.Column("counts", sa.LargeBinary, nullable=False),
        sa.Column("pending", sa.Boolean, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_profile_windows"),
    )
    op.create_index("ix_profile_windows_pending", "profile_windows", ["pending", "device", "model", "package"])


def _judgements() -> None:
    op.create_table(
        "drift",
        sa.Column("id", _ID, nullable=False),
        sa.Column("device", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("package", sa.Text, nullable=False),
        sa.Column("from_ms", sa.BigInteger, nullable=False),
        sa.Column("until_ms", sa.BigInteger, nullable=False),
        sa.Column("rows", sa.BigInteger, nullable=False),
        sa.Column("verdict", sa.Text, nullable=False),
        sa.Column("flagged", sa.JSON, nullable=False),
        sa.Column("features", sa.JSON, nullable=False),
        sa.Column("estimated_accuracy", sa.Float),
        sa.Column("since_ms", sa.BigInteger, nullable=False),
        sa.Column("judged_at_ms", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_drift"),
    )
    op.create_index("ix_drift_model_device_package", "drift", ["model", "device", "package", "id"])

    op.create_table(
        "alerts",
        sa.Column("id", _ID, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("device", sa.Text, nullable=False),
        sa.Column("opened_at_ms", sa.BigInteger, nullable=False),
        sa.Column("closed_at_ms", sa.BigInteger),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("closed_reason", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_alerts"),
    )
    op.create_index(
        "uq_alerts_open",
        "alerts",
        ["model", "kind", "device"],
        unique=True,
        sqlite_where=sa.text("closed_at_ms IS NULL"),
        postgresql_where=sa.text("closed_at_ms IS NULL"),
    )

    op.create_table(
        "label_budgets",
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("policy", sa.JSON, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("since_ms", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("model", name="pk_label_budgets"),
    )


def _schedules() -> None:
    op.create_table(
        "schedules",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("expression", sa.Text, nullable=False),
        sa.Column("timezone", sa.Text, nullable=False),
        sa.Column("catch_up", sa.Text, nullable=False),
        sa.Column("enabled", sa.Boolean, nullable=False),
        sa.Column("anchor_ms", sa.BigInteger, nullable=False),
        sa.Column("cursor_ms", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_schedules"),
    )


def _runs() -> None:
    op.create_table(
        "runs",
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("schedule", sa.Text),
        sa.Column("logical_time_ms", sa.BigInteger, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("trigger", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("seed", sa.BigInteger, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("created_at_ms", sa.BigInteger, nullable=False),
        sa.Column("started_at_ms", sa.BigInteger),
        sa.Column("ended_at_ms", sa.BigInteger),
        sa.Column("worker", sa.Text, nullable=False),
        sa.Column("lease_until_ms", sa.BigInteger),
        sa.Column("fence", sa.Integer, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("stage", sa.Text, nullable=False),
        sa.Column("fraction", sa.Float, nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("samples_version", sa.BigInteger),
        sa.Column("labels_version", sa.BigInteger),
        sa.Column("champion", sa.Text),
        sa.Column("champion_version", sa.Text),
        sa.Column("package", sa.Text),
        sa.Column("version", sa.Text),
        sa.Column("reasons", sa.JSON, nullable=False),
        sa.Column("evaluation", sa.JSON, nullable=False),
        sa.Column("announced", sa.Boolean, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_runs"),
        sa.UniqueConstraint("schedule", "logical_time_ms", name="uq_runs_schedule_logical_time_ms"),
    )
    op.create_index("ix_runs_waiting", "runs", ["state", "created_at_ms"])
    op.create_index(
        "uq_runs_asked_for",
        "runs",
        ["model"],
        unique=True,
        sqlite_where=sa.text("schedule IS NULL AND state IN ('queued', 'running')"),
        postgresql_where=sa.text("schedule IS NULL AND state IN ('queued', 'running')"),
    )
    op.create_index(
        "uq_runs_running",
        "runs",
        ["model"],
        unique=True,
        sqlite_where=sa.text("state = 'running'"),
        postgresql_where=sa.text("state = 'running'"),
    )
