"""Windows of counts become verdicts: gathered per device until they are enough, compared, written as ``drift`` rows."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import sqlalchemy as sa

from edge_agent.contract.errors import PackageError
from edge_agent.contract.profile import FeatureCounts, ReferenceProfile, merge
from fleet_server.database import Database
from fleet_server.monitoring import estimate
from fleet_server.monitoring.drift import FeatureDrift, Verdict, compare, judge
from fleet_server.monitoring.intake import decode_counts
from fleet_server.monitoring.settings import DriftRule
from fleet_server.monitoring.tables import drift, profile_windows

_log = logging.getLogger(__name__)
_AT_ONCE = 1_000  # windows of one device read in one transaction


@dataclasses.dataclass(frozen=True, slots=True)
class Window:
    """What is judged at once: some consecutive reports of one package on one device."""

    ids: tuple[int, ...]
    from_ms: int
    until_ms: int
    rows: int
    counts: dict[str, FeatureCounts]


def gather(reports: Sequence[Any], min_rows: int) -> Iterator[Window]:
    """Consecutive rows of ``profile_windows`` in groups of at least ``min_rows`` rows; what is left over waits."""
    start, rows = 0, 0
    for end, report in enumerate(reports, start=1):
        rows += report.rows
        if rows >= min_rows:
            group = reports[start:end]
            counts: dict[str, FeatureCounts] = {}
            for one in group:
                counts = merge(counts, decode_counts(one.counts))
            yield Window(
                tuple(one.id for one in group),
                min(one.from_ms for one in group),
                max(one.until_ms for one in group),
                rows,
                counts,
            )
            start, rows = end, 0


def judge_windows(
    db: Database, reference: Callable[[str], ReferenceProfile], rule: DriftRule, now_ms: int
) -> list[dict[str, Any]]:
    """Judge every window that has become large enough; returns the new rows of ``drift``, the oldest first."""
    total = sa.func.sum(profile_windows.c.rows)
    key = (profile_windows.c.device, profile_windows.c.model, profile_windows.c.package)
    ready = sa.select(*key).where(profile_windows.c.pending).group_by(*key).having(total >= rule.min_rows)
    with db.read() as connection:
        waiting = connection.execute(ready.order_by(*key)).all()
    written: list[dict[str, Any]] = []
    for device, model, package in waiting:
        try:
            profile = reference(package)
        except PackageError as error:
            _log.warning("%s on %s: no reference to compare with, its windows wait: %s", model, device, error)
            continue
        with db.write() as connection:
            try:
                written += _judge_device(connection, (device, model, package), profile, rule, now_ms)
            except PackageError:
                _log.exception("%s on %s: counts that do not fit package %s are left out", model, device, package[:12])
                unfit = sa.update(profile_windows).where(
                    profile_windows.c.pending, _is(profile_windows, device, model, package)
                )
                connection.execute(unfit.values(pending=False))
    return written


def _judge_device(
    connection: sa.Connection, key: tuple[str, str, str], profile: ReferenceProfile, rule: DriftRule, now_ms: int
) -> list[dict[str, Any]]:
    reports = connection.execute(
        sa.select(profile_windows)
        .where(profile_windows.c.pending, _is(profile_windows, *key))
        .order_by(profile_windows.c.id)
        .limit(_AT_ONCE)
        .with_for_update()
    ).all()
    past = connection.execute(
        sa.select(drift.c.verdict, drift.c.flagged, drift.c.from_ms, drift.c.since_ms)
        .where(_is(drift, *key))
        .order_by(drift.c.id.desc())
        .limit(rule.persistence)
    ).all()
    history = [(frozenset(row.flagged), row.from_ms) for row in reversed(past)]
    before = Verdict(past[0].verdict) if past else Verdict.NONE
    since_ms = past[0].since_ms if past else (reports[0].from_ms if reports else now_ms)
    # A device that the reference knows is compared with itself: what it differs in from the others is no change.
    expected = {**profile.counts, **profile.devices.get(key[0], {})}
    written = []
    for window in gather(reports, rule.min_rows):
        features = compare(expected, window.counts, rule)
        flagged = sorted(feature.feature for feature in features if feature.flagged)
        history = [*history, (frozenset(flagged), window.from_ms)][-rule.persistence :]
        verdict = judge([names for names, _ in history], before=before, persistence=rule.persistence)
        if (verdict is Verdict.DRIFTED) != (before is Verdict.DRIFTED):
            since_ms = history[0][1]  # it takes exactly that many windows to change the verdict
        values = {
            **dict(zip(("device", "model", "package"), key, strict=True)),
            "from_ms": window.from_ms,
            "until_ms": window.until_ms,
            "rows": window.rows,
            "verdict": verdict.value,
            "flagged": flagged,
            "features": [_figures(feature) for feature in features],
            "estimated_accuracy": estimate.estimate_accuracy(profile, window.counts),
            "since_ms": since_ms,
            "judged_at_ms": now_ms,
        }
        connection.execute(sa.insert(drift).values(values))
        judged = sa.update(profile_windows).where(profile_windows.c.id.in_(window.ids))
        connection.execute(judged.values(pending=False))
        written.append(values)
        before = verdict
    return written


def _is(table: sa.Table, device: str, model: str, package: str) -> sa.ColumnElement[bool]:
    return sa.and_(table.c.device == device, table.c.model == model, table.c.package == package)


def _figures(feature: FeatureDrift) -> dict[str, Any]:
    return {
        name: round(value, 6) if isinstance(value, float) else value
        for name, value in dataclasses.asdict(feature).items()
    }
