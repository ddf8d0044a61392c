"""A package tried on a runtime of the accelerator: its engine is made, loaded beside what serves, and tested."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from edge_agent.contract.errors import EngineBuildCancelled, EngineBuildFailed, ModelUnavailable, SelfTestFailed
from edge_agent.contract.messages import ReportedRuntime
from edge_agent.runtime.accelerator import Accelerator, Engine
from edge_agent.runtime.backend import InferenceBackend
from edge_agent.runtime.choice import CUDA, Candidate, Refused
from edge_agent.runtime.fallback import FallbackBackend
from edge_agent.runtime.guard import RunGuard
from edge_agent.runtime.loaded import LoadedModel, OtherRuntime
from edge_agent.runtime.package import Package
from edge_agent.runtime.runtimes import RuntimesFile
from edge_agent.runtime.selftest import deviation
from edge_agent.runtime.tensorrt.job import Progress

# A refitted engine may be so much further off than the one that it was made of, and by that share of the tolerance in
# any case.
_REFITTED_FACTOR = 3.0
_REFITTED_LIMIT = 0.05
# The log has all of it.
_LONGEST_REASON = 400

_log = logging.getLogger(__name__)


class Models(Protocol):
    """Who loads models; :class:`edge_agent.runtime.repository.Repository`."""

    def load_on(self, package: Package, runtime: OtherRuntime | None, *, beside: LoadedModel) -> LoadedModel:
        """The package on another runtime (None: ONNX Runtime on the CPU), tested and within the budgets."""

    def exchange(self, old: LoadedModel, loaded: LoadedModel) -> bool:
        """Let a package serve on another runtime where ``old`` still does; else ``loaded`` is the caller's to close."""

    def open_on_cpu(self, package: Package) -> InferenceBackend:
        """The package on ONNX Runtime, on the CPU."""


class Tried(NamedTuple):
    """A package loaded on another runtime and found right; whoever has it closes it, or lets it serve.

    Args:
        engine: Key of the engine that it has there; empty where it has none.
        deviation: How far its answers are from the golden ones, as a share of the tolerance.
    """

    loaded: LoadedModel
    engine: str = ""
    deviation: float = 0.0


class Failed(NamedTuple):
    """What a package cannot run on, and the error that said so."""

    refused: Refused
    error: Exception

    @property
    def is_final(self) -> bool:
        """Whether the next start need not try again."""
        error = self.error
        return isinstance(error, SelfTestFailed) or (isinstance(error, EngineBuildFailed) and error.is_final)


@dataclasses.dataclass(frozen=True)
class Occasion:
    """For what a package is tried.

    Args:
        package: The package.
        beside: What it is loaded beside; raises ModelUnavailable where nobody needs it any more.
        show: Told what is being done, and how far it is in percent.
        cancelled: Breaks off what takes long.
        may_build: Whether there are minutes to build an engine, not just seconds to refit one.
    """

    package: Package
    beside: Callable[[], LoadedModel]
    show: Callable[[str, float | None], None]
    cancelled: threading.Event
    may_build: bool = True

    def __str__(self) -> str:
        return f"model {self.package.manifest.name} {self.package.manifest.version}"


class Trials:
    """Tries packages; safe from any thread.

    Args:
        models: Who loads them.
        guard: Breaks off what hangs.
        on_failure: Told when an engine fails while it serves, in the thread of that request; must not block.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        runtimes: RuntimesFile,
        models: Models,
        *,
        guard: RunGuard,
        on_failure: Callable[[Package, Exception], None],
    ) -> None:
        self._accelerator, self._runtimes, self._models = accelerator, runtimes, models
        self._guard, self._on_failure = guard, on_failure

    def first_of(self, group: Sequence[Candidate], occasion: Occasion) -> tuple[Tried | None, list[Failed]]:
        """The first of a group that can run the package, and all before it that cannot.

        Raises:
            EngineBuildCancelled, ModelUnavailable: Nobody needs it any more.
        """
        failed: list[Failed] = []
        for candidate in group:
            try:
                return self.on(candidate, occasion), failed
            except (EngineBuildCancelled, ModelUnavailable):  # noqa: PERF203 - minutes each
                raise
            except Exception as error:  # noqa: BLE001 - whatever a runtime raises, there are others
                _log.warning("%s on %s: %s", occasion, candidate, error)
                failed.append(Failed(Refused(candidate, _short(error)), error))
        return None, failed

    def on(self, candidate: Candidate, occasion: Occasion) -> Tried:
        """The package on one runtime; where an engine that was not built for it answers wrong, one is.

        Raises:
            EngineBuildCancelled, ModelUnavailable: Nobody needs it any more.
            Exception: It cannot run there, and why.
        """
        if candidate.runtime == CUDA:
            occasion.show(f"loading it on {CUDA}", None)
            return Tried(self._load(candidate, "", occasion))
        engine = self._engine(candidate, occasion)
        try:
            return self._tested(candidate, engine, occasion)
        except (EngineBuildFailed, SelfTestFailed) as error:
            self._accelerator.drop(engine.kept.key, str(error))
            if not engine.may_be_stale or not occasion.may_build:
                raise
            _log.warning("%s: its engine is built anew: %s", occasion, error)
        return self._tested(candidate, self._engine(candidate, occasion, refit=False), occasion)

    def runtime(self, package: Package, candidate: Candidate, engine: str, *, reason: str = "") -> OtherRuntime | None:
        """How to load a package on another runtime; None where its engine (by key) is not there."""
        kept = None if candidate.runtime == CUDA else self._accelerator.find(engine)
        if kept is None and candidate.runtime != CUDA:
            return None

        def opened() -> InferenceBackend:
            found = self._accelerator.open_cuda(package) if kept is None else self._accelerator.open(package, kept)
            return FallbackBackend(
                found.backend,
                open_spare=lambda: self._models.open_on_cpu(package),
                on_failure=lambda error: self._on_failure(package, error),
                on_close=found.release,
            )

        return OtherRuntime(opened, told(candidate, reason), self._accelerator.rules.tolerance)

    def _engine(self, candidate: Candidate, occasion: Occasion, *, refit: bool = True) -> Engine:
        product = "TensorRT-RTX" if candidate.runtime.endswith("rtx") else "TensorRT"
        what = f"building a {product} {candidate.precision} engine"
        occasion.show(what, 0.0)
        begun = time.monotonic()

        def show(progress: Progress) -> None:
            occasion.show(f"{what} ({progress.phase})", float(round(progress.percent)))

        engine = self._accelerator.make(
            occasion.package, candidate, show, occasion.cancelled, refit=refit, build=occasion.may_build
        )
        _log.info("%s: %s engine %s in %.1f s", occasion, candidate, engine.origin, time.monotonic() - begun)
        return engine

    def _tested(self, candidate: Candidate, engine: Engine, occasion: Occasion) -> Tried:
        """The package on its engine, within tolerance; a refitted one also nearly as near as the one it was made of.

        A tolerance wide enough for half precision does not show that a bias has kept its earlier value.
        """
        loaded = self._load(candidate, engine.kept.key, occasion)
        try:
            with self._guard.within(loaded.backend, loaded.manifest.max_run_s):
                found = deviation(loaded)
        except BaseException:
            loaded.close()
            raise
        if not engine.kept.facts.refitted:
            return Tried(loaded, engine.kept.key, found)
        parents = self._runtimes.deviation(engine.parent)
        limit = max(_REFITTED_LIMIT, _REFITTED_FACTOR * parents)
        if found > limit:
            loaded.close()
            raise SelfTestFailed(
                f"refitted, it is off by {found:.0%} of the tolerance; going by the engine that it was made of, "
                f"{limit:.0%} is the most"
            )
        # What was built is the measure for all that is made of it: else each could be a little further off.
        return Tried(loaded, engine.kept.key, min(found, parents))

    def _load(self, candidate: Candidate, engine: str, occasion: Occasion) -> LoadedModel:
        beside, other = occasion.beside(), self.runtime(occasion.package, candidate, engine)
        if other is None:
            raise EngineBuildFailed("its engine is gone, or damaged")
        with self._runtimes.trying(occasion.package.digest, self._accelerator.machine(), candidate, engine):
            return self._models.load_on(occasion.package, other, beside=beside)


def _short(error: Exception) -> str:
    """What it says, cut where a runtime has filled a page."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]}..."


def told(candidate: Candidate, reason: str) -> ReportedRuntime:
    """What is told of a model that runs there."""
    return ReportedRuntime(name=candidate.runtime, precision=candidate.precision, reason=reason)


def candidate_of(loaded: LoadedModel) -> Candidate:
    """What a model runs on."""
    return Candidate(loaded.runtime.name, loaded.runtime.precision)


def arm(loaded: LoadedModel) -> None:
    """A model is about to serve: from now on ONNX Runtime stands in where its engine fails."""
    if isinstance(loaded.backend, FallbackBackend):
        loaded.backend.arm()


def failure_of(loaded: LoadedModel) -> Exception | None:
    """Why its engine was given up; None where it was not, or it has none."""
    return loaded.backend.failure if isinstance(loaded.backend, FallbackBackend) else None
