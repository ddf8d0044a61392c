"""How long what failed is left alone: a model that falls asleep and wakes all day must not burn the device all day.

A build that failed for want of memory, say, may succeed later; but each load would spend minutes on it again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import NamedTuple

_FIRST_S = 600.0
_LONGEST_S = 86_400.0


class _Pause(NamedTuple):
    failures: int
    until: float
    reason: str


class Pauses:
    """Pauses by name, each twice as long as the one before: ten minutes to a day. Safe from any thread.

    Args:
        monotonic: The clock, in seconds.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._pauses: dict[str, _Pause] = {}
        self._lock = threading.Lock()

    def failed(self, name: str, reason: str) -> None:
        """It has failed: it is left alone for a while."""
        with self._lock:
            known = self._pauses.get(name)
            failures = known.failures + 1 if known is not None else 1
            length_s = min(_FIRST_S * 2.0 ** min(failures - 1, 10), _LONGEST_S)
            self._pauses[name] = _Pause(failures, self._monotonic() + length_s, reason)

    def went_well(self, name: str) -> None:
        """What failed before does not count any more."""
        with self._lock:
            self._pauses.pop(name, None)

    def why_not(self, name: str) -> str:
        """Why it is left alone now; empty where it is not."""
        with self._lock:
            known = self._pauses.get(name)
        left_s = known.until - self._monotonic() if known is not None else 0.0
        if known is None or left_s <= 0:
            return ""
        return f"{known.reason}; it is tried again where the model is loaded after {-(-left_s // 60):.0f} more minutes"
