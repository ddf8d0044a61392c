"""The accuracy chart: labels and estimates of a time span become lines on one grid of times. Pure.

A device's point rests on its newest labels of one package. Where another package took over, and where nothing came for
a while, the line breaks and begins anew: a better model shows at once, and silence is not drawn as knowledge.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

from fleet_server.console.chart_views import Chart, Mark, Series
from fleet_server.console.recent_labels import LabelPoint, RecentLabels, measured
from fleet_server.console.views import AccuracyView

FLEET = "fleet"
GRID = 120
MOST_DEVICES = 12
# Without a window for so long, and for so many steps of the grid, the line of estimates breaks. Windows fill slowly: a
# device with few requests closes one in minutes.
_ESTIMATE_GAP_MS, _GAP_STEPS = 300_000, 4

DAY_MS = 86_400_000
SPANS_MS = {
    "auto": DAY_MS,
    "15 min": 900_000,
    "1 h": 3_600_000,
    "6 h": 21_600_000,
    "24 h": DAY_MS,
    "7 d": 7 * DAY_MS,
}
_SHORTEST_MS = 120_000


@dataclasses.dataclass(frozen=True, slots=True)
class EstimatePoint:
    """The accuracy, 0..1, estimated without labels for a window of ``rows`` rows that ended at ``at_ms``."""

    device: str
    package: str
    at_ms: int
    rows: int
    value: float


def draw(
    labels: Sequence[LabelPoint],
    estimates: Sequence[EstimatePoint],
    marks: Iterable[Mark],
    *,
    span: str,
    now_ms: int,
    promised: float | None,
    serving: Mapping[str, str],
) -> Chart:
    """The chart of a span.

    Args:
        labels, estimates: Of the span, in any order.
        serving: The package that serves now, by device: what the values of the present are about.
        span: A key of :data:`SPANS_MS`; ``auto`` begins at the first point of the last day.
    """
    begin = now_ms - SPANS_MS[span]
    if span == "auto":
        first = min((*(one.at_ms for one in labels), *(one.at_ms for one in estimates)), default=now_ms)
        begin = min(max(begin, first), now_ms - _SHORTEST_MS)
    step = (now_ms - begin) / GRID
    times = tuple(round(begin + step * (index + 1)) for index in range(GRID))
    devices = sorted({one.device for one in labels} | {one.device for one in estimates})[:MOST_DEVICES]
    asked = sorted((one for one in labels if one.probability > 0), key=lambda one: one.at_ms)
    lines = _Lines(devices, times, now_ms, serving)
    series = [*lines.from_labels(asked), *lines.from_estimates(estimates, max(_ESTIMATE_GAP_MS, _GAP_STEPS * step))]
    return Chart(
        from_ms=begin,
        until_ms=now_ms,
        times_ms=times,
        series=tuple(one for one in series if any(value is not None for value in one.values)),
        marks=_apart((mark for mark in marks if begin <= mark.at_ms <= now_ms), step),
        promised=promised,
        labels=sum(begin <= one.at_ms for one in asked),
    )


def as_json(chart: Chart) -> dict[str, object]:
    """What the page's script reads: times in seconds."""
    return {
        "from": chart.from_ms / 1000,
        "until": chart.until_ms / 1000,
        "times": [at / 1000 for at in chart.times_ms],
        "promised": chart.promised,
        "series": [
            {
                "label": one.label,
                "subject": one.subject,
                "estimated": one.estimated,
                "values": [_short(value) for value in one.values],
                "low": [_short(value) for value in one.low],
                "high": [_short(value) for value in one.high],
                "now": _short(one.now),
                "spread": _short(one.now_spread),
                "labels": one.now_labels,
            }
            for one in chart.series
        ],
        "marks": [{"at": one.at_ms / 1000, "kind": one.kind, "text": one.text} for one in chart.marks],
    }


def _apart(marks: Iterable[Mark], step_ms: float) -> tuple[Mark, ...]:
    """Of marks of one kind that would touch each other, the first: devices of one fleet often alert together."""
    kept: list[Mark] = []
    for mark in sorted(marks, key=lambda mark: mark.at_ms):
        near = [one for one in kept if one.kind == mark.kind and mark.at_ms - one.at_ms < 2 * step_ms]
        if not near:
            kept.append(mark)
    return tuple(kept)


def _short(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


@dataclasses.dataclass(frozen=True, slots=True)
class _Point:
    """A value at a place of the grid; it is joined to the one before where both are of one ``segment``."""

    cell: int
    segment: Hashable
    value: float
    low: float = 0.0
    high: float = 1.0


class _Lines:
    """Turns what came into lines on the grid ``times``."""

    def __init__(self, devices: Sequence[str], times: Sequence[int], now_ms: int, serving: Mapping[str, str]) -> None:
        self._names = (FLEET, *devices)
        self._times, self._now_ms, self._serving = times, now_ms, serving

    def from_labels(self, labels: Iterable[LabelPoint]) -> list[Series]:
        """Of labels that were asked for, the oldest first."""
        points: dict[str, list[_Point]] = {name: [] for name in self._names}
        windows: dict[str, RecentLabels] = {}
        cells: dict[int, dict[str, list[LabelPoint]]] = {}
        for one in labels:
            cells.setdefault(self._place(one.at_ms), {}).setdefault(one.device, []).append(one)
        segment, newest = 0, 0
        for cell in sorted(cells):
            silence = newest + max((one.patience_ms for one in windows.values()), default=0)
            for device, found in cells[cell].items():
                windows.setdefault(device, RecentLabels()).add(found)
                if device in points:
                    window = windows[device]
                    _put(points[device], cell, (window.package, window.segment), measured([window]))
            newest = max(window.newest_ms for window in windows.values())
            segment += newest > silence
            living = [window for window in windows.values() if newest - window.newest_ms <= window.patience_ms]
            _put(points[FLEET], cell, (segment, frozenset(one.package for one in living)), measured(living))
        present = {
            device: window
            for device, window in windows.items()
            if self._serves(device, window.package) and self._now_ms - window.newest_ms <= window.patience_ms
        }
        now = {FLEET: measured([*present.values()])} | {name: measured([one]) for name, one in present.items()}
        return [self._line(name, points[name], now.get(name)) for name in self._names]

    def from_estimates(self, estimates: Iterable[EstimatePoint], gap_ms: float) -> list[Series]:
        """Of estimates in any order; ``gap_ms``: after so long without one, a line breaks."""
        points: dict[str, list[_Point]] = {name: [] for name in self._names}
        newest: dict[str, EstimatePoint] = {}
        segments = dict.fromkeys(self._names, 0)
        latest = 0
        for one in sorted(estimates, key=lambda one: one.at_ms):
            cell, before = self._place(one.at_ms), newest.get(one.device)
            newest[one.device] = one
            if one.device in points:
                segments[one.device] += before is not None and one.at_ms - before.at_ms > gap_ms
                points[one.device].append(_Point(cell, (one.package, segments[one.device]), one.value))
            segments[FLEET] += one.at_ms - latest > gap_ms
            latest = one.at_ms
            living = [point for point in newest.values() if latest - point.at_ms <= gap_ms]
            of_fleet = _weighted(living)
            if of_fleet is not None:
                segment = (segments[FLEET], frozenset(point.package for point in living))
                points[FLEET].append(_Point(cell, segment, of_fleet))
        present = {
            device: one
            for device, one in newest.items()
            if self._serves(device, one.package) and self._now_ms - one.at_ms <= gap_ms
        }
        now = {FLEET: _weighted([*present.values()])} | {name: one.value for name, one in present.items()}
        return [
            Series(
                label=f"{name}, estimated",
                subject=name,
                estimated=True,
                values=_filled(points[name], lambda point: point.value, lasts=now.get(name) is not None),
                now=now.get(name),
            )
            for name in self._names
        ]

    def _line(self, name: str, points: Sequence[_Point], now: AccuracyView | None) -> Series:
        lasts = now is not None
        return Series(
            label=name,
            subject=name,
            estimated=False,
            values=_filled(points, lambda point: point.value, lasts=lasts),
            low=_filled(points, lambda point: point.low, lasts=lasts),
            high=_filled(points, lambda point: point.high, lasts=lasts),
            now=now.value if now else None,
            now_spread=now.spread if now else None,
            now_labels=now.labels if now else 0,
        )

    def _place(self, at_ms: int) -> int:
        """The index of the first grid time that is not before a moment; a device's clock may run ahead of ours."""
        return min(bisect.bisect_left(self._times, at_ms), len(self._times) - 1)

    def _serves(self, device: str, package: str) -> bool:
        return self._serving.get(device) == package


def _put(points: list[_Point], cell: int, segment: Hashable, found: AccuracyView | None) -> None:
    if found is not None:
        points.append(_Point(cell, segment, found.value, found.low, found.high))


def _weighted(estimates: Sequence[EstimatePoint]) -> float | None:
    rows = sum(one.rows for one in estimates)
    return sum(one.value * one.rows for one in estimates) / rows if rows else None


def _filled(points: Sequence[_Point], of: Callable[[_Point], float], *, lasts: bool) -> tuple[float | None, ...]:
    """A value for every place between points of one segment; ``lasts``: the last one holds up to the present."""
    values: list[float | None] = [None] * GRID
    before: _Point | None = None
    for point in points:
        if before is not None and point.segment == before.segment and point.cell > before.cell:
            step = (of(point) - of(before)) / (point.cell - before.cell)
            for cell in range(before.cell + 1, point.cell):
                values[cell] = of(before) + step * (cell - before.cell)
        elif before is not None and point.cell == before.cell + 1:
            values[before.cell] = None  # neighbours would be joined
        values[point.cell] = of(point)
        before = point
    if before is not None and lasts:
        values[before.cell :] = [of(before)] * (GRID - before.cell)
    return tuple(values)
