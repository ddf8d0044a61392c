"""The accuracy chart: labels and estimates of a time span become lines on one grid of times. Pure.

A device's point rests on its newest labels of one package: where another package took over, the line begins anew, so
that a better model shows at once and is not averaged with the one before.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from fleet_server.console.views import Chart, Mark, Series

FLEET = "fleet"
# Labels that a device's point rests on at most, and at least; more are steadier, fewer are quicker.
WINDOW, LEAST = 40, 8
GRID = 120
MOST_DEVICES = 12
# A device that has given no label for so long does not speak for the fleet any more.
_STALE_MS, _STALE_STEPS = 300_000, 10

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
class LabelPoint:
    """One label: which package had answered, when, and whether it was right; ``probability`` of being asked for."""

    device: str
    package: str
    at_ms: int
    correct: bool
    probability: float


@dataclasses.dataclass(frozen=True, slots=True)
class EstimatePoint:
    """The accuracy, 0..1, estimated without labels for a window of ``rows`` rows that ended at ``at_ms``."""

    device: str
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
) -> Chart:
    """The chart of a span.

    Args:
        labels, estimates: Of the span, in any order.
        span: A key of :data:`SPANS_MS`; ``auto`` begins at the first point of the last day.
    """
    begin = now_ms - SPANS_MS[span]
    if span == "auto":
        first = min((*(one.at_ms for one in labels), *(one.at_ms for one in estimates)), default=now_ms)
        begin = min(max(begin, first), now_ms - _SHORTEST_MS)
    step = (now_ms - begin) / GRID
    times = tuple(round(begin + step * (index + 1)) for index in range(GRID))
    devices = sorted({one.device for one in labels} | {one.device for one in estimates})[:MOST_DEVICES]
    place = _places(times)
    stale_ms = max(_STALE_MS, _STALE_STEPS * step)
    series = [*_from_labels(labels, devices, place, stale_ms), *_from_estimates(estimates, devices, place)]
    return Chart(
        from_ms=begin,
        until_ms=now_ms,
        times_ms=times,
        series=tuple(one for one in series if any(value is not None for value in one.values)),
        marks=_apart((mark for mark in marks if begin <= mark.at_ms <= now_ms), step),
        promised=promised,
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
                "values": [None if value is None else round(value, 4) for value in one.values],
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


def _places(times: Sequence[int]) -> Callable[[int], int]:
    """Gives the index of the first grid time that is not before a moment; a device's clock may run ahead of ours."""

    def place(at_ms: int) -> int:
        return min(bisect.bisect_left(times, at_ms), len(times) - 1)

    return place


class _Window:
    """The newest labels of one device and package, with the two sums of Hajek's estimate."""

    def __init__(self) -> None:
        self._labels: deque[LabelPoint] = deque(maxlen=WINDOW)
        self.count, self.weight, self.correct, self.newest_ms = 0, 0.0, 0.0, 0

    def add(self, labels: Iterable[LabelPoint]) -> None:
        """Take labels, the oldest first; one of another package makes the window forget the others."""
        for one in labels:
            if self._labels and self._labels[-1].package != one.package:
                self._labels.clear()
            self._labels.append(one)
            self.newest_ms = one.at_ms
        self.count = len(self._labels)
        self.weight = sum(1 / one.probability for one in self._labels)
        self.correct = sum(1 / one.probability for one in self._labels if one.correct)


def _from_labels(
    labels: Sequence[LabelPoint], devices: Sequence[str], place: Callable[[int], int], stale_ms: float
) -> list[Series]:
    values: dict[str, list[float | None]] = {name: [None] * GRID for name in (FLEET, *devices)}
    windows: dict[str, _Window] = {}
    cells: dict[int, dict[str, list[LabelPoint]]] = {}
    for one in sorted(labels, key=lambda one: one.at_ms):
        if one.probability > 0:
            cells.setdefault(place(one.at_ms), {}).setdefault(one.device, []).append(one)
    for cell in sorted(cells):
        for device, found in cells[cell].items():
            windows.setdefault(device, _Window()).add(found)
            if device in values:
                values[device][cell] = _accuracy([windows[device]])
        newest = max(window.newest_ms for window in windows.values())
        values[FLEET][cell] = _accuracy(
            [window for window in windows.values() if newest - window.newest_ms <= stale_ms]
        )
    return [Series(label=name, subject=name, estimated=False, values=tuple(line)) for name, line in values.items()]


def _accuracy(windows: Sequence[_Window]) -> float | None:
    """Hajek's estimate: the share of correct labels, each weighted by how few rows like it were asked for."""
    if sum(window.count for window in windows) < LEAST:
        return None
    return sum(window.correct for window in windows) / sum(window.weight for window in windows)


def _from_estimates(
    estimates: Sequence[EstimatePoint], devices: Sequence[str], place: Callable[[int], int]
) -> list[Series]:
    values: dict[str, list[float | None]] = {name: [None] * GRID for name in (FLEET, *devices)}
    newest: dict[str, EstimatePoint] = {}
    for one in sorted(estimates, key=lambda one: one.at_ms):
        cell = place(one.at_ms)
        newest[one.device] = one
        if one.device in values:
            values[one.device][cell] = one.value
        rows = sum(point.rows for point in newest.values())
        values[FLEET][cell] = sum(point.value * point.rows for point in newest.values()) / rows if rows else None
    return [
        Series(label=f"{name}, estimated", subject=name, estimated=True, values=tuple(line))
        for name, line in values.items()
    ]
