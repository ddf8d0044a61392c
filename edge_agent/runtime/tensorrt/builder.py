"""Engines are built by a worker process, which this side starts, watches, and ends.

The worker is nice to what serves, may have so much memory and no more, tells how far it is, and can be broken off at
any time; whatever becomes of it, the agent learns a reason.
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edge_agent.contract.errors import EngineBuildFailed, storage_error
from edge_agent.durable import write_durably
from edge_agent.runtime.tensorrt.job import (
    BuildJob,
    EngineFacts,
    GraphFacts,
    InspectJob,
    Job,
    Precision,
    Progress,
    RefitJob,
    Tolerance,
)
from edge_agent.runtime.tensorrt.profiles import Profile
from edge_agent.runtime.tensorrt.worker_process import Finished, WorkerLimits, run_worker

if TYPE_CHECKING:
    from edge_agent.runtime.gpu.survey import TensorRtLibrary
    from edge_agent.runtime.tensorrt.engine_cache import KeptEngine

_GRAPHS_FILE = "graphs.json"
# Graphs remembered; the oldest is forgotten first.
_MOST_GRAPHS = 256

_log = logging.getLogger(__name__)
OnProgress = Callable[[Progress], None]
DEFAULT_TOLERANCE = Tolerance()


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuildRequest:
    """An engine to build.

    Args:
        model: The ONNX file; its weights may lie beside it.
        golden: The golden samples on which fp16 is checked; None checks nothing.
        refittable: Whether its weights can be replaced later.
        this_gpu_only: Whether TensorRT-RTX builds for the GPU at hand alone; False builds where there is none.
        tf32: Whether float32 products may be rounded to 10 bits of mantissa, which Ampere and later do faster.
    """

    model: Path
    profiles: tuple[Profile, ...]
    precision: Precision = "as-is"
    golden: Path | None = None
    tolerance: Tolerance = DEFAULT_TOLERANCE
    refittable: bool = True
    this_gpu_only: bool = True
    tf32: bool = True
    optimisation_level: int | None = None


@dataclasses.dataclass(frozen=True)
class BuiltEngine:
    """A new engine. ``plan`` is the caller's: it is moved into the cache, or deleted."""

    plan: Path
    facts: EngineFacts


class EngineBuilder:
    """Starts a worker for each engine; one at a time is enough for any device.

    Args:
        folder: For unfinished plans, timing caches and what is known of graphs; made where it is missing.
        conditions: Digest of the :class:`~edge_agent.runtime.tensorrt.engine_key.EngineConditions`, for which timings
            hold; empty keeps no timings.
        limits: Memory and niceness of the worker.
        workspace_bytes: Most GPU memory that a layer may have while it runs; 0 leaves it to TensorRT.
    """

    def __init__(
        self,
        library: TensorRtLibrary,
        folder: Path,
        *,
        conditions: str = "",
        limits: WorkerLimits,
        workspace_bytes: int = 0,
    ) -> None:
        self._library, self._folder, self._limits = library, folder, limits
        self._workspace_bytes = workspace_bytes
        self._timings = folder / f"timings-{conditions[:16]}" if conditions else None
        self._lock = threading.Lock()

    def graph(self, model: Path, sha256: Sequence[str], cancelled: threading.Event) -> GraphFacts:
        """What a model is, its weights aside; remembered by the digests of its files.

        Args:
            sha256: Of the ONNX file, and of its files of weights: what belongs to the graph may lie there too.
        Raises:
            EngineBuildFailed: The file is no ONNX model, or the worker died of it.
            EngineBuildCancelled: ``cancelled`` was set.
        """
        known, key = self._graphs(), " ".join(sha256)
        if key in known:
            return known[key]
        facts = self._run(InspectJob(model=str(model)), None, cancelled).result
        if not isinstance(facts, GraphFacts):
            raise EngineBuildFailed(f"{model}: the worker answered with {type(facts).__name__}; report this")
        if facts.graph:  # the package onnx may be installed later
            with self._lock:
                kept = dict(list(self._graphs().items())[1 - _MOST_GRAPHS :])
                self._write(self._folder / _GRAPHS_FILE, msgspec.json.encode({**kept, key: facts}))
        return facts

    def build(self, request: BuildRequest, on_progress: OnProgress, cancelled: threading.Event) -> BuiltEngine:
        """Build an engine; minutes, as a rule.

        Args:
            on_progress: Called on this thread.
            cancelled: Set from another thread, it breaks the build off within seconds.
        Raises:
            EngineBuildFailed: No engine, and why; nothing is left behind.
            EngineBuildCancelled: ``cancelled`` was set.
        """
        plan = self._new_plan()
        job = BuildJob(
            module=self._library.module,
            flavour=self._library.flavour,
            model=str(request.model.resolve()),
            plan=str(plan),
            profiles=request.profiles,
            precision=request.precision,
            golden=None if request.golden is None else str(request.golden.resolve()),
            tolerance=request.tolerance,
            refittable=request.refittable,
            this_gpu_only=request.this_gpu_only,
            tf32=request.tf32,
            workspace_bytes=self._workspace_bytes,
            optimisation_level=request.optimisation_level,
            timing_cache=None if self._timings is None else str(self._timings),
        )
        return self._engine(job, plan, on_progress, cancelled)

    def refit(self, kept: KeptEngine, model: Path, on_progress: OnProgress, cancelled: threading.Event) -> BuiltEngine:
        """Make an engine with the weights of ``model`` out of one with the same graph; seconds. Needs a GPU.

        The caller compares its golden outputs before it is used: a wrong weight does not show here.

        Raises:
            EngineBuildFailed, EngineBuildCancelled: As of :meth:`build`.
        """
        plan = self._new_plan()
        job = RefitJob(
            module=self._library.module,
            flavour=self._library.flavour,
            engine=str(kept.plan.resolve()),
            facts=kept.facts,
            model=str(model.resolve()),
            plan=str(plan),
        )
        return self._engine(job, plan, on_progress, cancelled)

    def clean(self) -> None:
        """Remove what a crash has left of builds; not while one runs."""
        for path in self._folder.glob(".new-*"):
            path.unlink(missing_ok=True)
        for path in self._folder.glob(".job-*"):
            shutil.rmtree(path, ignore_errors=True)

    def _engine(self, job: Job, plan: Path, on_progress: OnProgress, cancelled: threading.Event) -> BuiltEngine:
        begun = time.monotonic()
        try:
            finished = self._run(job, on_progress, cancelled)
            facts = _facts_of(finished, plan)
        except BaseException:
            for path in plan.parent.glob(f"{plan.name}*"):  # and what it had begun to write
                path.unlink(missing_ok=True)
            raise
        return BuiltEngine(plan, msgspec.structs.replace(facts, seconds=time.monotonic() - begun))

    def _run(self, job: Job, on_progress: OnProgress | None, cancelled: threading.Event) -> Finished:
        self._make_folder()
        with tempfile.TemporaryDirectory(prefix=".job-", dir=self._folder) as place:
            return run_worker(job, Path(place), self._limits, on_progress, cancelled)

    def _new_plan(self) -> Path:
        self._make_folder()
        descriptor, name = tempfile.mkstemp(prefix=".new-", suffix=".plan", dir=self._folder)
        with open(descriptor, "wb"):  # noqa: PTH123 - the descriptor is closed by it
            return Path(name).resolve()

    def _make_folder(self) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(error, str(self._folder)) or EngineBuildFailed(f"{self._folder}: {error}") from error

    def _graphs(self) -> dict[str, GraphFacts]:
        try:
            return msgspec.json.decode((self._folder / _GRAPHS_FILE).read_bytes(), type=dict[str, GraphFacts])
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):  # it is worked out again
            return {}

    def _write(self, path: Path, data: bytes) -> None:
        try:
            write_durably(path, data)
        except OSError as error:
            _log.warning("%s: not kept: %s", path, error)


def _facts_of(finished: Finished, plan: Path) -> EngineFacts:
    if not isinstance(finished.result, EngineFacts) or not plan.stat().st_size:
        raise EngineBuildFailed(f"{plan}: the worker ended well but wrote no engine; report this")
    return msgspec.structs.replace(finished.result, peak_bytes=finished.peak_bytes)
