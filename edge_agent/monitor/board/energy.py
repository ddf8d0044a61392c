"""Energy from power: the integral over time by trapezoids."""

from __future__ import annotations


class Energy:
    """Adds up joules between one report and the next; of a single thread, or locked by its owner.

    Args:
        longest_gap_s: Between two readings; over a longer one nobody knows what was taken, and the window's energy is
            unknown, rather than too small; ``total_j`` leaves it out.
    """

    def __init__(self, longest_gap_s: float = 10.0) -> None:
        self._longest_gap_s = longest_gap_s
        self._at_s: float | None = None
        self._power_w = 0.0
        self._window_j: float | None = None
        self._has_gap = False
        self.total_j = 0.0

    def add(self, at_s: float, power_w: float) -> None:
        """A reading; ``at_s`` never goes back."""
        if self._at_s is not None:
            passed_s = at_s - self._at_s
            if passed_s > self._longest_gap_s:
                self._has_gap = True
            else:
                joules = (self._power_w + power_w) / 2 * passed_s
                self._window_j = (self._window_j or 0.0) + joules
                self.total_j += joules
        self._at_s, self._power_w = at_s, power_w

    def take(self, at_s: float) -> float | None:
        """Joules since the last time; None where too few readings tell. A trapezoid counts where it ends.

        Args:
            at_s: When the window ends: the gap before it may not have ended.
        """
        has_gap = self._has_gap or (self._at_s is not None and at_s - self._at_s > self._longest_gap_s)
        joules = None if has_gap else self._window_j
        self._window_j, self._has_gap = None, False
        return joules
