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
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple, Protocol

import msgspec

from edge_agent.contract.errors import (
    AcceleratorUnavailable,
    BudgetExceeded,
    EngineBuildCancelled,
    EngineBuildFailed,
    GpuMemoryExhausted,
    ModelUnavailable,
    SelfTestFailed,
    ShoalError,
    UnknownModel,
)
from edge_agent.contract.messages import Event, EventKind, ReportedRuntime
from edge_agent.runtime.accelerator import Accelerator, Engine
from edge_agent.runtime.backend import InferenceBackend
from edge_agent.runtime.choice import CPU, CUDA, Candidate, Measured, Refused, choose
from edge_agent.runtime.fallback import FallbackBackend
from edge_agent.runtime.loaded import LoadedModel, OtherRuntime
from edge_agent.runtime.measure import measure as measure_models
from edge_agent.runtime.package import Package
from edge_agent.runtime.runtimes import Remembered, RuntimesFile
from edge_agent.runtime.selftest import deviation
from edge_agent.runtime.slots import Slots
from edge_agent.runtime.tensorrt.job import Progress

# A refitted engine may be so much further off than the one that it was made of, and by that share of the tolerance in
# any case.
_REFITTED_FACTOR = 3.0
_REFITTED_LIMIT = 0.05

_log = logging.getLogger(__name__)


class Models(Protocol):
    """Who loads models; :class:`edge_agent.runtime.repository.Repository`."""

    def load_on(self, package: Package, runtime: OtherRuntime | None, *, beside: LoadedModel) -> LoadedModel:
        """The package on another runtime (None: ONNX Runtime on the CPU), tested and within the budgets."""

    def open_on_cpu(self, package: Package) -> InferenceBackend:
        """The package on ONNX Runtime, on the CPU."""


class _Model(NamedTuple):
    """One version of a model, whatever it runs on."""

    name: str
    version: str
    digest: str


class _Tried(NamedTuple):
    """A model loaded on another runtime, and the engine that it has there."""

    loaded: LoadedModel
    engine: str = ""
    deviation: float = 0.0


class _Failed(NamedTuple):
    """What a model cannot run on, and the error that said so."""

    refused: Refused
    error: Exception

    @property
    def is_final(self) -> bool:
        """Whether the next start need not try again."""
        error = self.error
        return isinstance(error, SelfTestFailed) or (isinstance(error, EngineBuildFailed) and error.is_final)


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
        self._models: Models | None = None
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="acceleration", daemon=True)
        self._lock = threading.Lock()
        self._busy_with: _Model | None = None
        self._cancelled = threading.Event()
        self._closing = False
        self._falling: list[threading.Thread] = []
        self._said: set[str] = set()

    def follow(self, models: Models) -> None:
        """Load models through ``models``."""
        self._models = models

    def consider(self, loaded: LoadedModel) -> None:
        """See to a model that has begun to serve; returns at once."""
        model = _Model(loaded.name, loaded.version, loaded.digest)
        with self._lock:
            if loaded.manifest.pipeline or self._closing:
                return
            if self._thread.ident is None:
                self._thread.start()
        loaded.when_closed(self._break_off_if_gone)
        self._tasks.put(lambda: self._accelerate(model))

    def remembered(self, package: Package) -> OtherRuntime | None:
        """The runtime that was found best for a package, to load it on at once; None where there is none to be had.

        Who gets one calls :meth:`proved` or :meth:`refused` in the end.
        """
        known = self._runtimes.of(package.digest)
        if self._closing or known is None or not known.is_usable:
            return None  # without a look at the machine, which takes seconds
        try:
            if known.machine != self._accelerator.machine():
                return None
            other = self._other(package, known.candidate, known.engine, reason=known.reason)
        except ShoalError as error:
            _log.warning("model %s: what it ran on before cannot be used: %s", package.manifest.name, error)
            return None
        if other is not None:
            self._runtimes.count_trouble(
                package.digest, +1
            )  # taken back after the load: what ends the process leaves it
        return other

    def proved(self, loaded: LoadedModel) -> None:
        """A model was loaded on what was remembered, and answers its golden samples."""
        self._runtimes.count_trouble(loaded.digest, -1)
        _arm(loaded)
        _log.info("model %s %s runs on %s, as before", loaded.name, loaded.version, _candidate(loaded))

    def refused(self, package: Package, error: Exception) -> None:
        """A model could not be loaded on what was remembered: it is found out anew, once it serves."""
        self._runtimes.count_trouble(package.digest, -1)
        known = self._runtimes.of(package.digest)
        if known is None:
            return
        if not isinstance(error, (AcceleratorUnavailable, BudgetExceeded)):
            self._runtimes.drop(package.digest)
            if known.engine:
                self._accelerator.drop(known.engine, str(error))
        name, version = package.manifest.name, package.manifest.version
        self._say(
            _Model(name, version, package.digest), f"{known.candidate} could not be used: {error}", Candidate(CPU)
        )

    def collect(self, packages: Collection[str]) -> None:
        """Forget all but these packages (by digest), and remove engines that none of them needs."""
        self._runtimes.collect(packages)
        self._tasks.put(lambda: self._accelerator.collect(self._runtimes.engines()))

    def close(self) -> None:
        """Break off what is being made. Models go on serving until the slots are closed."""
        with self._lock:
            self._closing = True
            self._cancelled.set()
            waiting = [*([self._thread] if self._thread.ident is not None else []), *self._falling]
        self._tasks.put(None)
        for thread in waiting:
            thread.join()

    def let_go(self) -> None:
        """Let go of the GPU, once the slots are closed."""
        self._accelerator.close()

    def _run(self) -> None:
        with contextlib.suppress(ShoalError):
            self._accelerator.clean()
        while (task := self._tasks.get()) is not None:
            if not self._closing:
                task()

    def _accelerate(self, model: _Model) -> None:
        with self._lock:
            if self._closing:
                return
            self._busy_with, self._cancelled = model, threading.Event()
        try:
            self._find_best(model, self._cancelled)
        except (EngineBuildCancelled, ModelUnavailable) as error:
            _log.info("model %s %s: looking for a faster runtime was broken off: %s", model.name, model.version, error)
        except Exception as error:  # noqa: BLE001 - a driver may raise what it likes: the others have their turn
            _log.exception("model %s %s: looking for a faster runtime failed", model.name, model.version)
            self._show(model, reason=f"looking for a faster runtime failed: {error}")
        finally:
            with self._lock:
                self._busy_with = None
            self._show(model, building="")

    def _find_best(self, model: _Model, cancelled: threading.Event) -> None:
        current = self._serving(model)
        if current is None or current.runtime.name != CPU:
            return
        if why_not := self._accelerator.why_not():
            if why_not not in self._said:
                self._said.add(why_not)
                _log.warning("models run on %s: %s", CPU, why_not)
            self._show(model, reason=why_not)
            return
        known = self._runtimes.get(model.digest, self._accelerator.machine())
        if known is not None and not known.is_usable:
            self._show(model, reason=known.why_on_cpu)
            return
        tried: list[_Tried] = []
        failed: list[_Failed] = []
        try:
            for group in self._accelerator.candidates(current.package):
                self._try_group(model, current.package, group, (tried, failed), cancelled)
            self._take_best(model, tried, failed)
        finally:
            for each in tried:
                if self._serving(model) is not each.loaded:
                    each.loaded.close()

    def _try_group(
        self,
        model: _Model,
        package: Package,
        group: Sequence[Candidate],
        outcome: tuple[list[_Tried], list[_Failed]],
        cancelled: threading.Event,
    ) -> None:
        """The first of a group that can run the package, into the outcome; and all before it that cannot."""
        for candidate in group:
            try:
                outcome[0].append(self._try(model, package, candidate, cancelled))
                return
            except (EngineBuildCancelled, ModelUnavailable):  # noqa: PERF203 - minutes each
                raise
            except Exception as error:  # noqa: BLE001 - whatever a runtime raises, there are others
                _log.warning("model %s %s on %s: %s", model.name, model.version, candidate, error)
                outcome[1].append(_Failed(Refused(candidate, str(error) or type(error).__name__), error))

    def _try(self, model: _Model, package: Package, candidate: Candidate, cancelled: threading.Event) -> _Tried:
        """The package on another runtime, tested; an engine that was refitted and answers wrong is built instead."""
        if candidate.runtime == CUDA:
            self._show(model, building=f"loading it on {CUDA}")
            return _Tried(self._load_on(model, package, candidate, ""))
        engine = self._engine(model, package, candidate, cancelled)
        try:
            return self._tested(model, package, candidate, engine)
        except (EngineBuildFailed, SelfTestFailed) as error:
            self._accelerator.drop(engine.kept.key, str(error))
            if not engine.may_be_stale:
                raise
            _log.warning("model %s %s: its engine is built anew: %s", model.name, model.version, error)
        return self._tested(model, package, candidate, self._engine(model, package, candidate, cancelled, refit=False))

    def _tested(self, model: _Model, package: Package, candidate: Candidate, engine: Engine) -> _Tried:
        """The package on its engine, within tolerance; a refitted one also nearly as near as the one it was made of.

        A tolerance wide enough for half precision does not show that a bias has kept its earlier value.
        """
        loaded = self._load_on(model, package, candidate, engine.kept.key)
        try:
            found = deviation(loaded)
        except BaseException:
            loaded.close()
            raise
        limit = max(_REFITTED_LIMIT, _REFITTED_FACTOR * self._runtimes.deviation(engine.parent))
        if engine.parent and found > limit:
            loaded.close()
            raise SelfTestFailed(
                f"refitted, it is off by {found:.0%} of the tolerance; going by the engine that it was made of, "
                f"{limit:.0%} is the most"
            )
        return _Tried(loaded, engine.kept.key, found)

    def _engine(
        self, model: _Model, package: Package, candidate: Candidate, cancelled: threading.Event, *, refit: bool = True
    ) -> Engine:
        product = "TensorRT-RTX" if candidate.runtime.endswith("rtx") else "TensorRT"
        what = f"building a {product} {candidate.precision} engine"
        self._show(model, building=what, percent=0.0)
        begun = time.monotonic()

        def show(progress: Progress) -> None:
            self._show(model, building=f"{what} ({progress.phase})", percent=float(round(progress.percent)))

        engine = self._accelerator.make(package, candidate, show, cancelled, refit=refit)
        took_s = time.monotonic() - begun
        _log.info("model %s %s: %s engine %s in %.1f s", model.name, model.version, candidate, engine.origin, took_s)
        return engine

    def _load_on(self, model: _Model, package: Package, candidate: Candidate, engine: str) -> LoadedModel:
        current, other = self._serving(model), self._other(package, candidate, engine)
        if current is None:
            raise ModelUnavailable("it does not serve any more")
        if other is None:
            raise EngineBuildFailed("its engine is gone, or damaged")
        return self._loader().load_on(package, other, beside=current)

    def _other(self, package: Package, candidate: Candidate, engine: str, *, reason: str = "") -> OtherRuntime | None:
        """How to load a package on another runtime; None where its engine is not there."""
        model = _Model(package.manifest.name, package.manifest.version, package.digest)
        kept = None if candidate.runtime == CUDA else self._accelerator.find(engine)
        if kept is None and candidate.runtime != CUDA:
            return None

        def opened() -> InferenceBackend:
            found = self._accelerator.open_cuda(package) if kept is None else self._accelerator.open(package, kept)
            return FallbackBackend(
                found.backend,
                open_spare=lambda: self._loader().open_on_cpu(package),
                on_failure=lambda error: self._failed(model, error),
                on_close=found.release,
            )

        return OtherRuntime(opened, _told(candidate, reason), self._accelerator.rules.tolerance)

    def _take_best(self, model: _Model, tried: Sequence[_Tried], failed: Sequence[_Failed]) -> None:
        """Measure, choose, swap, remember."""
        self._show(model, building="measuring it on each runtime")
        rules = self._accelerator.rules
        with self._slots.lease(model.name, model.version) as current:
            if current.digest != model.digest:
                raise ModelUnavailable("another package serves in its place")
            measured = self._measure([current, *(each.loaded for each in tried)])
            wanted = "" if rules.use == "auto" else rules.use
            choice = choose(measured, [each.refused for each in failed], wanted=wanted)
            number = measured.index(choice.best)
            if number:
                chosen = tried[number - 1].loaded
                chosen.runtime = _told(choice.best.candidate, choice.reason)
                _arm(chosen)
                if not self._slots.exchange(current, chosen):
                    raise ModelUnavailable("another took its place meanwhile")
        candidate = choice.best.candidate
        made = next((each for each in tried if each.engine), None)
        if number or all(each.is_final for each in failed):
            found = Remembered(
                machine=self._accelerator.machine(),
                runtime=candidate.runtime,
                precision=candidate.precision,
                engine=made.engine if made is not None else "",
                deviation=made.deviation if made is not None else 0.0,
                reason=choice.reason,
            )
            self._runtimes.put(model.digest, found)
        if number:
            self._say(model, choice.reason, candidate)
        else:
            self._show(model, reason=choice.reason)
            _log.info("model %s %s stays on %s: %s", model.name, model.version, candidate, choice.reason)

    def _failed(self, model: _Model, error: Exception) -> None:
        """An engine has failed on a request, which was answered all the same; in that request's thread."""
        thread = threading.Thread(target=self._fall_back, args=(model, error), name="fall-back", daemon=True)
        with self._lock:
            if not self._closing:
                self._falling = [*(each for each in self._falling if each.is_alive()), thread]
                thread.start()

    def _fall_back(self, model: _Model, error: Exception) -> None:
        """Let the model serve on ONNX Runtime alone, so that what its engine holds of the GPU is free."""
        failing = self._serving(model)
        if failing is None or failing.runtime.name == CPU:
            return
        what = _candidate(failing)
        if not isinstance(error, GpuMemoryExhausted):  # which another program may have caused
            self._runtimes.count_trouble(model.digest, +1)
        reason = f"{what} failed while it served: {error}; until it is loaded again it runs on {CPU}"
        failing.runtime = _told(Candidate(CPU), reason)
        self._say(model, reason, Candidate(CPU))
        try:
            loaded = self._loader().load_on(failing.package, None, beside=failing)
        except Exception as unloaded:  # noqa: BLE001 - what took over in its place serves on
            _log.warning("model %s %s: the failed engine keeps its memory: %s", model.name, model.version, unloaded)
            return
        loaded.runtime = failing.runtime
        if not self._slots.exchange(failing, loaded):
            loaded.close()

    def _break_off_if_gone(self) -> None:
        """A model was closed: where it was the one whose engine is made, nobody needs it any more."""
        with self._lock:
            model, cancelled = self._busy_with, self._cancelled
        if model is not None and self._serving(model) is None:
            cancelled.set()

    def _serving(self, model: _Model) -> LoadedModel | None:
        try:
            loaded = self._slots.get(model.name, model.version)
        except (UnknownModel, ModelUnavailable):
            return None
        return loaded if loaded.digest == model.digest else None

    def _show(
        self, model: _Model, *, building: str | None = None, percent: float | None = None, reason: str | None = None
    ) -> None:
        """Let the index and the fleet know how far it is, or why it is where it is."""
        loaded = self._serving(model)
        if loaded is None:
            return
        told = loaded.runtime
        if building is not None:
            told = msgspec.structs.replace(told, building=building, building_percent=percent)
        if reason is not None:
            told = msgspec.structs.replace(told, reason=reason)
        loaded.runtime = told

    def _say(self, model: _Model, reason: str, candidate: Candidate) -> None:
        """In the log and to the fleet: the model runs on something else from now on."""
        level = logging.WARNING if candidate.runtime == CPU else logging.INFO
        _log.log(level, "model %s %s runs on %s: %s", model.name, model.version, candidate, reason)
        detail = {"version": model.version, "runtime": candidate.runtime, "precision": candidate.precision}
        self._tell(
            Event(
                kind=EventKind.RUNTIME_CHANGED,
                at_ms=time.time_ns() // 1_000_000,
                model=model.name,
                package=model.digest,
                reason=reason,
                detail=detail,
            )
        )

    def _loader(self) -> Models:
        if self._models is None:
            raise ModelUnavailable("nobody loads models here")
        return self._models


def _told(candidate: Candidate, reason: str) -> ReportedRuntime:
    return ReportedRuntime(name=candidate.runtime, precision=candidate.precision, reason=reason)


def _candidate(loaded: LoadedModel) -> Candidate:
    return Candidate(loaded.runtime.name, loaded.runtime.precision)


def _arm(loaded: LoadedModel) -> None:
    if isinstance(loaded.backend, FallbackBackend):
        loaded.backend.arm()
