"""How long to wait before the next attempt: longer each time, and never in step with the rest of the fleet."""

from __future__ import annotations

import random


class Backoff:
    """Exponential backoff with full jitter (Brooker, "Exponential Backoff and Jitter", 2015).

    Args:
        base_s: Upper bound of the first delay; each further one doubles it.
        cap_s: Upper bound of them all.
    """

    def __init__(self, base_s: float, cap_s: float, source: random.Random | None = None) -> None:
        self._base_s, self._cap_s = base_s, cap_s
        self._random = source or random.Random()
        self._attempts = 0

    def next_s(self) -> float:
        """The delay before the next attempt, in seconds: never less than a tenth of its bound."""
        bound_s = min(self._cap_s, self._base_s * 2.0 ** min(self._attempts, 32))
        self._attempts += 1
        return self._random.uniform(bound_s / 10, bound_s)

    def reset(self) -> None:
        """Begin again: the last attempt succeeded."""
        self._attempts = 0
