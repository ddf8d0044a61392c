"""What the chart of accuracy over time shows, ready for the template."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line of the chart; ``estimated`` ones are dashed.

    Args:
        values: One per time of the chart; None where there is nothing to say, so that the line breaks.
        low, high: Bounds of each value, as long as ``values``; empty where none are drawn.
        now: The value of the present: None where it is not recent, or not of the package that serves.
        now_spread: Half of its interval; ``now_labels``: the labels it rests on, 0 where it is estimated without.
    """

    label: str
    subject: str
    estimated: bool
    values: tuple[float | None, ...]
    low: tuple[float | None, ...] = ()
    high: tuple[float | None, ...] = ()
    now: float | None = None
    now_spread: float | None = None
    now_labels: int = 0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A vertical line of the chart: ``drift``, ``retraining`` or ``rollout``."""

    at_ms: int
    kind: str
    text: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """Accuracy over time.

    Args:
        from_ms, until_ms: What the axis spans.
        times_ms: Ascending; each series has as many values.
        promised: Accuracy on the reference data of the newest package that serves, 0..1.
        labels: Labels within the span that were asked for.
    """

    from_ms: int
    until_ms: int
    times_ms: tuple[int, ...]
    series: tuple[Series, ...]
    marks: tuple[Mark, ...]
    promised: float | None = None
    labels: int = 0

    @property
    def empty(self) -> bool:
        """Whether there is nothing to draw."""
        return not any(value is not None for one in self.series for value in one.values)
