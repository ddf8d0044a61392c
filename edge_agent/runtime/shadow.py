"""Candidates answer live traffic beside the models that serve, where nobody waits for it and nobody gets the answers.

::

    request --> model that serves --> answer --> observer
                                                    |  copies of some rows, never waiting
                                                    v
                                  bounded queue --> one niced thread: champion and candidate in turn --> report

The thread begins with the first shadow and ends with the last; it works for a share of one processor's time. Rows that
find no room are dropped and counted. A candidate that hangs is broken off by a watchdog, one that raises is counted.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

from numpy.typing import NDArray

from edge_agent.contract.errors import CallerError
from edge_agent.contract.manifest import Shadow
from edge_agent.runtime.loaded import LoadedModel
from edge_agent.runtime.shadow_pair import Pair
from edge_agent.runtime.shadow_report import ShadowReport
from edge_agent.runtime.slots import Slots
from edge_agent.runtime.watchdog import Watchdog

log = logging.getLogger(__name__)

Tensors = Mapping[str, NDArray[Any]]

# Of one processor's time; the rest it sleeps. A session with several threads takes as many times as much.
_SHARE = 0.25
# What a request does not do is to wake the thread, as that takes a lock: it looks for itself.
_LOOK_S = 0.05
# Not more: between runs it holds the interpreter's lock for tens of microseconds, and whoever waits for the lock waits
# for this thread to get its turn.
_NICE = 5
_END_S, _AGAIN_S = 10.0, 0.2


class Observe(Protocol):
    """See :class:`edge_agent.serving.inference.Observer`."""

    def __call__(
        self, loaded: LoadedModel, request_id: str, inputs: Tensors, outputs: Tensors, *, latency_us: float, group: str
    ) -> bool:
        """A request was answered; whether the application is asked for a label."""


class ObserveTogether(Protocol):
    """See :class:`edge_agent.serving.together.ManyObserver`."""

    def __call__(
        self,
        loaded: LoadedModel,
        request_ids: Sequence[str],
        inputs: Tensors,
        outputs: Tensors,
        *,
        buckets: Mapping[int, int],
    ) -> Collection[int]:
        """Requests of one row each were answered; the indices of those asked for a label."""


class Watching(Protocol):
    """Who is told of every request, and takes labels; :class:`edge_agent.monitor.monitor.Monitor`."""

    @property
    def observe(self) -> Observe:
        """Told of a request."""

    @property
    def observe_together(self) -> ObserveTogether:
        """Told of requests that were run together."""

    def refused(self, loaded: LoadedModel, error: CallerError) -> None:
        """A request was refused because it was wrong."""

    def failed(self, loaded: LoadedModel) -> None:
        """A request failed though it was right."""

    def feedback(
        self, loaded: LoadedModel, request_id: str, label: str | int, source: str, *, row: int | None = None
    ) -> bool:
        """A label came for an earlier request; whether its row was sampled."""


class Shadows:
    """An observer before another one; every method may be called from any thread.

    Args:
        watcher: Told of everything. While nothing is shadowed, ``observe`` and ``observe_together`` *are* its methods:
            whoever looks them up for each call pays nothing for what may stand between.
        slots: Where champions serve.
        share: Of one processor's time that all shadows together take.
        watchdog: Makes what breaks off runs that hang; lives as long as the thread.
    """

    observe: Observe
    observe_together: ObserveTogether

    def __init__(
        self,
        watcher: Watching,
        slots: Slots,
        *,
        share: float = _SHARE,
        watchdog: Callable[[], Watchdog] = Watchdog,
    ) -> None:
        self._watcher, self._slots, self._share, self._new_watchdog = watcher, slots, share, watchdog
        self.refused, self.failed, self.feedback = watcher.refused, watcher.failed, watcher.feedback
        self._pairs: dict[str, Pair] = {}  # replaced whole: requests look into it without a lock
        self._changed = threading.Condition()
        self._busy: Pair | None = None
        self._thread: threading.Thread | None = None
        self._look_up()

    def begin(self, champion: LoadedModel, candidate: LoadedModel, rule: Shadow) -> None:
        """Let ``candidate`` shadow what serves in ``champion``'s package, from now on.

        Again with the same package and candidate, as after the champion was loaded once more, it goes on. Instead of
        another candidate of that name.
        """
        with self._changed:
            known = self._pairs.get(champion.name)
            if known is not None and known.candidate is candidate and known.digest == champion.digest:
                return
        if known is not None:
            self.end(champion.name)
        with self._changed:
            self._pairs = {**self._pairs, champion.name: Pair(self._slots, champion, candidate, rule)}
            self._look_up()
            if self._thread is None:
                self._start_thread()

    def report(self, model: str) -> ShadowReport | None:
        """What was found so far; None where nothing is shadowed under that name."""
        pair = self._pairs.get(model)
        return None if pair is None else pair.report()

    def end(self, model: str) -> None:
        """Stop; when this returns the candidate is used no more, and may serve or be closed.

        A run that cannot be broken off is left alone after ten seconds, with its thread.
        """
        with self._changed:
            pair = self._pairs.get(model)
            if pair is None:
                return
            self._pairs = {name: other for name, other in self._pairs.items() if name != model}
            self._look_up()
        until = time.monotonic() + _END_S
        with self._changed:
            while self._busy is pair and time.monotonic() < until:
                pair.end()
                self._changed.wait(_AGAIN_S)
            pair.end()
            thread, is_stuck = self._thread, self._busy is pair
            if is_stuck:
                log.error("model %s: a run of candidate %s cannot be broken off", model, pair.candidate.version)
                self._busy = None
            if is_stuck or not self._pairs:
                self._thread = None  # which it takes as its end
                self._changed.notify_all()
            if is_stuck and self._pairs:
                self._start_thread()
        if thread is not None and not is_stuck and self._thread is not thread:
            thread.join(_END_S)

    def close(self) -> None:
        """End all."""
        for model in list(self._pairs):
            self.end(model)

    def _start_thread(self) -> None:
        self._thread = threading.Thread(target=self._work, name="shadow", daemon=True)
        try:
            self._thread.start()
        except BaseException:  # the machine has no room for it: the next shadow tries again
            self._thread = None
            raise

    def _look_up(self) -> None:
        """Stand between only while there is something to do."""
        self.observe = self._observe if self._pairs else self._watcher.observe
        self.observe_together = self._observe_together if self._pairs else self._watcher.observe_together

    def _observe(
        self, loaded: LoadedModel, request_id: str, inputs: Tensors, outputs: Tensors, *, latency_us: float, group: str
    ) -> bool:
        pair = self._pairs.get(loaded.name)
        if pair is not None and pair.digest == loaded.digest:
            pair.queue.offer(inputs)
        return self._watcher.observe(loaded, request_id, inputs, outputs, latency_us=latency_us, group=group)

    def _observe_together(
        self,
        loaded: LoadedModel,
        request_ids: Sequence[str],
        inputs: Tensors,
        outputs: Tensors,
        *,
        buckets: Mapping[int, int],
    ) -> Collection[int]:
        pair = self._pairs.get(loaded.name)
        if pair is not None and pair.digest == loaded.digest:
            pair.queue.offer(inputs)
        return self._watcher.observe_together(loaded, request_ids, inputs, outputs, buckets=buckets)

    def _work(self) -> None:
        _step_back()
        me = threading.current_thread()
        watchdog = self._new_watchdog()
        try:
            while self._thread is me:
                began_s = time.monotonic()
                worked = [pair for pair in self._pairs.values() if self._try(pair, watchdog, me)]
                busy_s = time.monotonic() - began_s
                wait_s = busy_s * (1.0 / self._share - 1.0) if worked else _LOOK_S
                with self._changed:
                    self._changed.wait_for(lambda: self._thread is not me, wait_s)
        finally:
            watchdog.close()

    def _try(self, pair: Pair, watchdog: Watchdog, me: threading.Thread) -> bool:
        """Try the rows of one shadow that have waited longest; whether there were any."""
        inputs = pair.queue.take()
        if inputs is None:
            return False
        with self._changed:
            if self._thread is not me or self._pairs.get(pair.name) is not pair:
                return False
            self._busy = pair
        try:
            pair.compare(inputs, watchdog)
        except Exception as error:
            # Whatever it is, it must end neither the thread nor what else it looks after.
            log.exception("model %s: rows could not be tried on candidate %s", pair.name, pair.candidate.version)
            pair.broke(error)
        finally:
            with self._changed:
                if self._busy is pair:
                    self._busy = None
                self._changed.notify_all()
        return True


def _step_back() -> None:
    """Let others have the processor first; on Linux a niceness is a thread's own."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # a sandbox that does not let it: it works for a share of the time anyway
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
