"""A package made ready to answer: loaded, warmed up, measured."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.checking import InputCheck
from edge_agent.contract.errors import ModelUnavailable, UnknownModel
from edge_agent.contract.manifest import FULL_PRECISION, Manifest, PipelineStep, golden_file
from edge_agent.contract.messages import ReportedRuntime
from edge_agent.contract.profile import ReferenceProfile, count_batch
from edge_agent.contract.signature import Signature
from edge_agent.runtime.backend import InferenceBackend
from edge_agent.runtime.batchable import check_batchable, rows_together
from edge_agent.runtime.choice import CPU
from edge_agent.runtime.cpus import available
from edge_agent.runtime.guard import RunGuard
from edge_agent.runtime.memory import give_back, resident_bytes
from edge_agent.runtime.onnx import OnnxBackend
from edge_agent.runtime.onnx_session import take_own_memory
from edge_agent.runtime.package import Golden, Package, Tolerance
from edge_agent.runtime.statistics import Statistics

if TYPE_CHECKING:
    from edge_agent.runtime.optimised import OptimisedModels
    from edge_agent.runtime.pipeline import ModelSource

# Slower models go to a thread: a hand-over costs about 50 us, a blocked loop delays every other request.
INLINE_LIMIT_US = 1000.0
# On a single processor a thread runs nothing beside the loop: the hand-over is all that it adds (a fifth of the rate of
# a model of 1.5 ms, measured), and keeping the others' wait short is all that is left to mind.
ALONE_LIMIT_US = 5000.0
# Freed memory of smaller models is soon used again; handing it back costs milliseconds.
LARGE_BYTES = 4 << 20
ON_CPU = ReportedRuntime(name=CPU)
_TOLERANCE = Tolerance()
# The finest and the widest tolerance of a quantised form; 8 bits over 0..1 are steps of 0.004.
_COARSE, _COARSEST = 1e-2, 1e-1


@dataclasses.dataclass(frozen=True)
class OtherRuntime:
    """A package on another runtime than ONNX Runtime on the CPU.

    Args:
        open: Opens the backend, which is the caller's to close.
        told: What is told of it.
        tolerance: How far its answers may be from the golden ones.
    """

    open: Callable[[], InferenceBackend]
    told: ReportedRuntime
    tolerance: Tolerance = _TOLERANCE


@dataclasses.dataclass(eq=False)
class LoadedModel:
    """A package with its session, ready to answer.

    Args:
        variant: Which of the package's forms it is.
        runtime: What it runs on, why, and what is being made ready meanwhile; replaced whole by whoever knows more.
        tolerance: How far its answers may be from the golden ones.
        inline: Whether an inference is short enough to run on the event loop's own thread.
        run_us: Median time of one inference of one row, in microseconds; infinite where the model failed.
        row_bytes: What each input of that row takes: a row may be longer.
        together: Rows of different requests that may run at once, as nobody can tell; 1 for none.
        memory_bytes: What loading and warming it up has taken of the machine's memory, measured; 0 where nobody did.
        last_used: When the last lease on it ended, or it was loaded; seconds of ``time.monotonic``.
        leases: One element for each lease on it: adding and taking away is one step in every Python, counting is not.
        retired: It serves no more, and is closed when its last lease ends; ``leases``, ``retired`` and ``lease`` (what
            :meth:`Slots.lease` hands out) are for slots alone to change.
    """

    package: Package
    backend: InferenceBackend
    variant: str = FULL_PRECISION
    runtime: ReportedRuntime = ON_CPU
    tolerance: Tolerance = _TOLERANCE
    inline: bool = True
    run_us: float = 0.0
    row_bytes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    together: int = 1
    memory_bytes: int = 0
    last_used: float = dataclasses.field(default_factory=time.monotonic)
    statistics: Statistics = dataclasses.field(default_factory=Statistics, repr=False)
    leases: list[None] = dataclasses.field(default_factory=list, repr=False)
    retired: bool = False
    lease: Any = dataclasses.field(default=None, repr=False)
    _open: list[None] = dataclasses.field(default_factory=lambda: [None], repr=False)
    _when_closed: list[Callable[[], None]] = dataclasses.field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        # Plain attributes, not properties: each request reads most of them.
        self.manifest: Manifest = self.package.manifest
        self.name: str = self.manifest.name
        self.version: str = self.manifest.version
        self.digest: str = self.package.digest
        self.signature: Signature = self.manifest.signature
        self.check = InputCheck(self.signature)

    def golden(self) -> Golden:
        """The golden samples that this form of the model is held against."""
        return self.package.golden(self.variant)

    @functools.cached_property
    def reference(self) -> ReferenceProfile:
        """The package's reference profile, read once."""
        return self.package.reference()

    @property
    def runtime_text(self) -> str:
        """What there is to say of its runtime: what is being made ready, else why it is this one; often nothing."""
        told = self.runtime
        if not told.building:
            return told.reason
        return told.building if told.building_percent is None else f"{told.building}: {told.building_percent:.0f} %"

    @property
    def requests(self) -> int:
        """Requests since it was loaded, the failed ones included; what a rollout's health gate looks at."""
        return self.statistics.requests

    @property
    def failed(self) -> int:
        """Those of them that failed though they were right."""
        return self.statistics.failed_requests

    def go_on_from(self, earlier: LoadedModel) -> None:
        """Go on with the counts of the same package, loaded earlier: a reload or a sleep is no new model."""
        self.statistics = earlier.statistics

    def when_closed(self, call: Callable[[], None]) -> None:
        """Let ``call`` be made once, when the memory has been given back."""
        self._when_closed.append(call)

    def close(self) -> None:
        """Give the memory back, to the system where there is much of it; no inference may follow. Again is no harm."""
        try:
            self._open.pop()
        except IndexError:
            return  # another thread saw the last lease end as well
        try:
            self.backend.close()
        finally:  # a driver that has failed may fail here too: nobody must count on what is closed
            if self.memory_bytes >= LARGE_BYTES:
                give_back()
            for call in self._when_closed:
                call()


def load(
    package: Package,
    *,
    variant: str = FULL_PRECISION,
    threads: int = 1,
    cache: OptimisedModels | None = None,
    slots: ModelSource | None = None,
    guard: RunGuard | None = None,
    runtime: OtherRuntime | None = None,
) -> LoadedModel:
    """Load a package, read its profile, warm it up, and measure its memory and whether it may run inline.

    Args:
        variant: Which of its forms; a pipeline has none.
        threads: Threads within one inference.
        cache: Where optimised models are kept.
        slots: Where a pipeline finds its steps.
        guard: Breaks off what hangs; one of its own where None.
        runtime: Another one to load it on, which may raise what it likes; threads and cache do not concern it.
    Raises:
        PackageError: The package lacks a part or, as ModelLoadFailed, the runtime refuses the model.
        ModelUnavailable: It is a pipeline, and a step is not loaded here.
    """
    take_own_memory()
    give_back()  # else what others have freed would be counted as room that this model did not take
    before = resident_bytes()
    backend = runtime.open() if runtime is not None else _backend(package, variant, threads, cache, slots)
    try:
        # What runs elsewhere is made of other forms of the model, and held against what fp32 answered.
        loaded = LoadedModel(package=package, backend=backend, variant=variant if runtime is None else FULL_PRECISION)
        golden = loaded.golden()
        if runtime is not None:
            loaded.runtime, loaded.tolerance = runtime.told, runtime.tolerance
        elif package.manifest.pipeline:
            loaded.runtime = ReportedRuntime(name="pipeline")
        elif variant != FULL_PRECISION:
            loaded.runtime = ReportedRuntime(name=CPU, precision=variant)
            if golden_file(variant) in package.manifest.files:
                loaded.tolerance = _coarse(package, golden)
        # A profile that does not fit its own model is refused now, not when the first rows are counted.
        count_batch(loaded.reference.features, _numbers(golden.inputs), _numbers(golden.outputs))
        with (guard or RunGuard()).within(backend, package.manifest.max_run_s):
            _warm_up(loaded, golden)
            check_batchable(backend, loaded.check, package.manifest, golden)
            loaded.run_us = _median_us(loaded, golden)
            loaded.row_bytes = {name: rows[:1].nbytes for name, rows in golden.inputs.items()}
            longest_us = INLINE_LIMIT_US if available() > 1 else ALONE_LIMIT_US
            loaded.inline = loaded.run_us < longest_us
            loaded.together = rows_together(
                backend, loaded.check, package.manifest, golden, run_us=loaded.run_us, longest_us=longest_us
            )
            if isinstance(backend, OnnxBackend):
                backend.usual_rows = loaded.together
    except BaseException:
        backend.close()
        raise
    give_back()
    # Others work meanwhile, and free memory too: a model takes what its weights take at least.
    loaded.memory_bytes = max(resident_bytes() - before, weights_bytes(package, variant))
    loaded.last_used = time.monotonic()
    return loaded


def weights_bytes(package: Package, variant: str = FULL_PRECISION) -> int:
    """Bytes of a variant's model and weights on disk; 0 for a pipeline."""
    form = package.manifest.variants.get(variant)
    return sum(package.manifest.files[name].size_bytes for name in (form.model, *form.data)) if form else 0


def _coarse(package: Package, golden: Golden) -> Tolerance:
    """How far a quantised form may be from its own answers: one step of rounding, another processor's, is no fault.

    What it is off from full precision anyway is the measure: it was judged with that.
    """
    output = package.manifest.task.output
    full = package.golden().outputs[output].astype(np.float64)
    deviation = float(np.abs(golden.outputs[output] - full).max(initial=0.0))
    return Tolerance(rtol=_COARSE, atol=min(max(_COARSE, deviation), _COARSEST))


def _backend(
    package: Package, variant: str, threads: int, cache: OptimisedModels | None, slots: ModelSource | None
) -> InferenceBackend:
    if not package.manifest.pipeline:
        return OnnxBackend(package, variant=variant, threads=threads, cache=cache)
    # Only here: a pipeline leases other loaded models.
    from edge_agent.runtime.pipeline import PipelineBackend

    if slots is None:
        raise ModelUnavailable(f"pipeline '{package.manifest.name}' runs models of a device: load it where they serve")
    for step in package.manifest.pipeline:
        _require_step(package.manifest.name, slots, step)
    return PipelineBackend(package, slots)


def _require_step(pipeline: str, slots: ModelSource, step: PipelineStep) -> None:
    try:
        slots.get(step.model, step.version)
    except (UnknownModel, ModelUnavailable) as error:
        raise ModelUnavailable(f"pipeline '{pipeline}' needs its step '{step.model}': {error}") from error


def _warm_up(loaded: LoadedModel, golden: Golden) -> None:
    """Run one row, the golden rows, and as many as each preferred batch has: the first run of a shape is the slowest.

    One row comes first, as the runtime never gives back what its first run takes (unlike what later ones add).
    """
    rows = len(next(iter(golden.inputs.values())))
    batching = loaded.manifest.batching
    sizes = dict.fromkeys((1, rows, *(batching.preferred_rows if batching else ())))
    for size in sizes:
        inputs = {name: np.resize(array, (size, *array.shape[1:])) for name, array in golden.inputs.items()}
        try:
            loaded.backend.infer(loaded.check(inputs).inputs)
        except Exception:  # noqa: BLE001 - the self-test runs the same rows, and says what is wrong
            return


def _numbers(tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {name: array for name, array in tensors.items() if array.dtype.kind != "O"}


def _median_us(loaded: LoadedModel, golden: Golden, *, runs: int = 15, budget_s: float = 0.5) -> float:
    """Median time of one inference of one row, after one to warm up."""
    times: list[float] = []
    until = time.monotonic() + budget_s
    try:
        # As the model sees it: golden rows are as an application sends them.
        row = loaded.check({name: array[:1] for name, array in golden.inputs.items()}).inputs
        for _ in range(runs + 1):
            begin = time.perf_counter()
            loaded.backend.infer(row)
            times.append((time.perf_counter() - begin) * 1e6)
            if time.monotonic() > until:
                break
    except Exception:  # noqa: BLE001 - the self-test says what is wrong; until then it is just not fast
        return float("inf")
    measured = sorted(times[1:] or times)
    return measured[len(measured) // 2]
