"""Models on TensorRT: the package's signature outside, an engine on the GPU inside."""

from __future__ import annotations

import itertools
import logging
import mmap
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.checking import InputCheck
from edge_agent.contract.errors import AcceleratorUnavailable, EngineBuildFailed, ManifestError, ModelFailed
from edge_agent.contract.manifest import Batching
from edge_agent.contract.signature import Signature
from edge_agent.runtime.backend import BeyondRuntime, RunCancelled
from edge_agent.runtime.batchable import check_batchable
from edge_agent.runtime.gpu.device_memory import DeviceMemory
from edge_agent.runtime.gpu.owner import GpuOwner, Pending
from edge_agent.runtime.package import Package
from edge_agent.runtime.tensorrt.bindings import Bindings
from edge_agent.runtime.tensorrt.engine import Engine, Shape
from edge_agent.runtime.tensorrt.execution import Lane, Shaped
from edge_agent.runtime.tensorrt.lanes import Awaited, LanePool, Wish

Arrays = dict[str, NDArray[Any]]

# How a node of these operators looks in an ONNX file (NodeProto.op_type): what it takes depends on the values.
_LOOPS = (b'"\x04Loop', b'"\x04Scan')

_log = logging.getLogger(__name__)


class GraphCounts(NamedTuple):
    """CUDA graphs of a model: those captured, and the streams on which they could not be."""

    captured: int
    refused: int


class TensorRtBackend:
    """A package's model as a TensorRT engine.

    Requests of more rows than the engine's largest profile run in several parts, if rows do not depend on each other.

    Args:
        plan: The engine's file.
        owner: Of the GPU; runs are enqueued there.
        loader: A second owner of the same GPU, to read the engine and allocate on: else the GPU has nothing to do for
            other models meanwhile. The same ``owner`` where None.
        streams: Requests that may be on the GPU at once; each has buffers and scratch memory of its own.
        graphs: Whether runs are captured as CUDA graphs, by shape, where they can be.
    Raises:
        EngineBuildFailed: TensorRT refuses the plan, it is no engine for this model, or does not run on zeros; final
            where another would be refused as well.
        GpuMemoryExhausted: There is no room on the GPU.
        AcceleratorUnavailable: The GPU cannot be opened.
    """

    platform = "tensorrt_plan"

    def __init__(
        self,
        package: Package,
        plan: Path,
        *,
        bindings: Bindings,
        owner: GpuOwner,
        loader: GpuOwner | None = None,
        streams: int = 1,
        graphs: bool = False,
    ) -> None:
        self.signature: Signature = package.manifest.signature
        self._package, self._owner, self._loader = package, owner, loader or owner
        self._may_loop = _has_loops(package)
        self._rows_are_independent: bool | None = True if package.manifest.batching is not None else None
        self._names = tuple(spec.name for spec in self.signature.inputs)
        self._wish = Wish()
        self._lock = threading.Lock()
        self._engine, self._lanes = self._loader.call(
            lambda memory: _open(memory, plan, self.signature, bindings, max(1, streams), graphs=graphs)
        )
        self._open_lanes = len(self._lanes)
        self._most_rows = self._engine.most_rows
        self._pool = LanePool(self._lanes, dispose=self._dispose)

    @property
    def gpu_bytes(self) -> int:
        """Memory that it takes of the GPU: the weights (as large as the plan, about), buffers, scratch."""
        return self._engine.plan_bytes + sum(lane.size_bytes for lane in self._lanes)

    @property
    def graph_counts(self) -> GraphCounts:
        """What became of CUDA graphs."""
        counts = [lane.graph_counts for lane in self._lanes]
        return GraphCounts(sum(each[0] for each in counts), sum(each[1] for each in counts))

    def infer(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """Run one batch; see :class:`edge_agent.runtime.backend.InferenceBackend`.

        Raises:
            RunCancelled: ``cancel`` was called; the GPU goes on with the run, unseen.
            BeyondRuntime: A value or shape is beyond what the engine takes.
            ModelFailed: TensorRT refuses it.
            ModelUnavailable: The model was closed.
            AcceleratorUnavailable: The GPU was let go of.
            RuntimeError: The GPU failed.
        """
        if len(inputs) != len(self._names):
            raise ModelFailed(f"the model takes {len(self._names)} inputs, got {sorted(inputs)}")
        wish = self._wish
        rows = len(inputs[self._names[0]])
        if 0 < rows <= self._most_rows:
            return self._infer_part(inputs, wish)
        if not rows:
            return self._no_rows(inputs, wish)
        self._require_independent_rows(rows)
        parts = -(-rows // self._most_rows)
        # Of nearly equal length: a last part of one row would cost as much as a whole one.
        bounds = [rows * part // parts for part in range(parts + 1)]
        answers = [
            self._infer_part({name: inputs[name][begin:end] for name in self._names}, wish)
            for begin, end in itertools.pairwise(bounds)
        ]
        return {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}

    def execute_us(self, inputs: Mapping[str, NDArray[Any]]) -> float:
        """Microseconds of the GPU's own clock for TensorRT's part of a run, without copies: what no caller can beat."""
        wish = self._wish
        lane = self._pool.take(wish)
        try:
            shaped = self._shaped(lane, inputs)
            shaped.write(inputs)

            def start(_: DeviceMemory) -> Pending[float]:
                begin, end = lane.enqueue_timed(shaped)
                return Pending(end, lambda: end.elapsed_us(begin))

            return self._owner.submit(start)
        finally:
            self._pool.give(lane)

    def cancel(self) -> None:
        """Let the runs in progress end with :class:`RunCancelled`.

        Nothing stops a GPU: a run whose length depends on its inputs is given up on, and its stream is used again once
        it is done; another, whose length is known, ends by itself.
        """
        wish, self._wish = self._wish, Wish()
        wish.is_cancelled = True
        self._pool.wake()

    def close(self) -> None:
        """Give the GPU's memory back; what a run in progress uses, when it has ended."""
        self._pool.close()

    def _infer_part(self, inputs: Mapping[str, NDArray[Any]], wish: Wish) -> Arrays:
        lane = self._pool.take(wish)
        event: Awaited | None = None
        try:
            shaped = self._shaped(lane, inputs)
            shaped.write(inputs)
            patient = shaped.has_run and not self._may_loop

            def start(memory: DeviceMemory) -> Pending[Arrays]:
                nonlocal event
                wish.check()
                event = Awaited(lane.enqueue(memory, shaped), wish, patient=patient)
                return Pending(event, shaped.read)

            answer = self._owner.submit(start)
            shaped.has_run = True
        except RunCancelled:
            if event is not None:
                self._pool.give_up(lane, event)
            else:
                self._pool.give(lane)
            raise
        except BaseException:
            self._pool.give(lane)
            raise
        self._pool.give(lane)
        return answer

    def _shaped(self, lane: Lane, inputs: Mapping[str, NDArray[Any]]) -> Shaped:
        try:
            shapes: dict[str, Shape] = {name: inputs[name].shape for name in self._names}
        except KeyError as error:
            raise ModelFailed(f"the model takes the inputs {list(self._names)}, got {sorted(inputs)}") from error
        return lane.shaped(shapes) or self._owner.call(lambda _: lane.shape(shapes))

    def _no_rows(self, inputs: Mapping[str, NDArray[Any]], wish: Wish) -> Arrays:
        """Nothing, in the shape that one row would have: TensorRT takes no empty tensors."""
        one = {name: np.zeros((1, *inputs[name].shape[1:]), inputs[name].dtype) for name in self._names}
        return {name: array[:0].copy() for name, array in self._infer_part(one, wish).items()}

    def _require_independent_rows(self, rows: int) -> None:
        """Only then may a request be cut up. Where the manifest does not say so, the golden samples tell, once."""
        if self._rows_are_independent is None:
            self._rows_are_independent = self._find_out_independence()
        if not self._rows_are_independent:
            raise BeyondRuntime(
                f"{rows} rows at once: the engine takes {self._most_rows}, and the model's rows may depend on each "
                "other, so that the request cannot be run in parts"
            )

    def _find_out_independence(self) -> bool:
        golden = self._package.golden()
        if len(next(iter(golden.inputs.values()))) < 2:
            return False  # one row alone proves nothing
        manifest = msgspec.structs.replace(self._package.manifest, batching=Batching())
        try:
            check_batchable(self, InputCheck(self.signature), manifest, golden)
        except ManifestError as error:
            _log.info("model '%s': requests are not run in parts: %s", manifest.name, error)
            return False
        return True

    def _dispose(self, lane: Lane) -> None:
        try:
            self._loader.call(lambda _: self._close_lane(lane))
        except AcceleratorUnavailable as error:
            _log.debug("the GPU was let go of before the model: %s", error)  # and all its memory with it

    def _close_lane(self, lane: Lane) -> None:
        lane.close()
        with self._lock:
            self._open_lanes -= 1
            is_last = not self._open_lanes
        if is_last:
            self._engine.close()


def _open(
    memory: DeviceMemory, plan: Path, signature: Signature, bindings: Bindings, streams: int, *, graphs: bool
) -> tuple[Engine, list[Lane]]:
    engine = Engine(plan, signature, bindings)
    lanes: list[Lane] = []
    try:
        for _ in range(streams):
            lanes.append(Lane(memory, engine, graphs=graphs))
            lanes[-1].warm_up()
    except (ModelFailed, RuntimeError) as error:
        _undo(engine, lanes)
        raise EngineBuildFailed(f"{plan}: the engine does not run: {error}") from error
    except BaseException:
        _undo(engine, lanes)
        raise
    return engine, lanes


def _undo(engine: Engine, lanes: list[Lane]) -> None:
    for lane in lanes:
        lane.close()
    engine.close()


def _has_loops(package: Package) -> bool:
    """Whether the time that a run takes may depend on its inputs; too careful where the bytes occur by chance."""
    path = package.path(package.manifest.variants["fp32"].model)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return any(data.find(mark) >= 0 for mark in _LOOPS)
