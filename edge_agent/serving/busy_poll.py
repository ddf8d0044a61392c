"""Waits awake for the next request where it is likely to come at once: waking a sleeping thread costs 30-60 us.

An application that asks again as soon as it is answered finds the event loop asleep each time, and pays for waking it.
As a hypervisor does for its guests (KVM's halt polling), the loop stays awake for a moment after an answer, but only
while requests do follow each other so closely, however long the answers take. At any slower pace it never begins, so
that a camera with 20 frames a second costs nothing; and each time nobody came, more requests have to follow closely
before it tries again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from time import perf_counter_ns

from edge_agent.runtime.cpus import available

# Close requests in a row before the loop waits awake for the first time, and after it waited in vain again and again.
_FIRST, _MOST = 4, 1024
# As KVM's halt_poll_ns on x86. Within 100 us an application that had to be woken itself and sent 600 KB was not back.
_USUAL_US = 200.0
# So many times the limit it waits awake from part to part of a request at most.
_LONGEST = 10


class BusyPoll:
    """Keeps one event loop awake; used by that loop's thread alone.

    Staying awake means a callback that asks to be called again: the loop then looks for events without blocking, and so
    sees timers, signals and other threads' calls as soon as ever, whichever loop it is.

    Args:
        limit_us: How long to wait awake after an answer; 0 for never; None for 200, but never on a single processor,
            which it would only keep from the application.
        running: Runs of models that are going on: while there are any, their threads need the processor.
        cpus: Processors that this process may use, found out where None.
    Attributes:
        awake: Whether it keeps the loop awake now.
        missed: How often nobody came.
    """

    __slots__ = (
        "_close",
        "_heard_ns",
        "_hits",
        "_last_ns",
        "_limit_ns",
        "_loop",
        "_patience",
        "_running",
        "_until_ns",
        "awake",
        "missed",
    )

    def __init__(
        self, limit_us: float | None = 0.0, running: Collection[object] = (), *, cpus: int | None = None
    ) -> None:
        if limit_us is None:
            limit_us = _USUAL_US if (cpus or available()) > 1 else 0.0
        self._limit_ns = int(limit_us * 1000)
        self._running = running
        self._loop: asyncio.AbstractEventLoop | None = None
        self._heard_ns = self._last_ns = self._until_ns = 0
        self._close, self._hits, self._patience = 0, 0, _FIRST
        self.awake, self.missed = False, 0

    def heard(self) -> None:
        """A request has come, or part of one: what it takes from now on is no pause."""
        limit_ns = self._limit_ns
        if not limit_ns:
            return
        now_ns = perf_counter_ns()
        if not self._heard_ns or now_ns > self._until_ns:  # else the next part of the one heard of before
            self._heard_ns = now_ns
        self._until_ns = min(now_ns, self._heard_ns + _LONGEST * limit_ns) + limit_ns

    def answered(self) -> None:
        """A request has just been answered by this loop."""
        limit_ns = self._limit_ns
        if not limit_ns:
            return
        now_ns = perf_counter_ns()
        came_ns, self._heard_ns = self._heard_ns or now_ns, 0
        if self.awake:
            self._until_ns = now_ns + limit_ns
            self._hits += 1
            return
        # Twice the limit leaves room for waking up, and where nobody said when it came for the answering itself.
        if came_ns - self._last_ns > 2 * limit_ns:
            self._close = 0
        else:
            self._close += 1
            if self._close >= self._patience and not self._running:
                self._begin(now_ns)
        self._last_ns = now_ns

    def _begin(self, now_ns: int) -> None:
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        self.awake, self._until_ns, self._hits = True, now_ns + self._limit_ns, 0
        self._loop.call_soon(self._wait)

    def _wait(self) -> None:
        now_ns = perf_counter_ns()
        if self._running:  # who was waited for has come, and needs the processor now
            self.awake = False
            return
        if now_ns < self._until_ns and self._loop is not None:
            self._loop.call_soon(self._wait)
            return
        self.awake, self._close = False, 0
        self.missed += 1
        # What it has saved before outweighs this one time, or it does not.
        self._patience = _FIRST if self._hits >= self._patience else min(2 * self._patience, _MOST)
