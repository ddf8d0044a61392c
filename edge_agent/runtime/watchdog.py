"""Breaks off inferences that hang, on whichever thread they run."""

from __future__ import annotations

import logging
import threading
import time

from edge_agent.runtime.slots import LoadedModel

log = logging.getLogger(__name__)

# A run in progress: when it began (``time.perf_counter_ns``), and of which model.
Run = tuple[int, LoadedModel]

# On an event loop's own thread a run holds up every other request: it may take no longer, whatever its manifest says.
LOOP_LIMIT_S = 1.0
_IDLE_TICKS = 5
_AGAIN_NS = 5_000_000_000


class Watchdog:
    """Looks once a second at what runs; a thread of its own, asleep while nothing does.

    The serving path writes its run into :attr:`running` under its thread's identifier, calls :meth:`wake` if
    :attr:`asleep`, and takes the run out again when it is over: 0.15 us, as a method call for it would cost as much
    again. A thread runs one inference at a time.

    Args:
        tick_s: Seconds between two looks; a hung run is broken off so much late at most.
    Attributes:
        loop_thread: Identifier of the thread that an event loop runs in, whose runs must be short; 0 for none.
    """

    def __init__(self, *, tick_s: float = 1.0) -> None:
        self.running: dict[int, Run] = {}
        self.asleep = True
        self.loop_thread = 0
        self._tick_s = tick_s
        self._hung: dict[Run, int] = {}  # and when it was broken off last
        self._awake = threading.Event()
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def wake(self) -> None:
        """Begin to look; from any thread."""
        with self._lock:
            if self._thread is None and not self._closing.is_set():
                # Not in the constructor: a process that only reads packages needs no thread.
                self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
                self._thread.start()
            self.asleep = False
            self._awake.set()

    def has_hung(self, run: Run) -> bool:
        """Whether this run was broken off for its length; asked once, when it has failed."""
        return self._hung.pop(run, None) is not None

    def close(self) -> None:
        """End the thread."""
        self._closing.set()
        self._awake.set()
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join()

    def _watch(self) -> None:
        idle = 0
        while not self._closing.wait(self._tick_s):
            idle = 0 if self.running else idle + 1
            if idle >= _IDLE_TICKS:
                self._awake.clear()
                self.asleep = True
                # A run that was written down before it could see `asleep` is seen here instead; so is a close.
                if not self.running and not self._closing.is_set():
                    self._awake.wait()
                self.asleep = False
                idle = 0
            self._break_off(time.perf_counter_ns())

    def _break_off(self, now_ns: int) -> None:
        running = list(self.running.items())
        for thread, run in running:
            began_ns, loaded = run
            limit_s = loaded.manifest.max_run_s
            if thread == self.loop_thread:
                limit_s = min(limit_s, LOOP_LIMIT_S)
            if now_ns - began_ns < limit_s * 1e9:
                continue
            # Again after a while: a pipeline may have been between two steps.
            if now_ns - self._hung.get(run, 0) < _AGAIN_NS:
                continue
            log.error(
                "model %s %s: a run hangs after %.1f s and is broken off",
                loaded.name,
                loaded.version,
                (now_ns - began_ns) / 1e9,
            )
            self._hung[run] = now_ns
            loaded.backend.cancel()
        for run in set(self._hung).difference(run for _, run in running):
            self._hung.pop(run, None)  # it ended well at the last moment, and never asks
