"""Handlers of the streams ``metrics`` and ``profiles``: they write rows in the transaction that moves the watermark."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import sqlalchemy as sa

from edge_agent.contract.envelope import Envelope
from edge_agent.contract.errors import MessageError
from edge_agent.contract.messages import DeviceMetrics, MetricsReport, ModelMetrics, ProfileReport
from edge_agent.contract.profile import FeatureCounts
from fleet_server.monitoring.tables import machine_windows, machines, metrics, profile_windows, serving
from fleet_server.upsert import upsert

_MOST_ROWS = 10**12  # in one window; sums of many windows then stay far within 64 bits
_MOST_JOULES = 1e12  # likewise: no board takes as much, and no sum becomes infinite

_counts = msgspec.msgpack.Decoder(dict[str, FeatureCounts])


def on_metrics(connection: sa.Connection, envelope: Envelope, report: MetricsReport) -> None:
    """Store one window of a device's metrics, and learn which package answers there."""
    rows = [
        {
            "device": envelope.device,
            "from_ms": report.from_ms,
            "until_ms": report.until_ms,
            **{name: getattr(model, name) for name in _COLUMNS},
            "latency_counts": list(model.latency_counts),
        }
        for model in report.models
    ]
    if rows:
        connection.execute(sa.insert(metrics), rows)
    for name in sorted({model.model for model in report.models}):
        _learn_serving(connection, envelope.device, [model for model in report.models if model.model == name], report)
    _remember_window(connection, envelope.device, report)
    newest = sa.select(machines.c.at_ms).where(machines.c.device == envelope.device)
    if (connection.execute(newest).scalar() or 0) <= report.until_ms:
        values = {"at_ms": report.until_ms, "state": _machine(report.machine)}
        upsert(connection, machines, {"device": envelope.device}, values)


def on_profile(connection: sa.Connection, envelope: Envelope, report: ProfileReport) -> None:
    """Store one window of a device's counts, to be judged once enough rows have come together.

    Raises:
        MessageError: The counts contradict each other.
    """
    for name, counts in report.counts.items():
        if counts.rows != report.rows or report.rows > _MOST_ROWS:
            raise MessageError(
                f"profile of {report.model} by {envelope.device}: feature {name} counts {counts.rows} rows, "
                f"the window {report.rows}: update the agent"
            )
    if report.rows == 0:
        return
    values = {
        "device": envelope.device,
        "model": report.model,
        "package": report.package,
        "from_ms": report.from_ms,
        "until_ms": report.until_ms,
        "rows": report.rows,
        "counts": msgspec.msgpack.encode(report.counts),
        "pending": True,
    }
    connection.execute(sa.insert(profile_windows).values(values))


def decode_counts(data: bytes) -> dict[str, FeatureCounts]:
    """The counts in a row of ``profile_windows``."""
    return _counts.decode(data)


_COLUMNS = ("model", "version", "package", "requests", "rows", "refused", "failed")


def _learn_serving(connection: sa.Connection, device: str, models: list[ModelMetrics], report: MetricsReport) -> None:
    """A window around a swap names both packages: the one not known yet is the one that took over."""
    key = sa.and_(serving.c.device == device, serving.c.model == models[0].model)
    known = connection.execute(sa.select(serving).where(key)).one_or_none()
    if known is not None and known.seen_ms > report.until_ms:
        return
    other = [model for model in models if known is None or model.package != known.package]
    if known is not None and not other:
        connection.execute(sa.update(serving).where(key).values(seen_ms=report.until_ms))
        return
    values = {
        "package": other[-1].package,
        "version": other[-1].version,
        "since_ms": report.from_ms,
        "seen_ms": report.until_ms,
    }
    upsert(connection, serving, {"device": device, "model": models[0].model}, values)


def _remember_window(connection: sa.Connection, device: str, report: MetricsReport) -> None:
    """Nothing is kept of a machine that tells neither of a GPU nor of its power."""
    state = report.machine
    told = state.gpus or state.throttled or state.power_w is not None or state.energy_j is not None
    if not told:
        return
    values = {
        "device": device,
        "from_ms": report.from_ms,
        "until_ms": report.until_ms,
        "inferences": min(sum(model.rows for model in report.models), _MOST_ROWS),
        "energy_j": _measured(state.energy_j),
        "power_w": _measured(state.power_w),
        "throttled": bool(state.throttled) or any(gpu.throttled for gpu in state.gpus),
    }
    connection.execute(sa.insert(machine_windows).values(values))


def _measured(value: float | None) -> float | None:
    return value if value is not None and 0 <= value <= _MOST_JOULES else None


def _machine(state: DeviceMetrics) -> dict[str, Any]:
    """As JSON, which knows no NaN and no infinity."""
    fields: dict[str, Any] = _finite(msgspec.to_builtins(state))
    return fields


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
