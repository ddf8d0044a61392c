"""One stream of work on an engine: its contexts, its buffers, and how a request goes through them.

Everything is allocated when it is opened, at the largest shapes of the profiles; a request allocates nothing there.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.errors import EngineBuildFailed, ModelFailed
from edge_agent.runtime.backend import BeyondRuntime
from edge_agent.runtime.gpu.device_memory import Buffer, DeviceMemory, Event, Stream
from edge_agent.runtime.tensorrt.engine import Engine, EngineTensor, Shape
from edge_agent.runtime.tensorrt.graphs import ShapeGraphs

# Shapes that are remembered: each a few views of the buffers.
_SHAPES_KEPT = 64


@dataclasses.dataclass(eq=False)
class Shaped:
    """A request's shapes on one lane: all that need not be found out again.

    Args:
        shapes: Of the inputs, by name.
        profile: Which of the engine's.
        inputs, outputs: By name: the tensor, its buffer, the part of the buffer's host side that it takes.
        has_run: Whether it has run to its end before: what is slow only once is over.
    """

    shapes: dict[str, Shape]
    profile: int
    inputs: dict[str, tuple[EngineTensor, Buffer, NDArray[Any]]]
    outputs: dict[str, tuple[EngineTensor, Buffer, NDArray[Any]]]
    has_run: bool = False

    def write(self, inputs: Mapping[str, NDArray[Any]]) -> None:
        """Copy a request's arrays to the buffers' host side; on the thread of whoever asks."""
        for name, (tensor, _, view) in self.inputs.items():
            tensor.write(inputs[name], view)

    def read(self) -> dict[str, NDArray[Any]]:
        """The answer, copied out; on the thread of whoever asks."""
        return {name: tensor.read(view) for name, (tensor, _, view) in self.outputs.items()}


class Lane:
    """A stream with a context for each profile, and the buffers that they share; one request at a time.

    Made and closed on a thread that the GPU is current to; ``shaped`` and ``enqueue`` are for the thread that owns it.

    Args:
        graphs: Whether runs are recorded as CUDA graphs where the memory's provider can.
    Raises:
        GpuMemoryExhausted: There is no room for its buffers.
        EngineBuildFailed: TensorRT gives no context, or an output's size depends on the values.
    """

    def __init__(self, memory: DeviceMemory, engine: Engine, *, graphs: bool = False) -> None:
        self._engine = engine
        self._stream: Stream = memory.new_stream()
        self._graphs = ShapeGraphs(self, engine) if graphs else None
        self._known: collections.OrderedDict[tuple[Shape, ...], Shaped] = collections.OrderedDict()
        self._set: dict[int, Shaped] = {}  # by profile: whose shapes its context has
        self._contexts: list[Any] = []
        self._buffers: dict[str, Buffer] = {}
        self._scratch: Buffer | None = None
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            if scratch_bytes := engine.scratch_bytes:
                # One for all contexts: a stream runs one of them at a time.
                self._scratch = memory.allocate_device(scratch_bytes)
            self._contexts = [self.new_context(index) for index in range(len(engine.profiles))]
            for tensor, size_bytes in zip(engine.tensors, self._sizes(), strict=True):
                self._buffers[tensor.name] = memory.allocate(max(size_bytes, 1))
            for context in self._contexts:
                self.set_addresses(context)
            self._stream.wait()  # a profile is chosen on the stream
            undo.pop_all()

    @property
    def size_bytes(self) -> int:
        """What it takes of the GPU's memory."""
        scratch = self._scratch.size_bytes if self._scratch is not None else 0
        return scratch + sum(buffer.size_bytes for buffer in self._buffers.values())

    @property
    def graph_counts(self) -> tuple[int, int]:
        """Graphs captured, and runs that could not be."""
        return (self._graphs.captured, self._graphs.refused) if self._graphs is not None else (0, 0)

    def shaped(self, shapes: Mapping[str, Shape]) -> Shaped | None:
        """What is known of these shapes, or None; from the thread that has this lane."""
        key = tuple(shapes.values())
        known = self._known.get(key)
        if known is not None:
            self._known.move_to_end(key)
        return known

    def shape(self, shapes: Mapping[str, Shape]) -> Shaped:
        """Find out what these shapes need.

        Raises:
            BeyondRuntime: No profile takes them.
            ModelFailed: TensorRT refuses them.
        """
        profile = self._engine.profile_for(shapes)
        if profile is None:
            ranges = "; ".join(
                ", ".join(f"{name} {list(least)} to {list(most)}" for name, (least, most) in each.items())
                for each in self._engine.profiles
            )
            raise BeyondRuntime(f"shapes {_listed(shapes)} are outside of what the engine was built for: {ranges}")
        self._set.pop(profile, None)
        context = self._contexts[profile]
        self.set_shapes(context, shapes)
        inputs = {t.name: self._place(t, shapes[t.name]) for t in self._engine.inputs}
        outputs = {
            t.name: self._place(t, tuple(context.get_tensor_shape(t.name)))
            for t in self._engine.outputs
            if t.asked is not None
        }
        shaped = self._set[profile] = Shaped(dict(shapes), profile, inputs, outputs)
        self._known[tuple(shapes.values())] = shaped
        if len(self._known) > _SHAPES_KEPT:
            self._known.popitem(last=False)
        return shaped

    def warm_up(self) -> None:
        """Run the smallest and the largest shapes of each profile on zeros, and wait.

        Kernels are loaded, or with RTX compiled, when they first run: better now than while others wait. And what has
        run at its largest will have the memory for it.

        Raises:
            ModelFailed: TensorRT refuses a run.
            RuntimeError: It failed on the GPU.
        """
        for profile in self._engine.profiles:
            for end in (1, 0):
                shaped = self.shape({name: shapes[end] for name, shapes in profile.items()})
                for _, _, view in shaped.inputs.values():
                    view[...] = 0
                self.run(self._context_of(shaped), shaped)
                self._stream.wait()
                shaped.has_run = True

    def enqueue(self, memory: DeviceMemory, shaped: Shaped) -> Event:
        """Enqueue a request whose inputs are written: copies, the run, copies back.

        Raises:
            ModelFailed: TensorRT refuses the run.
        """
        if self._graphs is None or not self._graphs.enqueue(memory, self._stream, shaped):
            self.run(self._context_of(shaped), shaped)
        return self._stream.record()

    def enqueue_timed(self, shaped: Shaped) -> tuple[Event, Event]:
        """As ``enqueue``, without a graph; events around TensorRT's part alone."""
        context = self._context_of(shaped)
        for _, buffer, view in shaped.inputs.values():
            self._stream.upload(buffer, view.nbytes)
        begin = self._stream.record(timed=True)
        self._execute(context)
        end = self._stream.record(timed=True)
        return begin, end

    def run(self, context: Any, shaped: Shaped) -> None:
        """Enqueue it on a context that has its shapes."""
        stream = self._stream
        for _, buffer, view in shaped.inputs.values():
            stream.upload(buffer, view.nbytes)
        self._execute(context)
        for _, buffer, view in shaped.outputs.values():
            stream.download(buffer, view.nbytes)

    def new_context(self, profile: int) -> Any:
        """A context of this profile that uses the lane's scratch memory.

        Raises:
            EngineBuildFailed: TensorRT gives none.
        """
        engine = self._engine
        try:
            context = engine.bindings.new_context(engine.native, own_scratch=False)
        except EngineBuildFailed as error:
            raise EngineBuildFailed(f"{error}{engine.log.why()}") from error
        if not context.set_optimization_profile_async(profile, self._stream.handle):
            raise EngineBuildFailed(f"TensorRT refuses profile {profile}{engine.log.why()}")
        if self._scratch is not None:
            context.set_device_memory(self._scratch.device_address, self._scratch.size_bytes)
        return context

    def set_addresses(self, context: Any) -> None:
        """Where the context finds its tensors, for good."""
        for name, buffer in self._buffers.items():
            if not context.set_tensor_address(name, buffer.device_address):
                raise EngineBuildFailed(f"TensorRT refuses the address of '{name}'{self._engine.log.why()}")

    def set_shapes(self, context: Any, shapes: Mapping[str, Shape]) -> None:
        """Give a context its inputs' shapes.

        Raises:
            ModelFailed: It refuses them.
        """
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise ModelFailed(f"TensorRT refuses {list(shape)} for input '{name}'{self._engine.log.why()}")

    def close(self) -> None:
        """Give everything back; the work on it is done."""
        self._known.clear()
        self._set.clear()
        if self._graphs is not None:
            self._graphs.close()
        self._contexts = []
        for buffer in self._buffers.values():
            buffer.close()
        self._buffers = {}
        if self._scratch is not None:
            self._scratch.close()
            self._scratch = None
        self._stream.close()

    def _context_of(self, shaped: Shaped) -> Any:
        context = self._contexts[shaped.profile]
        if self._set.get(shaped.profile) is not shaped:
            self._set.pop(shaped.profile, None)
            self.set_shapes(context, shaped.shapes)
            self._set[shaped.profile] = shaped
        return context

    def _execute(self, context: Any) -> None:
        if not context.execute_async_v3(self._stream.handle):
            raise ModelFailed(f"TensorRT could not run the model{self._engine.log.why()}")

    def _place(self, tensor: EngineTensor, shape: Shape) -> tuple[EngineTensor, Buffer, NDArray[Any]]:
        buffer = self._buffers[tensor.name]
        size_bytes = tensor.size_bytes(shape)
        if -1 in shape or size_bytes > buffer.size_bytes:
            raise ModelFailed(f"'{tensor.name}' has shape {list(shape)}, its buffer {buffer.size_bytes} bytes")
        return tensor, buffer, np.ndarray(shape, tensor.dtype, buffer=buffer.host[:size_bytes])

    def _sizes(self) -> list[int]:
        """Bytes of each tensor at its largest, over all profiles."""
        sizes = [0] * len(self._engine.tensors)
        for profile, context in zip(self._engine.profiles, self._contexts, strict=True):
            largest = {name: most for name, (_, most) in profile.items()}
            self.set_shapes(context, largest)
            for index, tensor in enumerate(self._engine.tensors):
                shape = largest[tensor.name] if tensor.is_input else tuple(context.get_tensor_shape(tensor.name))
                if -1 in shape:
                    raise EngineBuildFailed(
                        f"the engine cannot serve this model: the size of output '{tensor.name}' depends on the "
                        f"values of its inputs, {list(shape)} for the largest: nothing could be allocated beforehand",
                        is_final=True,
                    )
                sizes[index] = max(sizes[index], tensor.size_bytes(shape))
        return sizes


def _listed(shapes: Mapping[str, Shape]) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
