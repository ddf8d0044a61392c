"""Each model on the fastest runtime of this machine: made ready in the background while ONNX Runtime serves.

::

    begins to serve on ONNX Runtime --> engine found, refitted or built --> tested on golden samples --> measured
        --> the fastest takes the place, no request noticing --> remembered: the next start loads it at once

What fails on the way leaves the model where it is; the reason is logged, told to the fleet, and in the index.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

import msgspec

from edge_agent.contract.errors import (
    AcceleratorUnavailable,
    BudgetExceeded,
    EngineBuildCancelled,
    EngineBuildFailed,
    GpuMemoryExhausted,
    ModelUnavailable,
    ShoalError,
    UnknownModel,
)
from edge_agent.contract.messages import Event, EventKind
from edge_agent.runtime.accelerator import Accelerator
from edge_agent.runtime.choice import CPU, Candidate, Choice, Measured, choose
from edge_agent.runtime.guard import RunGuard
from edge_agent.runtime.loaded import LoadedModel, OtherRuntime
from edge_agent.runtime.measure import measure as measure_models
from edge_agent.runtime.measure import patience_s
from edge_agent.runtime.package import Package
from edge_agent.runtime.pauses import Pauses
from edge_agent.runtime.runtimes import Remembered, RuntimesFile
from edge_agent.runtime.selftest import prove
from edge_agent.runtime.slots import Slots
from edge_agent.runtime.trial import Failed, Models, Occasion, Trials, Tried, arm, candidate_of, failure_of, told

# A call that hangs in a driver must not keep the agent from ending; a build is broken off in five seconds.
_CLOSE_TIMEOUT_S = 20.0
# All models of a start together wait so long for the look at the machine: a driver that hangs must not hold it up.
_SURVEY_S = 10.0
# For all runs of a measurement beside one that hangs, and beside what they take by themselves.
_MEASURE_S = 30.0

_log = logging.getLogger(__name__)


class _Model(NamedTuple):
    """One version of a model, whatever it runs on."""

    name: str
    version: str
    digest: str

    @classmethod
    def of(cls, package: Package) -> _Model:
        return cls(package.manifest.name, package.manifest.version, package.digest)

    def __str__(self) -> str:
        return f"model {self.name} {self.version}"


class Acceleration:
    """Finds each model's runtime in one background thread; safe from any thread.

    Args:
        slots: Where models serve.
        tell: Told of what a person should know; must not block.
        measure: Times the same package on several runtimes.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        runtimes: RuntimesFile,
        slots: Slots,
        *,
        tell: Callable[[Event], None],
        measure: Callable[[Sequence[LoadedModel]], list[Measured]] = measure_models,
    ) -> None:
        self._accelerator, self._runtimes, self._slots = accelerator, runtimes, slots
        self._tell, self._measure = tell, measure
        self._guard, self._pauses = RunGuard(), Pauses()
        self._models: Models | None = None
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="acceleration", daemon=True)
        self._lock = threading.Lock()
        self._busy_with: _Model | None = None
        self._cancelled = threading.Event()
        self._stopping = threading.Event()
        self._falling: list[threading.Thread] = []
        self._said: set[str] = set()

    def follow(self, models: Models) -> None:
        """Load models through ``models``."""
        self._models = models

    def consider(self, loaded: LoadedModel) -> None:
        """See to a model that has begun to serve; returns at once."""
        model = _Model.of(loaded.package)
        with self._lock:
            if loaded.manifest.pipeline or self._stopping.is_set():
                return
            if self._thread.ident is None:
                self._thread.start()
        loaded.when_closed(self._break_off_if_unwanted)
        self._tasks.put(lambda: self._accelerate(model))

    def remembered(self, package: Package) -> OtherRuntime | None:
        """The runtime that was found best for a package, to load it on at once; None where there is none to be had.

        Who gets one calls :meth:`proved`, :meth:`refused` or :meth:`interrupted` in the end.
        """
        known = self._runtimes.of(package.digest)
        if self._stopping.is_set() or known is None or not known.is_usable or known.untested:
            return None  # without a look at the machine, which takes seconds
        if not self._accelerator.is_surveyed(_SURVEY_S):
            _log.warning("%s begins on %s: what this machine has is still being looked for", _Model.of(package), CPU)
            return None
        try:
            if known.machine != self._accelerator.machine():
                return None
            other = self._trials().runtime(package, known.candidate, known.engine, reason=known.reason)
        except ShoalError as error:
            _log.warning("%s: what it ran on before cannot be used: %s", _Model.of(package), error)
            return None
        if other is not None:
            # Taken back after the load: what ends the process leaves it.
            self._runtimes.count_trouble(package.digest, +1)
        return other

    def proved(self, loaded: LoadedModel) -> None:
        """A model was loaded on what was remembered, and answers its golden samples."""
        self.interrupted(loaded.package)
        arm(loaded)
        _log.info("%s runs on %s, as before", _Model.of(loaded.package), candidate_of(loaded))

    def interrupted(self, package: Package) -> None:
        """A model was not loaded on what was remembered, for a reason that says nothing."""
        self._runtimes.count_trouble(package.digest, -1)

    def refused(self, package: Package, error: Exception) -> None:
        """A model could not be loaded on what was remembered: it is found out anew, once it serves."""
        self.interrupted(package)
        known = self._runtimes.of(package.digest)
        if known is None:
            return
        if not isinstance(error, (AcceleratorUnavailable, BudgetExceeded)):
            self._runtimes.drop(package.digest)
            if known.engine:
                self._accelerator.drop(known.engine, str(error))
        self._say(_Model.of(package), f"{known.candidate} could not be used: {error}", Candidate(CPU))

    def as_earlier(self, loaded: LoadedModel, earlier: LoadedModel | None) -> LoadedModel:
        """A new version on an engine from its first request on, where the one before it has one that can be refitted.

        Args:
            loaded: It, on ONNX Runtime; closed where an engine takes its place.
            earlier: What it is to replace.
        Returns:
            What shall serve: ``loaded``, where refitting fails or would not do.
        """
        package = loaded.package
        if earlier is None or loaded.runtime.name != CPU or not earlier.runtime.name.startswith("tensorrt"):
            return loaded
        candidate = candidate_of(earlier)
        if self._stopping.is_set() or loaded.manifest.pipeline or self._runtimes.of(package.digest) is not None:
            return loaded
        occasion = Occasion(package, lambda: loaded, lambda *_: None, self._stopping, may_build=False)
        try:
            prove(loaded, guard=self._guard)  # within the narrow tolerance of the processors
            tried = self._trials().on(candidate, occasion)
        except Exception as error:  # noqa: BLE001 - whatever it is, ONNX Runtime runs it, and an engine comes later
            _log.info("%s begins on %s: %s", _Model.of(package), CPU, error)
            return loaded
        reason = f"{candidate}, as version {earlier.version}, whose engine was refitted"
        tried.loaded.runtime = told(candidate, reason)
        self._remember(_Model.of(package), candidate, reason, tried)
        arm(tried.loaded)
        loaded.close()
        return tried.loaded

    def collect(self, packages: Collection[str]) -> None:
        """Forget all but these packages (by digest), and remove engines that none of them needs."""
        self._runtimes.collect(packages)
        self._tasks.put(lambda: self._accelerator.collect(self._runtimes.engines(), packages))

    def close(self) -> None:
        """Break off what is being made. Models go on serving until the slots are closed."""
        with self._lock:
            self._stopping.set()
            self._cancelled.set()
            waiting = [*([self._thread] if self._thread.ident is not None else []), *self._falling]
        self._guard.close()
        self._tasks.put(None)
        until = time.monotonic() + _CLOSE_TIMEOUT_S
        for thread in waiting:
            thread.join(max(0.0, until - time.monotonic()))
            if thread.is_alive():
                _log.error("the thread '%s' hangs in a driver's call: it is left alone", thread.name)

    def let_go(self) -> None:
        """Let go of the GPU, once the slots are closed."""
        self._accelerator.close()

    def _run(self) -> None:
        task: Callable[[], None] | None = self._accelerator.clean
        while task is not None:
            try:
                if not self._stopping.is_set():
                    task()
            except Exception:  # noqa: BLE001 - a disk that cannot be read, say: the other models must have their turn
                _log.exception("engines could not be tidied up")
            task = self._tasks.get()

    def _accelerate(self, model: _Model) -> None:
        with self._lock:
            if self._stopping.is_set():
                return
            self._busy_with, self._cancelled = model, threading.Event()
        try:
            self._find_best(model, self._cancelled)
        except (EngineBuildCancelled, ModelUnavailable) as error:
            _log.info("%s: looking for a faster runtime was broken off: %s", model, error)
        except Exception as error:  # noqa: BLE001 - a driver may raise what it likes: the others have their turn
            _log.exception("%s: looking for a faster runtime failed", model)
            self._show(model, reason=f"looking for a faster runtime failed: {error}")
        finally:
            with self._lock:
                self._busy_with = None
            self._show(model, building="")

    def _find_best(self, model: _Model, cancelled: threading.Event) -> None:
        current = self._serving(model)
        if current is None:
            return
        if failure := failure_of(current):  # on the tests of an update, say, when it did not serve yet
            self._fall_back(model, failure)
            return
        if current.runtime.name != CPU:
            return
        if why_not := self._why_not(model, current.package):
            self._show(model, reason=why_not)
            return
        occasion = Occasion(
            current.package,
            lambda: self._needed(model),
            lambda what, percent: self._show(model, building=what, percent=percent),
            cancelled,
        )
        tried: list[Tried] = []
        failed: list[Failed] = []
        try:
            for group in self._accelerator.candidates(current.package):
                found, not_these = self._trials().first_of(group, occasion)
                failed += not_these
                if found is not None:
                    tried.append(found)
            self._take_best(model, tried, failed)
        finally:
            for each in tried:
                if each.loaded.lease is None:  # else it has served, and is closed when its last request ends
                    each.loaded.close()

    def _why_not(self, model: _Model, package: Package) -> str:
        """Why a faster runtime is not looked for; empty where there may be one."""
        why_not = self._accelerator.why_not(package)
        if not why_not:
            known = self._runtimes.get(model.digest, self._accelerator.machine())
            if known is not None and not known.is_usable:
                return known.why_on_cpu
            return self._pauses.why_not(model.digest)
        if why_not not in self._said:
            self._said.add(why_not)
            _log.warning("models run on %s: %s", CPU, why_not)
        return why_not

    def _take_best(self, model: _Model, tried: Sequence[Tried], failed: Sequence[Failed]) -> None:
        """Measure, choose, swap, remember."""
        self._show(model, building="measuring it on each runtime")
        with self._slots.lease(model.name, model.version) as current:
            if current.digest != model.digest:
                raise ModelUnavailable("another package serves in its place")
            choice, chosen = self._chosen(current, tried, failed)
            candidate = choice.best.candidate
            if chosen is not None:
                chosen.loaded.runtime = told(candidate, choice.reason)
                arm(chosen.loaded)
                if not self._loader().exchange(current, chosen.loaded):
                    raise ModelUnavailable("another took its place meanwhile")
        if chosen is not None or all(each.is_final for each in failed):
            # An engine that is not used may be refitted one day.
            made = chosen or next((each for each in tried if each.engine), None)
            self._remember(model, candidate, choice.reason, made)
            self._pauses.went_well(model.digest)
        elif any(isinstance(each.error, EngineBuildFailed) for each in failed):
            self._pauses.failed(model.digest, choice.reason)
        if chosen is not None:
            self._say(model, choice.reason, candidate)
        else:
            self._show(model, reason=choice.reason)
            _log.info("%s stays on %s (%s)", model, candidate, choice.reason)

    def _chosen(
        self, current: LoadedModel, tried: Sequence[Tried], failed: Sequence[Failed]
    ) -> tuple[Choice, Tried | None]:
        """The best runtime, and what was loaded on it; None where that is what serves now."""
        models = [current, *(each.loaded for each in tried)]
        # An engine is not to be broken off because the processors take long.
        with self._guarded([each.loaded for each in tried], _MEASURE_S + patience_s(models)):
            measured = self._measure(models)
        use = self._accelerator.rules.use
        choice = choose(measured, [each.refused for each in failed], wanted="" if use == "auto" else use)
        number = measured.index(choice.best)
        return choice, tried[number - 1] if number else None

    @contextlib.contextmanager
    def _guarded(self, models: Sequence[LoadedModel], seconds: float) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for each in models:
                stack.enter_context(self._guard.within(each.backend, seconds + each.manifest.max_run_s))
            yield

    def _remember(self, model: _Model, candidate: Candidate, reason: str, made: Tried | None) -> None:
        machine = self._accelerator.machine()
        known = self._runtimes.get(model.digest, machine)
        found = Remembered(
            machine=machine,
            runtime=candidate.runtime,
            precision=candidate.precision,
            engine=made.engine if made is not None else "",
            deviation=made.deviation if made is not None else 0.0,
            reason=reason,
            # It was merely out of reach: what it did before it did all the same.
            troubles=known.troubles if known is not None and known.candidate == candidate else 0,
        )
        self._runtimes.put(model.digest, found)

    def _failed(self, package: Package, error: Exception) -> None:
        """An engine has failed on a request, which was answered all the same; in that request's thread."""
        thread = threading.Thread(
            target=self._fall_back, args=(_Model.of(package), error), name="fall-back", daemon=True
        )
        with self._lock:
            if not self._stopping.is_set():
                self._falling = [*(each for each in self._falling if each.is_alive()), thread]
                thread.start()

    def _fall_back(self, model: _Model, error: Exception) -> None:
        """Let the model serve on ONNX Runtime alone, so that what its engine holds of the GPU is free."""
        failing = self._serving(model)
        if failing is None or failure_of(failing) is None:
            return  # it was replaced meanwhile: what serves now has not failed
        with self._lock:
            what = candidate_of(failing)
            if what.runtime == CPU:
                return
            reason = f"{what} failed while it served: {error}; until it is loaded again it runs on {CPU}"
            failing.runtime = told(Candidate(CPU), reason)
        if not isinstance(error, GpuMemoryExhausted):  # which another program may have caused
            self._runtimes.count_trouble(model.digest, +1)
        self._say(model, reason, Candidate(CPU))
        try:
            loaded = self._loader().load_on(failing.package, None, beside=failing)
        except Exception as unloaded:  # noqa: BLE001 - what took over in its place serves on
            _log.warning("%s: the failed engine keeps its memory: %s", model, unloaded)
            return
        loaded.runtime = failing.runtime
        if not self._loader().exchange(failing, loaded):
            loaded.close()

    def _break_off_if_unwanted(self) -> None:
        """A model was closed: where it was the one whose engine is made, nobody needs it, unless it is just asleep."""
        with self._lock:
            model, cancelled = self._busy_with, self._cancelled
        if model is None:
            return
        try:
            wanted = self._slots.get(model.name, model.version).digest == model.digest
        except UnknownModel:
            wanted = False
        except ModelUnavailable as error:
            wanted = error.asleep
        if not wanted:
            cancelled.set()

    def _serving(self, model: _Model) -> LoadedModel | None:
        try:
            loaded = self._slots.get(model.name, model.version)
        except (UnknownModel, ModelUnavailable):
            return None
        return loaded if loaded.digest == model.digest else None

    def _needed(self, model: _Model) -> LoadedModel:
        loaded = self._serving(model)
        if loaded is None:
            raise ModelUnavailable("it does not serve any more")
        return loaded

    def _show(
        self, model: _Model, *, building: str | None = None, percent: float | None = None, reason: str | None = None
    ) -> None:
        """Let the index and the fleet know how far it is, or why it is where it is."""
        loaded = self._serving(model)
        if loaded is None:
            return
        runtime = loaded.runtime
        if building is not None:
            runtime = msgspec.structs.replace(runtime, building=building, building_percent=percent)
        if reason is not None:
            runtime = msgspec.structs.replace(runtime, reason=reason)
        loaded.runtime = runtime

    def _say(self, model: _Model, reason: str, candidate: Candidate) -> None:
        """In the log and to the fleet: the model runs on something else from now on."""
        level = logging.WARNING if candidate.runtime == CPU else logging.INFO
        _log.log(level, "%s runs on %s (%s)", model, candidate, reason)
        self._tell(
            Event(
                kind=EventKind.RUNTIME_CHANGED,
                at_ms=time.time_ns() // 1_000_000,
                model=model.name,
                package=model.digest,
                reason=reason,
                detail={"version": model.version, "runtime": candidate.runtime, "precision": candidate.precision},
            )
        )

    def _loader(self) -> Models:
        if self._models is None:
            raise ModelUnavailable("nobody loads models here")
        return self._models

    def _trials(self) -> Trials:
        return Trials(self._accelerator, self._runtimes, self._loader(), guard=self._guard, on_failure=self._failed)
