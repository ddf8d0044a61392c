"""What is read from monitoring's tables, for the evaluation, REST and the console alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa

from edge_agent.contract import latency
from fleet_server.labels.tables import labels
from fleet_server.monitoring.harm import LabelledRow, estimate_accuracy
from fleet_server.monitoring.tables import alerts, drift, label_budgets, machines, metrics, serving

_LEAST_PROBABILITY = 1e-6  # a smaller one would let a single label speak for the fleet


def as_dict(record: Any) -> dict[str, Any]:
    """A frozen dataclass as plain JSON values."""
    return dataclasses.asdict(record)


# --- drift


def latest_drift(connection: sa.Connection, model: str) -> list[dict[str, Any]]:
    """Each device's newest row of ``drift`` for the package that serves there now, by device."""
    # Asked for one by one, each is one step down the index; grouping would read all that was ever judged.
    own = (drift.c[name] == serving.c[name] for name in ("device", "model", "package"))
    newest = sa.select(sa.func.max(drift.c.id)).where(*own).correlate(serving).scalar_subquery()
    of_each = sa.select(newest).select_from(serving).where(serving.c.model == model)
    query = sa.select(drift).where(drift.c.id.in_(of_each)).order_by(drift.c.device)
    return [dict(row) for row in connection.execute(query).mappings()]


def drift_history(connection: sa.Connection, model: str, *, limit: int) -> list[dict[str, Any]]:
    """The newest windows of all devices, the oldest of them first, without the features' figures."""
    columns = [column for column in drift.c if column.name != "features"]
    query = sa.select(*columns).where(drift.c.model == model).order_by(drift.c.id.desc()).limit(limit)
    return [dict(row) for row in connection.execute(query).mappings()][::-1]


def drift_in_words(row: dict[str, Any], *, most: int = 3) -> str:
    """The flagged features of a row of ``drift`` with the largest effects: ``image.std (PSI 1.24), ...``."""
    flagged = [feature for feature in row["features"] if feature["flagged"]]
    if not flagged:
        return f"drifted; its newest window of {row['rows']} rows is quiet"
    text = ", ".join(f"{feature['feature']} (PSI {feature['psi']:.2f})" for feature in flagged[:most])
    return text + (f" and {len(flagged) - most} more" if len(flagged) > most else "")


# --- labels


def labelled_rows(connection: sa.Connection, model: str, since_ms: int) -> dict[str, list[LabelledRow]]:
    """Labels of rows answered since a moment by the package that serves on that device now, by package.

    On a device whose data has changed (or changed back) only those since that change count.
    """
    regimes = {row["device"]: row["since_ms"] for row in latest_drift(connection, model)}
    query = (
        sa.select(labels.c.device, labels.c.package, labels.c.correct, labels.c.inclusion_probability, labels.c.at_ms)
        .join(
            serving,
            sa.and_(
                serving.c.device == labels.c.device,
                serving.c.model == labels.c.model,
                serving.c.package == labels.c.package,
            ),
        )
        .where(labels.c.model == model, labels.c.at_ms >= since_ms)
    )
    found: dict[str, list[LabelledRow]] = {}
    for row in connection.execute(query):
        if row.at_ms >= regimes.get(row.device, since_ms):
            found.setdefault(row.package, []).append(_labelled(row))
    return found


def labels_since(connection: sa.Connection, model: str, since_ms: int) -> int:
    """How many asked-for labels of a model came in since a moment."""
    query = sa.select(sa.func.count()).where(
        labels.c.model == model, labels.c.labelled_at_ms >= since_ms, labels.c.inclusion_probability > 0
    )
    return connection.execute(query).scalar_one()


def accuracy_series(
    connection: sa.Connection, model: str, *, since_ms: int, bucket_ms: int, confidence: float
) -> list[dict[str, Any]]:
    """Accuracy from labels per time bucket: of the fleet (``device`` is empty) and of each device."""
    query = sa.select(labels.c.device, labels.c.correct, labels.c.inclusion_probability, labels.c.at_ms).where(
        labels.c.model == model, labels.c.at_ms >= since_ms
    )
    buckets: dict[tuple[int, str], list[LabelledRow]] = {}
    for row in connection.execute(query):
        start = row.at_ms // bucket_ms * bucket_ms
        for device in ("", row.device):
            buckets.setdefault((start, device), []).append(_labelled(row))
    return [
        {"at_ms": start, "device": device, **as_dict(estimate_accuracy(rows, confidence=confidence))}
        for (start, device), rows in sorted(buckets.items())
    ]


def estimate_series(connection: sa.Connection, model: str, *, since_ms: int, bucket_ms: int) -> list[dict[str, Any]]:
    """Accuracy estimated without labels per time bucket: of the fleet (``device`` is empty) and of each device."""
    query = sa.select(drift.c.device, drift.c.until_ms, drift.c.rows, drift.c.estimated_accuracy).where(
        drift.c.model == model, drift.c.until_ms >= since_ms, drift.c.estimated_accuracy.is_not(None)
    )
    buckets: dict[tuple[int, str], list[tuple[int, float]]] = {}
    for row in connection.execute(query):
        start = row.until_ms // bucket_ms * bucket_ms
        for device in ("", row.device):
            buckets.setdefault((start, device), []).append((row.rows, row.estimated_accuracy))
    return [
        {"at_ms": start, "device": device, "rows": sum(rows for rows, _ in found), "value": _mean(found)}
        for (start, device), found in sorted(buckets.items())
    ]


def serving_since(connection: sa.Connection, model: str) -> dict[str, list[int]]:
    """Since when each device is served, Unix milliseconds, by the package that serves it now."""
    query = sa.select(serving.c.package, serving.c.since_ms).where(serving.c.model == model)
    found: dict[str, list[int]] = {}
    for row in connection.execute(query.order_by(serving.c.package, serving.c.device)):
        found.setdefault(row.package, []).append(row.since_ms)
    return found


def label_budget(connection: sa.Connection, model: str) -> dict[str, Any] | None:
    """The sampling last asked of the model's devices, why and since when; None where it never differed."""
    row = connection.execute(sa.select(label_budgets).where(label_budgets.c.model == model)).mappings().one_or_none()
    return None if row is None else dict(row)


# --- metrics and alerts


def device_metrics(connection: sa.Connection, model: str, *, since_ms: int) -> list[dict[str, Any]]:
    """Per device that serves ``model``: totals since a moment, latency quantiles, its machine's state."""
    query = (
        sa.select(serving, machines.c.state.label("machine"), machines.c.at_ms.label("machine_at_ms"))
        .outerjoin(machines, machines.c.device == serving.c.device)
        .where(serving.c.model == model)
        .order_by(serving.c.device)
    )
    found = {
        row["device"]: dict(row)
        | {"requests": 0, "rows": 0, "refused": 0, "failed": 0, "latency_counts": (0,) * latency.BUCKETS}
        for row in connection.execute(query).mappings()
    }
    windows = sa.select(metrics).where(metrics.c.model == model, metrics.c.until_ms >= since_ms)
    for window in connection.execute(windows).mappings():
        device = found.get(window["device"])
        if device is None:
            continue
        for name in ("requests", "rows", "refused", "failed"):
            device[name] += window[name]
        device["latency_counts"] = latency.merge(device["latency_counts"], window["latency_counts"])
    for device in found.values():
        counts = device.pop("latency_counts")
        for name, share in (("p50_ms", 0.5), ("p99_ms", 0.99)):
            quantile = latency.quantile_us(counts, share)
            device[name] = None if quantile is None else round(quantile / 1000, 4)
    return list(found.values())


def alert_list(connection: sa.Connection, model: str | None, *, only_open: bool, limit: int) -> list[dict[str, Any]]:
    """Alerts, the newest first."""
    query = sa.select(alerts).order_by(alerts.c.id.desc()).limit(limit)
    if model is not None:
        query = query.where(alerts.c.model == model)
    if only_open:
        query = query.where(alerts.c.closed_at_ms.is_(None))
    return [dict(row) for row in connection.execute(query).mappings()]


def _labelled(row: Any) -> LabelledRow:
    probability = row.inclusion_probability
    return LabelledRow(row.device, bool(row.correct), max(probability, _LEAST_PROBABILITY) if probability > 0 else 0.0)


def _mean(weighted: Iterable[tuple[int, float]]) -> float:
    pairs = list(weighted)
    return sum(rows * value for rows, value in pairs) / sum(rows for rows, _ in pairs)
