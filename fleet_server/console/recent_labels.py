"""The labels that an accuracy on the page rests on: the newest of one device and package, as many as are needed. Pure.

A fixed number of labels does not do. Weights differ by a factor of twenty, since narrow margins are asked for first, so
that 40 labels are worth about 15 equally likely ones: simulated draws at 55 % true accuracy gave 54 % on average, but
with a standard deviation of 13 points. The estimate is right in the mean and far too noisy. So the labels are counted
by what they are worth, Kish's effective size (sum w)^2 / sum w^2.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterable, Sequence

from fleet_server.console.views import AccuracyView
from fleet_server.monitoring.harm import wilson

# After a minute without a label, and five times the usual distance between two, those before are of another time.
_PATIENCE_MS, _PATIENCE_STEPS = 60_000, 5

# Labels that an accuracy rests on: worth at least ENOUGH where there are so many, never more than MOST, and none at all
# is stated for fewer than LEAST.
ENOUGH, MOST, LEAST = 40.0, 600, 8
_CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True, slots=True)
class LabelPoint:
    """One label: which package had answered, when, and whether it was right; ``probability`` of being asked for."""

    device: str
    package: str
    at_ms: int
    correct: bool
    probability: float


class RecentLabels:
    """The newest labels of one device and package, with the sums of Hajek's estimate."""

    def __init__(self) -> None:
        self._labels: deque[LabelPoint] = deque()
        self.weight = self.squares = self.correct = 0.0
        self.newest_ms = 0
        self.segment = 0

    @property
    def count(self) -> int:
        """Labels held."""
        return len(self._labels)

    @property
    def package(self) -> str:
        """The package that all of them are of."""
        return self._labels[-1].package if self._labels else ""

    @property
    def patience_ms(self) -> float:
        """How long after the newest label these speak of the present: longer where labels come seldom."""
        if len(self._labels) < 2:
            return _PATIENCE_MS
        usual_ms = (self._labels[-1].at_ms - self._labels[0].at_ms) / (len(self._labels) - 1)
        return max(_PATIENCE_MS, _PATIENCE_STEPS * usual_ms)

    def add(self, labels: Iterable[LabelPoint]) -> None:
        """Take labels, the oldest first; a gap or another package begins a new segment, without those before."""
        for one in labels:
            late = len(self._labels) >= LEAST and one.at_ms - self.newest_ms > self.patience_ms
            if self._labels and (late or one.package != self.package):
                self._labels.clear()
                self.weight = self.squares = self.correct = 0.0
                self.segment += 1
            self._labels.append(one)
            self._count(one, 1)
            self.newest_ms = one.at_ms
            while len(self._labels) > LEAST and (len(self._labels) > MOST or self._enough_without_the_oldest()):
                self._count(self._labels.popleft(), -1)

    def _count(self, one: LabelPoint, sign: int) -> None:
        weight = sign / one.probability
        self.weight += weight
        self.squares += weight / one.probability
        self.correct += weight * one.correct

    def _enough_without_the_oldest(self) -> bool:
        weight = 1 / self._labels[0].probability
        left = self.squares - weight * weight
        return left > 0 and (self.weight - weight) ** 2 / left >= ENOUGH


def measured(windows: Sequence[RecentLabels]) -> AccuracyView | None:
    """The accuracy that all of these show: Hajek's estimate, labels weighted by how few rows like them were asked for.

    Returns:
        With Wilson's bounds on the effective size; None where there are too few labels.
    """
    count = sum(one.count for one in windows)
    if count < LEAST:
        return None
    weight, squares = sum(one.weight for one in windows), sum(one.squares for one in windows)
    value = min(1.0, max(0.0, sum(one.correct for one in windows) / weight))
    low, high = wilson(value, weight * weight / squares, confidence=_CONFIDENCE)
    return AccuracyView(value=value, low=low, high=high, labels=count)


def recent(labels: Iterable[LabelPoint]) -> RecentLabels:
    """The newest of one device and package's labels, given in any order."""
    window = RecentLabels()
    window.add(sorted((one for one in labels if one.probability > 0), key=lambda one: one.at_ms))
    return window
