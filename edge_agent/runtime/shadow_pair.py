"""A candidate beside a champion: both answer the same rows in turn, and their answers and times are compared."""

from __future__ import annotations

import collections
import contextlib
import logging
import statistics
import threading
from collections.abc import Sequence
from time import perf_counter_ns
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.errors import Busy, CallerError, ModelUnavailable, UnknownModel
from edge_agent.contract.manifest import Shadow
from edge_agent.runtime.backend import RunCancelled
from edge_agent.runtime.loaded import LoadedModel
from edge_agent.runtime.pipeline import PipelineBackend
from edge_agent.runtime.shadow_report import ShadowReport
from edge_agent.runtime.shadow_rows import RowQueue, Tensors
from edge_agent.runtime.slots import Slots
from edge_agent.runtime.watchdog import Run, Watchdog

log = logging.getLogger(__name__)

# Times of the last so many runs are kept for the medians.
_TIMES = 512
# The watchdog breaks off what hangs; what does not end even then hangs in a driver.
_GRACE_NS = 10 * 10**9
# Quick runs are made twice, and the shorter counts: rows come here seldom, and the first run finds the caches cold, in
# which live requests keep the champion warm.
_QUICK_NS = 2_000_000
_LONGEST_REASON = 400


class _CandidateFailed(Exception):
    """It failed on a request that the champion answered."""


class _Ended(Exception):
    """Nobody needs the comparison any more."""


class Pair:
    """One shadow. Rows are offered from any thread, tried by one; the report may be asked for from any other.

    Args:
        slots: Where the champion serves: it is leased for each run, and never kept from being replaced.
        rule: Its ``max_latency_ratio`` is what a single run is held against.
    """

    def __init__(self, slots: Slots, champion: LoadedModel, candidate: LoadedModel, rule: Shadow) -> None:
        self._slots, self.candidate, self._rule = slots, candidate, rule
        self.name, self.digest = champion.name, champion.digest
        self._version, self._champion_bytes = champion.version, champion.memory_bytes
        self._outputs = champion.manifest.task.output, candidate.manifest.task.output
        self._classes = _places(champion.manifest.task.labels, candidate.manifest.task.labels)
        self.queue = RowQueue()
        self.ended = threading.Event()
        self._running: Run | None = None
        self._turn = 0
        self._lock = threading.Lock()  # of what follows; never taken where a request is answered
        self._rows = self._agreed = self._failed = self._refused = self._skipped = 0
        self._timed = self._slower = 0
        self._why = ""
        self._difference = self._largest = 0.0
        self._times: collections.deque[tuple[int, int]] = collections.deque(maxlen=_TIMES)

    def report(self) -> ShadowReport:
        """What was found so far."""
        running = self._running
        with self._lock:
            stuck_s = self._stuck_s(running)
            failed = self._failed + (stuck_s > 0)
            why = self._why or (f"it hangs for {stuck_s:.0f} s, and cannot be broken off" if stuck_s else "")
            medians = [statistics.median(times) / 1000 for times in zip(*self._times, strict=True)] or [0.0, 0.0]
            return ShadowReport(
                champion=self._version,
                candidate=self.candidate.version,
                rows=self._rows,
                agreed=self._agreed,
                failed=failed,
                refused=self._refused,
                why=why,
                skipped=self._skipped,
                dropped=self.queue.dropped,
                timed=self._timed,
                slower=self._slower,
                champion_us=medians[0],
                candidate_us=medians[1],
                mean_difference=self._difference / self._rows if self._rows else 0.0,
                largest_difference=self._largest,
                champion_bytes=self._champion_bytes,
                candidate_bytes=self.candidate.memory_bytes,
            )

    def end(self) -> None:
        """Try no more rows; a run of the candidate under way is broken off."""
        self.ended.set()
        if self._running is not None:
            self.candidate.backend.cancel()

    def compare(self, inputs: Tensors, watchdog: Watchdog) -> None:
        """Run both on some rows, and take note of what comes out."""
        try:
            self._compare(inputs, watchdog)
        except _Ended:
            return
        except (UnknownModel, ModelUnavailable, Busy) as error:  # one of them, or a pipeline's step, is not loaded now
            log.debug("model %s: rows for the shadow are skipped: %s", self.name, error)
            self._skip()
        except _CandidateFailed as error:
            self.broke(error)
        except CallerError as error:
            with self._lock:
                self._refused += 1
                self._why = self._why or _short(error)

    def broke(self, error: Exception) -> None:
        """Take note of a comparison that ended in an error which nobody has foreseen: an answer that is none."""
        with self._lock:
            self._failed += 1
            self._why = self._why or _short(error)

    def _compare(self, inputs: Tensors, watchdog: Watchdog) -> None:
        with self._slots.lease(self.name) as champion:
            if champion.digest != self.digest:
                self._skip()
                return
            try:
                ours = champion.check(inputs).inputs
            except CallerError:
                self._skip()
                return
            theirs = self.candidate.check(inputs).inputs
            self._turn ^= 1
            times_ns = [0, 0]
            answers: list[Tensors] = [{}, {}]
            for again in range(2):
                for which in (self._turn, 1 - self._turn):
                    loaded, given = ((champion, ours), (self.candidate, theirs))[which]
                    try:
                        answers[which], ns = self._timed_run(loaded, given, watchdog)
                    except (_Ended, ModelUnavailable):
                        raise
                    except Exception as error:
                        if loaded is self.candidate:
                            raise
                        log.debug("model %s: a request that was answered fails now: %s", self.name, error)
                        self._skip()
                        return
                    times_ns[which] = min(times_ns[which], ns) if again else ns
                if max(times_ns) > _QUICK_NS:
                    break
        self._note(answers[0][self._outputs[0]], answers[1].get(self._outputs[1]), (times_ns[0], times_ns[1]))

    def _timed_run(self, loaded: LoadedModel, inputs: Tensors, watchdog: Watchdog) -> tuple[Tensors, int]:
        """One run under the watchdog's eyes, and the nanoseconds that it took."""
        is_candidate = loaded is self.candidate
        thread = threading.get_ident()
        run = (perf_counter_ns(), loaded)
        watchdog.running[thread] = run
        if watchdog.asleep:
            watchdog.wake()
        if is_candidate:
            # First noted down, then looked: an end at this moment finds the run, or is seen here.
            self._running = run
        try:
            self._go_on()
            with _uncounted(loaded):
                began_ns = perf_counter_ns()
                outputs = loaded.backend.infer(inputs)
                return outputs, perf_counter_ns() - began_ns
        except (ModelUnavailable, Busy, CallerError, _Ended):
            raise
        except RunCancelled as error:
            if not is_candidate or self.ended.is_set() or not watchdog.has_hung(run):
                raise _Ended from error
            limit_s = loaded.manifest.max_run_s
            raise _CandidateFailed(f"it hung: broken off, its limit is {limit_s:g} s") from error
        except Exception as error:
            # A runtime may raise anything.
            raise _CandidateFailed(str(error) or type(error).__name__) from error
        finally:
            del watchdog.running[thread]
            if is_candidate:
                self._running = None

    def _note(self, ours: NDArray[Any], theirs: NDArray[Any] | None, times_ns: tuple[int, int]) -> None:
        if theirs is None or theirs.ndim != ours.ndim or len(theirs) != len(ours):
            found = "none" if theirs is None else f"shape {list(theirs.shape)}"
            raise _CandidateFailed(f"output '{self._outputs[1]}': {found} for {len(ours)} rows")
        a, b = (array.reshape(len(array), -1).astype(np.float64) for array in (ours, theirs))
        finite = np.isfinite(a).all(axis=1)
        if not np.isfinite(b[finite]).all():
            raise _CandidateFailed(f"output '{self._outputs[1]}': a probability that is not finite")
        a, b = a[finite], b[finite]
        agreed, differences = _compared(a, b, self._classes)
        limit = self._rule.max_latency_ratio
        with self._lock:
            self._rows += len(a)
            self._agreed += agreed
            self._difference += float(differences.sum())
            self._largest = max(self._largest, float(differences.max(initial=0.0)))
            self._times.append(times_ns)
            self._timed += 1
            self._slower += limit is not None and times_ns[1] > limit * times_ns[0]

    def _go_on(self) -> None:
        if self.ended.is_set():
            raise _Ended

    def _skip(self) -> None:
        with self._lock:
            self._skipped += 1

    def _stuck_s(self, running: Run | None) -> float:
        """Seconds that a run of the candidate hangs in spite of everything; 0 where none does."""
        ns = perf_counter_ns() - running[0] if running is not None else 0
        return ns / 1e9 if ns > self.candidate.manifest.max_run_s * 1e9 + _GRACE_NS else 0.0


def _uncounted(loaded: LoadedModel) -> contextlib.AbstractContextManager[None]:
    """For the length of a run: the steps of a pipeline count what live requests do, and nothing else."""
    backend = loaded.backend
    return backend.uncounted() if isinstance(backend, PipelineBackend) else contextlib.nullcontext()


def _places(ours: Sequence[str], theirs: Sequence[str]) -> NDArray[np.intp] | None:
    """For each class of the candidate its place among the champion's, -1 for a new one; None where they are alike."""
    if tuple(ours) == tuple(theirs):
        return None
    places = {label: place for place, label in enumerate(ours)}
    return np.array([places.get(label, -1) for label in theirs], dtype=np.intp)


def _compared(
    ours: NDArray[np.float64], theirs: NDArray[np.float64], places: NDArray[np.intp] | None
) -> tuple[int, NDArray[np.float64]]:
    """Rows on which both name the same class, and by row the largest difference of a probability.

    Args:
        ours, theirs: float64[N, classes], each with classes of its own.
        places: See :func:`_places`.
    """
    if not len(ours):
        return 0, np.zeros(0)
    width = min(ours.shape[1], theirs.shape[1])
    columns = np.arange(theirs.shape[1]) if places is None else places[: theirs.shape[1]]
    best = theirs[:, : len(columns)].argmax(axis=1)
    agreed = int((columns[best] == ours.argmax(axis=1)).sum())
    if places is None:
        return agreed, np.abs(ours[:, :width] - theirs[:, :width]).max(axis=1)
    both = (columns >= 0) & (columns < ours.shape[1])
    differences = np.abs(ours[:, columns[both]] - theirs[:, : len(columns)][:, both])
    return agreed, differences.max(axis=1, initial=0.0)


def _short(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]}..."
