"""A limit on what downloads take of the network (token bucket)."""

from __future__ import annotations

import time
from collections.abc import Callable

# What may come at once after a pause, in seconds of the limit.
_BURST_S = 2.0
_LOOK_EVERY_S = 0.25
_LEAST_SLEEP_S = 0.001


class Bandwidth:
    """Holds whoever receives bytes so that on average no more come than the limit.

    Args:
        kib_per_s: The limit; 0 sets none.
        monotonic, sleep: Time, in seconds.
    """

    def __init__(
        self,
        kib_per_s: float,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._bytes_per_s = kib_per_s * 1024
        self._monotonic, self._sleep = monotonic, sleep
        self._room = self._bytes_per_s * _BURST_S
        self._at = monotonic()

    def take(self, count: int, while_waiting: Callable[[], None]) -> None:
        """Account for ``count`` bytes that have come, and wait until the next may.

        Args:
            while_waiting: Called again and again meanwhile; what it raises ends the wait.
        """
        if not self._bytes_per_s:
            return
        self._refill()
        self._room -= count
        while self._room < 0:
            self._sleep(min(_LOOK_EVERY_S, max(_LEAST_SLEEP_S, -self._room / self._bytes_per_s)))
            while_waiting()
            self._refill()

    def _refill(self) -> None:
        now = self._monotonic()
        self._room = min(self._room + (now - self._at) * self._bytes_per_s, self._bytes_per_s * _BURST_S)
        self._at = now
