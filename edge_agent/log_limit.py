"""Keeps a log from repeating itself: what goes wrong with every request must not fill a device's disk."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

# So often in a minute the same place may warn of the same thing.
_PER_MINUTE = 10
_MINUTE_S = 60.0
# Places and things that are told apart; those that began their minute first are forgotten first.
_KNOWN = 256


class RepeatLimit(logging.Filter):
    """Lets ten warnings or errors a minute pass from one line of the code about one thing.

    That is the message's first argument, the model's name as a rule, so that one that always fails hides no other. The
    first one in a later minute says how many did not pass, in the record's attribute ``repeats``, which is empty else.

    Args:
        clock: Gives seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._lock = threading.Lock()  # a handler asks its filters before it takes its own
        self._seen: dict[tuple[str, int, str], tuple[float, int]] = {}  # when the minute began, and how many since

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is to be logged."""
        record.repeats = ""
        if record.levelno < logging.WARNING:
            return True
        about = str(record.args[0])[:64] if isinstance(record.args, tuple) and record.args else ""
        key, now = (record.pathname, record.lineno, about), self._clock()
        with self._lock:
            began, count = self._seen.get(key, (now, 0))
            if now - began >= _MINUTE_S:
                del self._seen[key]
                hidden, began, count = count - _PER_MINUTE, now, 0
            else:
                hidden = 0
            self._seen[key] = began, count + 1
            if len(self._seen) > _KNOWN:
                del self._seen[next(iter(self._seen))]
        if hidden > 0:
            record.repeats = f" ({hidden} more like it were not logged)"
        return count < _PER_MINUTE
