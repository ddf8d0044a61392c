"""What this machine runs models on beside its processors: looked up once, its engines found, refitted, built, opened.

Imported only where there may be a GPU; it is looked for when the first model asks, in a process of its own.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Literal

import msgspec
import onnxruntime as ort

from edge_agent.contract.errors import (
    AcceleratorUnavailable,
    BudgetExceeded,
    EngineBuildCancelled,
    EngineBuildFailed,
)
from edge_agent.contract.manifest import GOLDEN_FILE
from edge_agent.runtime.backend import InferenceBackend
from edge_agent.runtime.choice import CUDA, Candidate
from edge_agent.runtime.gpu.budget import GpuBudget
from edge_agent.runtime.gpu.device_memory import DeviceMemory
from edge_agent.runtime.gpu.owner import GpuOwner
from edge_agent.runtime.gpu.providers import open_memory
from edge_agent.runtime.gpu.survey import Survey, TensorRtLibrary, survey
from edge_agent.runtime.onnx import OnnxBackend
from edge_agent.runtime.onnx_session import CUDA_PROVIDER
from edge_agent.runtime.package import Package, Tolerance
from edge_agent.runtime.tensorrt import job
from edge_agent.runtime.tensorrt.backend import TensorRtBackend
from edge_agent.runtime.tensorrt.bindings import Bindings, load_bindings
from edge_agent.runtime.tensorrt.builder import BuildRequest, EngineBuilder, OnProgress
from edge_agent.runtime.tensorrt.engine_cache import EngineCache, KeptEngine
from edge_agent.runtime.tensorrt.engine_key import EngineConditions, conditions_here, engine_key, family_key
from edge_agent.runtime.tensorrt.profiles import Profile, profiles_for
from edge_agent.runtime.tensorrt.worker_process import WorkerLimits

Use = Literal["auto", "off", "tensorrt", "onnxruntime-cuda"]
Precision = Literal["fp32", "fp16", "int8"]

# Engines lie in this folder of the agent's, timings and unfinished plans in the other.
ENGINES_FOLDER, BUILDS_FOLDER = "engines", "engine-builds"
# Half precision answers within it; what is further off would show in a classifier's confidence.
DEFAULT_TOLERANCE = Tolerance(1e-2, 1e-2)
# Raised when what is remembered of runtimes is to be found out anew.
_FORMAT = 1

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AcceleratorRules:
    """How accelerators are used.

    Args:
        use: ``auto`` measures and takes the fastest; a runtime's name takes that one wherever it can run the model.
        precisions: What TensorRT may compute in, tried in this order until one is within the tolerance.
        tolerance: How far its answers may be from the golden ones.
        build_memory_bytes: Most memory of a process that builds an engine; 0 sets no limit.
        workspace_bytes: Most GPU memory that a layer may have while it runs; 0 leaves it to TensorRT.
        gpu_memory_bytes: GPU memory that all models together may take; 0 sets no limit.
        streams: Runs of one model at once.
        cuda_graphs: Whether runs are recorded as CUDA graphs where that works.
        refit: Whether an engine of the same graph is given new weights instead of a build.
    """

    use: Use = "auto"
    precisions: tuple[Precision, ...] = ("fp16", "fp32")
    tolerance: Tolerance = DEFAULT_TOLERANCE
    build_memory_bytes: int = 0
    workspace_bytes: int = 0
    gpu_memory_bytes: int = 0
    streams: int = 1
    cuda_graphs: bool = False
    refit: bool = True


@dataclasses.dataclass(frozen=True)
class Engine:
    """An engine of one package.

    Args:
        origin: How it came about: ``found``, ``refitted`` or ``built``.
        parent: Key of the engine that it was refitted from.
    """

    kept: KeptEngine
    origin: Literal["found", "refitted", "built"]
    parent: str = ""

    @property
    def may_be_stale(self) -> bool:
        """Whether a build may help where it answers wrong: it was refitted, now or once, or lay on the disk."""
        return self.origin != "built"


@dataclasses.dataclass(frozen=True)
class Opened:
    """A backend on the GPU. ``release`` is to be called once, when it has been closed."""

    backend: InferenceBackend
    release: Callable[[], None]


class Accelerator:
    """The GPU of this machine and its runtimes; safe from any thread.

    Args:
        folder: The agent's own, for engines and timings.
        look: Finds out what is there; called once.
        open_memory: Opens the GPU, on its owner's thread.
    """

    def __init__(
        self,
        folder: Path,
        rules: AcceleratorRules,
        *,
        look: Callable[[], Survey] | None = None,
        open_memory: Callable[[Survey], DeviceMemory] | None = None,
    ) -> None:
        self.rules = rules
        self._folder, self._open_memory = folder, open_memory or _open_memory
        self._look = look or functools.partial(survey, wants_graphs=rules.cuda_graphs)
        self._lock = threading.Lock()
        self._looking = threading.Lock()
        self._survey: tuple[Future[Survey], float] | None = None  # and when it began
        # One enqueues runs; the other reads engines and allocates, so that the first need not wait for that.
        self._owners: tuple[GpuOwner, GpuOwner] | None = None
        self._budget: GpuBudget | None = None
        self._bindings: Bindings | None = None
        self._builder: EngineBuilder | None = None
        # By package: a model that fell asleep, or was unloaded, while its engine was made finds it when it is back.
        self._made: dict[str, str] = {}
        self._keeping = threading.Lock()  # while an engine is moved into its place, or others are removed
        self._cache = EngineCache(folder / ENGINES_FOLDER)

    @property
    def survey(self) -> Survey:
        """What this machine has; the first to ask waits for it."""
        return self._surveyed()[0].result()

    def is_surveyed(self, within_s: float) -> bool:
        """Whether it is known what this machine has, at the latest so long after somebody first asked."""
        survey, begun_s = self._surveyed()
        return bool(wait([survey], max(0.0, begun_s + within_s - time.monotonic())).done)

    def why_not(self, package: Package) -> str:
        """Why a package can run on nothing but the processors; empty where it may."""
        if self.candidates(package):
            return ""
        if self._groups():
            return "accelerator.precisions names int8 alone, and the package has no such variant: add fp16 or fp32"
        found = self.survey
        if found.gpu is not None and self.rules.use == CUDA:
            return (
                f"accelerator.use is onnxruntime-cuda, and the onnxruntime here has no {CUDA_PROVIDER}: install one "
                "that is built for this GPU, or let accelerator.use be auto"
            )
        return "; ".join(found.reasons) or "no accelerator is to be used (accelerator.use)"

    def machine(self) -> str:
        """A digest of all that a measurement depends on: another GPU, driver, runtime or rule, and it is made anew."""
        found, rules = self.survey, self.rules
        gpu = dataclasses.astuple(found.gpu) if found.gpu is not None else ()
        conditions = self._conditions().digest() if found.tensorrt is not None and found.gpu is not None else ""
        parts = [_FORMAT, gpu, conditions, found.memory, ort.__version__, ort.get_available_providers()]
        parts += [rules.use, rules.precisions, rules.tolerance, rules.workspace_bytes, rules.streams, rules.cuda_graphs]
        return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()

    def candidates(self, package: Package) -> list[list[Candidate]]:
        """On what a package may run here beside the processors: groups, of each of which the first that can will do."""
        variants = package.manifest.variants
        groups = [
            [each for each in group if each.precision != "int8" or "int8" in variants] for group in self._groups()
        ]
        return [group for group in groups if group]

    def _groups(self) -> list[list[Candidate]]:
        found, groups = self.survey, []
        if found.gpu is None:
            return []
        if found.tensorrt is not None and found.memory is not None and self.rules.use in ("auto", "tensorrt"):
            groups.append([Candidate(found.tensorrt.flavour, precision) for precision in self.rules.precisions])
        if self.rules.use in ("auto", "onnxruntime-cuda") and CUDA_PROVIDER in ort.get_available_providers():
            groups.append([Candidate(CUDA)])
        return groups

    def find(self, key: str) -> KeptEngine | None:
        """A kept engine, its bytes verified."""
        return self._cache.find(key)

    def key(self, package: Package, candidate: Candidate) -> str:
        """Under which the engine of a package is kept.

        Raises:
            EngineBuildFailed: TensorRT cannot take such a model; final.
        """
        return self._named(package, candidate)[0]

    def make(
        self,
        package: Package,
        candidate: Candidate,
        on_progress: OnProgress,
        cancelled: threading.Event,
        *,
        refit: bool = True,
        build: bool = True,
    ) -> Engine:
        """The engine of a package: the kept one, else another's refitted, else a new one; up to many minutes.

        Args:
            on_progress: Called on this thread.
            cancelled: Breaks it off within seconds.
            refit: Whether another's may be refitted, where the rules allow it.
            build: Whether a new one may be built: without, it takes seconds.
        Raises:
            EngineBuildFailed, EngineBuildCancelled: There is none, and why.
        """
        key, profiles = self._named(package, candidate)
        kept = self._cache.find(key)
        if kept is not None:
            return Engine(kept, "found")
        form = package.manifest.variants[_variant(candidate)]
        model = package.path(form.model)
        digests = [package.manifest.files[name].sha256 for name in (form.model, *form.data)]
        builder, family = self._builder_here(), ""
        if self.rules.refit:
            graph = builder.graph(model, digests, cancelled).graph
            family = self._family(graph, profiles, candidate)
        similar = self._cache.find_refittable(family) if refit else None
        if similar is not None:
            try:
                built = builder.refit(similar, model, on_progress, cancelled)
            except EngineBuildCancelled:
                raise
            except EngineBuildFailed as error:
                _log.warning("%s: an engine of the same graph could not be refitted: %s", package.folder, error)
                similar = None
        if similar is None:
            if not build:
                raise EngineBuildFailed("there is no engine of its graph to refit")
            built = builder.build(self._request(package, candidate, model, profiles), on_progress, cancelled)
        with self._keeping:
            made = self._cache.put(key, built.plan, built.facts, family=family)
            self._made[package.digest] = key
        if made is None:
            built.plan.unlink(missing_ok=True)
            raise EngineBuildFailed(f"{self._folder}: the engine could not be kept; is there room on the disk?")
        return Engine(made, "built") if similar is None else Engine(made, "refitted", similar.key)

    def open(self, package: Package, kept: KeptEngine) -> Opened:
        """A backend on an engine.

        Raises:
            EngineBuildFailed: TensorRT refuses the engine, or its tensors are not the signature's.
            AcceleratorUnavailable: The GPU cannot be opened, or (GpuMemoryExhausted) is full.
            BudgetExceeded: It would take more of the GPU's memory than engines may have.
        """
        rules = self.rules
        (owner, loader), bindings, budget = self._gpu()
        holder = f"{package.manifest.name} {package.manifest.version}"
        # By its weights it can be refused before anything is loaded; then it counts for what it was found to take.
        hold = budget.hold(holder, kept.plan.stat().st_size)
        try:
            backend = TensorRtBackend(
                package,
                kept.plan,
                bindings=bindings,
                owner=owner,
                loader=loader,
                streams=rules.streams,
                graphs=rules.cuda_graphs,
            )
        except BaseException:
            hold.release()
            raise
        try:
            hold.takes(backend.gpu_bytes)
        except BudgetExceeded:
            backend.close()
            hold.release()
            raise
        return Opened(backend, hold.release)

    def open_cuda(self, package: Package) -> Opened:
        """A backend on ONNX Runtime's CUDA provider.

        Raises:
            AcceleratorUnavailable: The runtime cannot use the GPU here.
            ModelLoadFailed: It refuses the model.
        """
        return Opened(OnnxBackend(package, provider=CUDA_PROVIDER), lambda: None)

    def drop(self, key: str, reason: str) -> None:
        """Remove an engine that is of no use."""
        self._cache.drop(key, reason)

    def collect(self, engines: Collection[str], packages: Collection[str]) -> None:
        """Remove all engines but these, and those made since the start for these packages."""
        with self._keeping:
            self._made = {digest: key for digest, key in self._made.items() if digest in packages}
            self._cache.collect({*engines, *self._made.values()})

    def clean(self) -> None:
        """Remove what a crash has left half made; not while an engine is made."""
        if self.survey.tensorrt is not None and self.survey.gpu is not None:
            self._builder_here().clean()

    def close(self) -> None:
        """Let go of the GPU; backends are closed before."""
        with self._lock:
            owners, self._owners = self._owners, None
        for owner in owners or ():
            owner.close()

    def _surveyed(self) -> tuple[Future[Survey], float]:
        with self._looking:
            if self._survey is None:
                future: Future[Survey] = Future()
                self._survey = future, time.monotonic()
                # In a thread of its own, so that whoever asks decides how long to wait.
                threading.Thread(target=self._fulfil, args=(future,), name="survey", daemon=True).start()
            return self._survey

    def _fulfil(self, survey: Future[Survey]) -> None:
        try:
            survey.set_result(self._look())
        except Exception as error:  # noqa: BLE001 - whoever asks is told
            survey.set_exception(error)

    def _library(self) -> TensorRtLibrary:
        found = self.survey
        if found.tensorrt is None:
            raise AcceleratorUnavailable("; ".join(found.reasons))
        return found.tensorrt

    def _conditions(self) -> EngineConditions:
        gpu = self.survey.gpu
        if gpu is None:
            raise AcceleratorUnavailable("; ".join(self.survey.reasons))
        return conditions_here(gpu, self._library())

    def _named(self, package: Package, candidate: Candidate) -> tuple[str, tuple[Profile, ...]]:
        manifest = package.manifest
        golden = {name: array.shape for name, array in package.golden().inputs.items()}
        profiles = profiles_for(manifest.signature, manifest.batching, golden)
        form = manifest.variants[_variant(candidate)]
        digests = [manifest.files[name].sha256 for name in (form.model, *form.data)]
        key = engine_key(
            self._conditions(),
            model=digests,
            profiles=profiles,
            precision=_cast(candidate),
            flags=self._flags(),
        )
        return key, profiles

    def _family(self, graph: str, profiles: tuple[Profile, ...], candidate: Candidate) -> str:
        return family_key(
            self._conditions(), graph=graph, profiles=profiles, precision=_cast(candidate), flags=self._flags()
        )

    def _flags(self) -> list[str]:
        return [f"workspace={self.rules.workspace_bytes}", f"refittable={self.rules.refit}"]

    def _request(
        self, package: Package, candidate: Candidate, model: Path, profiles: tuple[Profile, ...]
    ) -> BuildRequest:
        rtol, atol = self.rules.tolerance
        return BuildRequest(
            model=model,
            profiles=profiles,
            precision=_cast(candidate),
            golden=package.path(GOLDEN_FILE),
            tolerance=job.Tolerance(rtol=rtol, atol=atol),
            refittable=self.rules.refit,
        )

    def _builder_here(self) -> EngineBuilder:
        library, conditions = self._library(), self._conditions()
        with self._lock:
            if self._builder is None:
                self._builder = EngineBuilder(
                    library,
                    self._folder / BUILDS_FOLDER,
                    conditions=conditions.digest(),
                    limits=WorkerLimits(memory_bytes=self.rules.build_memory_bytes),
                    workspace_bytes=self.rules.workspace_bytes,
                )
            return self._builder

    def _gpu(self) -> tuple[tuple[GpuOwner, GpuOwner], Bindings, GpuBudget]:
        found, library = self.survey, self._library()
        with self._lock:
            if self._bindings is None:
                self._bindings = load_bindings(library)
            if self._owners is None or self._budget is None:
                opened = functools.partial(self._open_memory, found)
                self._owners = GpuOwner(opened), GpuOwner(opened)
                free = functools.partial(self._owners[1].call, lambda memory: memory.free_bytes())
                self._budget = GpuBudget(self.rules.gpu_memory_bytes, free)
            return self._owners, self._bindings, self._budget


def _variant(candidate: Candidate) -> str:
    return "int8" if candidate.precision == "int8" else "fp32"


def _cast(candidate: Candidate) -> job.Precision:
    """How the variant's file is taken."""
    return "fp16" if candidate.precision == "fp16" else "as-is"


def _open_memory(found: Survey) -> DeviceMemory:
    """The GPU by whichever provider was found; on its owner's thread."""
    if found.gpu is None or found.memory is None:
        raise AcceleratorUnavailable("; ".join(found.reasons))
    return open_memory(found.memory, found.gpu)
