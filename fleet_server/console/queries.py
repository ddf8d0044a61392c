"""What the console reads straight from the tables of monitoring and labels, in one transaction."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from edge_agent.contract.latency import BUCKETS, quantile_us
from fleet_server.console.accuracy import DAY_MS, EstimatePoint
from fleet_server.console.badges import Badge, Tone
from fleet_server.console.recent_labels import LabelPoint
from fleet_server.console.views import DriftView, FeatureBar
from fleet_server.devices.tables import reported_models
from fleet_server.labels.tables import labels
from fleet_server.monitoring.drift import Verdict
from fleet_server.monitoring.machines import MachineRecord, machine_records
from fleet_server.monitoring.settings import DriftRule
from fleet_server.monitoring.tables import alerts, drift, metrics
from fleet_server.rollouts.tables import rollouts

# Bounds of what one refresh may read, whatever the fleet has written.
_MOST_LABELS, _MOST_METRICS, _MOST_WINDOWS, _MOST_ALERTS = 20_000, 4_000, 20_000, 100
_SPEED_MS = 60_000
_DRIFT_DEVICES, _DRIFT_FEATURES, _QUIET_FEATURES = 12, 5, 3

_TONES = {Verdict.NONE: Tone.GOOD, Verdict.SUSPECT: Tone.WARN, Verdict.DRIFTED: Tone.BAD}
_WORDS = {Verdict.NONE: "steady", Verdict.SUSPECT: "suspect", Verdict.DRIFTED: "drifted"}

DeviceModel = tuple[str, str]


@dataclasses.dataclass(frozen=True, slots=True)
class Speed:
    """How fast a model answers on a device; ``p99_ms``: 99 of 100 requests within it."""

    requests_per_s: float
    p99_ms: float | None


@dataclasses.dataclass(frozen=True, slots=True)
class Alert:
    """An alert; ``device`` is empty where it is the fleet's."""

    id: int
    model: str
    kind: str
    device: str
    opened_at_ms: int
    closed_at_ms: int | None
    reason: str
    closed_reason: str

    @property
    def open(self) -> bool:
        """Whether its cause lasts."""
        return self.closed_at_ms is None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Readings:
    """What monitoring and labels say.

    Args:
        labels, estimates: Of the chosen model and span, for the chart.
        recent_labels: Of the last day or the span, by device and package.
        verdicts, newest_estimates: Of the package that serves on the device now.
        drift: The chosen model's newest windows, for the panel.
        alerts: The newest first, open and closed.
        machines: By device, those that have reported.
    """

    speeds: Mapping[DeviceModel, Speed]
    verdicts: Mapping[DeviceModel, Badge]
    newest_estimates: Mapping[DeviceModel, float]
    labels_used: Mapping[DeviceModel, int]
    recent_labels: Mapping[DeviceModel, Sequence[LabelPoint]]
    labels: Sequence[LabelPoint]
    estimates: Sequence[EstimatePoint]
    drift: Sequence[DriftView]
    alerts: Sequence[Alert]
    machines: Mapping[str, MachineRecord]


def readings(
    connection: sa.Connection,
    model: str,
    *,
    rule: DriftRule,
    now_ms: int,
    since_ms: int,
) -> Readings:
    """Read all of it.

    Args:
        model: The one that chart and drift panel are about.
    """
    points = _labels(connection, min(since_ms, now_ms - DAY_MS))
    by_package: dict[DeviceModel, list[LabelPoint]] = {}
    for _, point in points:
        by_package.setdefault((point.device, point.package), []).append(point)
    windows = _newest_windows(connection)
    return Readings(
        speeds=_speeds(connection),
        verdicts={(row.device, row.model): _verdict(row) for row in windows},
        newest_estimates={
            (row.device, row.model): row.estimated_accuracy for row in windows if row.estimated_accuracy is not None
        },
        labels_used=_labels_used(connection),
        recent_labels=by_package,
        labels=[point for name, point in points if name == model and point.at_ms >= since_ms],
        estimates=_estimates(connection, model, since_ms),
        drift=_panel([row for row in windows if row.model == model], rule),
        alerts=_alerts(connection),
        machines={one.device: one for one in machine_records(connection)},
    )


def _labels(connection: sa.Connection, since_ms: int) -> list[tuple[str, LabelPoint]]:
    columns = (labels.c.device, labels.c.package, labels.c.at_ms, labels.c.correct, labels.c.inclusion_probability)
    query = sa.select(labels.c.model, *columns).where(labels.c.labelled_at_ms >= since_ms)
    rows = connection.execute(query.order_by(labels.c.labelled_at_ms.desc()).limit(_MOST_LABELS)).all()
    return [
        (
            row.model,
            LabelPoint(row.device, row.package, row.at_ms, bool(row.correct), _probability(row.inclusion_probability)),
        )
        for row in rows
    ]


def _probability(stated: float) -> float:
    """Zero where the label was volunteered; else not so small that one label would speak for all."""
    return min(1.0, max(stated, 1e-6)) if stated > 0 else 0.0


def _labels_used(connection: sa.Connection) -> dict[DeviceModel, int]:
    key = (labels.c.device, labels.c.model)
    rows = connection.execute(sa.select(*key, sa.func.count().label("labels")).group_by(*key))
    return {(row.device, row.model): row.labels for row in rows}


def _speeds(connection: sa.Connection) -> dict[DeviceModel, Speed]:
    """Of each device's last minute of reports, by its own clock: the newest rows, not those of our last minute."""
    rows = connection.execute(sa.select(metrics).order_by(metrics.c.id.desc()).limit(_MOST_METRICS)).all()
    newest: dict[DeviceModel, int] = {}
    for row in rows:
        key = (row.device, row.model)
        newest[key] = max(newest.get(key, 0), row.until_ms)
    gathered: dict[DeviceModel, tuple[int, int, list[int]]] = {}
    for row in rows:
        key = (row.device, row.model)
        if row.until_ms <= newest[key] - _SPEED_MS:
            continue
        requests, start, buckets = gathered.get(key, (0, row.from_ms, [0] * BUCKETS))
        if len(row.latency_counts) == BUCKETS:
            buckets = [one + other for one, other in zip(buckets, row.latency_counts, strict=True)]
        gathered[key] = (requests + row.requests, min(start, row.from_ms), buckets)
    found = {}
    for key, (requests, start, buckets) in gathered.items():
        p99_us = quantile_us(buckets, 0.99)
        seconds = max(newest[key] - start, 1) / 1000
        found[key] = Speed(requests / seconds, None if p99_us is None else p99_us / 1000)
    return found


def _newest_windows(connection: sa.Connection) -> Sequence[sa.Row[Any]]:
    """The newest judged window of each package that answers on a device now."""
    # Asked for one by one, each is one step down the index; grouping would read all that was ever judged.
    keys = ("device", "model", "package")
    own = (drift.c[name] == reported_models.c[name] for name in keys)
    newest = sa.select(sa.func.max(drift.c.id)).where(*own).correlate(reported_models).scalar_subquery()
    of_each = sa.select(newest).select_from(reported_models)
    return connection.execute(sa.select(drift).where(drift.c.id.in_(of_each)).order_by(drift.c.device)).all()


def _verdict(row: sa.Row[Any]) -> Badge:
    verdict = Verdict(row.verdict)
    flagged = ", ".join(str(name) for name in row.flagged)
    why = f"flagged: {flagged}" if flagged else f"no feature of {row.rows} rows is flagged"
    return Badge(text=_WORDS[verdict], tone=_TONES[verdict], why=why)


def _panel(rows: Sequence[sa.Row[Any]], rule: DriftRule) -> list[DriftView]:
    """The worst devices where there are many; in the order of their names, so that nothing jumps about."""
    severity = [Verdict.DRIFTED.value, Verdict.SUSPECT.value, Verdict.NONE.value]
    worst = sorted(rows, key=lambda row: (severity.index(row.verdict), row.device))[:_DRIFT_DEVICES]
    return [
        DriftView(
            device=row.device,
            model=row.model,
            verdict=_verdict(row),
            rows=row.rows,
            until_ms=row.until_ms,
            features=tuple(_bar(figures, rule) for figures in row.features[: _features(row)]),
        )
        for row in sorted(worst, key=lambda row: str(row.device))
    ]


def _features(row: sa.Row[Any]) -> int:
    return min(_DRIFT_FEATURES, max(_QUIET_FEATURES, len(row.flagged)))


def _bar(figures: Mapping[str, Any], rule: DriftRule) -> FeatureBar:
    # The rule looks at the effect: PSI less what chance alone gives. On PSI's scale the floor lies that much higher.
    by_chance = max(0.0, figures["psi"] - figures["effect"])
    return FeatureBar(
        feature=str(figures["feature"]),
        psi=figures["psi"],
        threshold=rule.effect_floor + by_chance,
        flagged=bool(figures["flagged"]),
    )


def rollout_history(connection: sa.Connection, limit: int) -> list[dict[str, Any]]:
    """The newest rollouts without their devices."""
    query = sa.select(rollouts).order_by(rollouts.c.created_at_ms.desc(), rollouts.c.id).limit(limit)
    return [dict(row) for row in connection.execute(query).mappings()]


def _estimates(connection: sa.Connection, model: str, since_ms: int) -> list[EstimatePoint]:
    query = (
        sa.select(drift.c.device, drift.c.package, drift.c.until_ms, drift.c.rows, drift.c.estimated_accuracy)
        .where(drift.c.model == model, drift.c.until_ms >= since_ms, drift.c.estimated_accuracy.is_not(None))
        .order_by(drift.c.id.desc())
        .limit(_MOST_WINDOWS)
    )
    return [EstimatePoint(*row) for row in connection.execute(query)]


def _alerts(connection: sa.Connection) -> list[Alert]:
    # Open ones always: they are what the header counts.
    order = (alerts.c.closed_at_ms.is_(None).desc(), alerts.c.opened_at_ms.desc())
    columns = [alerts.c[field.name] for field in dataclasses.fields(Alert)]
    rows = connection.execute(sa.select(*columns).order_by(*order).limit(_MOST_ALERTS))
    return sorted((Alert(*row) for row in rows), key=lambda one: -one.opened_at_ms)
