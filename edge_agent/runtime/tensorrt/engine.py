"""An engine read from its plan: its tensors, its profiles, and whether they fit the model's signature."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.errors import EngineBuildFailed, storage_error
from edge_agent.contract.signature import Signature, TensorSpec
from edge_agent.contract.tensors import Datatype
from edge_agent.runtime.backend import BeyondRuntime
from edge_agent.runtime.tensorrt.bindings import Bindings

_log = logging.getLogger(__name__)

Shape = tuple[int, ...]

# What TensorRT does not have, as (the signature's, the engine's): integers are looked at, as they may not fit. All
# other pairs must be equal, or widen without loss.
_NARROWED_INPUTS = frozenset({("<f8", "<f4"), ("<f8", "<f2"), ("<f4", "<f2"), ("<i8", "<i4"), ("<u4", "<i4")})
_NARROWED_OUTPUTS = frozenset({("<f2", "<f4")})
_LINES_KEPT = 4


@dataclasses.dataclass(frozen=True, slots=True)
class EngineTensor:
    """An input or output of an engine.

    Args:
        dtype: What the engine takes or gives, which need not be what the signature says.
        asked: The signature's dtype; None for an output that the signature does not name.
        shape: -1 is dynamic.
    """

    name: str
    is_input: bool
    dtype: np.dtype[Any]
    asked: np.dtype[Any] | None
    shape: Shape

    def size_bytes(self, shape: Shape) -> int:
        """Bytes of it in a shape."""
        return math.prod(shape) * self.dtype.itemsize

    def write(self, array: NDArray[Any], into: NDArray[Any]) -> None:
        """Copy a request's array to where the engine reads it.

        Raises:
            BeyondRuntime: A value does not fit the engine's smaller integers.
        """
        if array.dtype == into.dtype:
            np.copyto(into, array)
            return
        if into.dtype.kind == "i" and array.dtype.itemsize >= into.dtype.itemsize:
            limits = np.iinfo(into.dtype)
            if array.size and (int(array.max()) > limits.max or int(array.min()) < limits.min):
                raise BeyondRuntime(
                    f"input '{self.name}': the engine takes {into.dtype} in place of {array.dtype}, and a value is "
                    f"beyond {limits.min} to {limits.max}"
                )
        with np.errstate(over="ignore"):  # what is beyond half precision is infinite in it
            np.copyto(into, array, casting="unsafe")

    def read(self, array: NDArray[Any]) -> NDArray[Any]:
        """A copy of what the engine wrote, as the signature says; owned by the caller."""
        with np.errstate(over="ignore"):
            return array.astype(self.asked or self.dtype, copy=True)


class EngineLog:
    """TensorRT's log: to ours, and its last errors for an exception's text. Called from any thread."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._errors: collections.deque[str] = collections.deque(maxlen=_LINES_KEPT)

    def __call__(self, severity: str, line: str) -> None:
        """Take one line."""
        if severity == "error":
            self._errors.append(line.strip())
        _log.debug("%s: %s: %s", self.name, severity, line)

    def why(self) -> str:
        """The errors since the last call, to be put behind a sentence."""
        errors: list[str] = []
        with contextlib.suppress(IndexError):  # one by one: TensorRT's threads add to it meanwhile
            while True:
                errors.append(self._errors.popleft())
        return f": {'; '.join(errors)}" if errors else ""


class Engine:
    """A deserialised engine; made, used and closed on a thread that the GPU is current to.

    Args:
        plan: Its file.
        signature: Of the package.
    Attributes:
        tensors: Inputs in the signature's order, then outputs in its order, then outputs that it does not name.
        profiles: By number: of each input the smallest shape and the largest.
        plan_bytes: Of the plan; the weights take about as much of the GPU's memory.
    Raises:
        EngineBuildFailed: TensorRT refuses the plan, or it is not an engine of this model.
        StorageNotWritable, DeviceError: The plan cannot be read.
    """

    def __init__(self, plan: Path, signature: Signature, bindings: Bindings) -> None:
        self.bindings, self.log = bindings, EngineLog(plan.name)
        data = _read(plan)
        self.plan_bytes = len(data)
        # Both outlive the engine: it calls the one, and was made by the other.
        self._logger = bindings.new_logger(self.log)
        bindings.register_plugins(self._logger)
        self._runtime = bindings.trt.Runtime(self._logger)
        try:
            self.native: Any = bindings.deserialise(self._runtime, data)
        except EngineBuildFailed as error:
            raise EngineBuildFailed(f"{plan}: {error}{self.log.why()}", is_final=error.is_final) from error
        self.tensors = self._tensors(plan, signature)
        self.inputs = tuple(tensor for tensor in self.tensors if tensor.is_input)
        self.outputs = tuple(tensor for tensor in self.tensors if not tensor.is_input)
        self.profiles = tuple(self._profile(index) for index in range(self.native.num_optimization_profiles))

    def profile_for(self, shapes: Mapping[str, Shape]) -> int | None:
        """The profile with the smallest largest shapes that takes these, which is the one made for them."""
        fitting = [
            index
            for index, profile in enumerate(self.profiles)
            if all(_is_within(shape, *profile[name]) for name, shape in shapes.items())
        ]
        return min(fitting, key=self._volume, default=None)

    @property
    def most_rows(self) -> int:
        """Rows of the largest request that runs in one go."""
        return max(min(most[0] for _, most in profile.values()) for profile in self.profiles)

    @property
    def scratch_bytes(self) -> int:
        """Scratch memory that suffices for every profile."""
        return max(self.bindings.scratch_bytes(self.native, index) for index in range(len(self.profiles)))

    def close(self) -> None:
        """Let go of it; contexts are let go of before."""
        self.native = self._runtime = self._logger = None

    def _volume(self, index: int) -> int:
        return sum(math.prod(most) for _, most in self.profiles[index].values())

    def _profile(self, index: int) -> dict[str, tuple[Shape, Shape]]:
        shapes: dict[str, tuple[Shape, Shape]] = {}
        for tensor in self.inputs:
            found = [tuple(shape) for shape in self.native.get_tensor_profile_shape(tensor.name, index)]
            # Nothing of use for an input without open axes, in some versions.
            is_said = len(found) == 3 and len(found[0]) == len(tensor.shape)
            shapes[tensor.name] = (found[0], found[2]) if is_said else (tensor.shape, tensor.shape)
        return shapes

    def _tensors(self, plan: Path, signature: Signature) -> tuple[EngineTensor, ...]:
        native, trt = self.native, self.bindings.trt
        names = [native.get_tensor_name(index) for index in range(native.num_io_tensors)]
        inputs = [name for name in names if native.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        if sorted(inputs) != sorted(spec.name for spec in signature.inputs):
            wanted = sorted(spec.name for spec in signature.inputs)
            raise EngineBuildFailed(f"{plan}: the engine's inputs are {sorted(inputs)}, the manifest's {wanted}")
        outputs = [name for name in names if name not in inputs]
        found = []
        for spec in (*signature.inputs, *signature.outputs):
            is_input = spec in signature.inputs
            if not is_input and spec.name not in outputs:
                raise EngineBuildFailed(f"{plan}: the engine has no output '{spec.name}'; it has: {sorted(outputs)}")
            found.append(self._tensor(spec.name, is_input=is_input, spec=spec))
        known = {tensor.name for tensor in found}
        return (*found, *(self._tensor(name, is_input=False, spec=None) for name in outputs if name not in known))

    def _tensor(self, name: str, *, is_input: bool, spec: TensorSpec | None) -> EngineTensor:
        native, trt = self.native, self.bindings.trt
        side = "input" if is_input else "output"
        if native.get_tensor_location(name) != trt.TensorLocation.DEVICE or native.is_shape_inference_io(name):
            raise _unfit(f"{side} '{name}' decides shapes, and lies in host memory")
        if native.get_tensor_format(name) != trt.TensorFormat.LINEAR:
            raise _unfit(f"{side} '{name}' is not laid out row by row, but as {native.get_tensor_format(name)}")
        dtype = self.bindings.numpy_dtype(native.get_tensor_dtype(name))
        if spec is not None and spec.datatype is Datatype.BYTES:
            raise _unfit(f"{side} '{name}' is text, which TensorRT does not take")
        asked = spec.datatype.numpy if spec is not None else None
        if asked is not None and not _is_convertible(asked, dtype, is_input=is_input):
            raise _unfit(f"{side} '{name}' is {asked} in the manifest and {dtype} in the engine")
        return EngineTensor(name, is_input, dtype, asked, tuple(native.get_tensor_shape(name)))


def _is_convertible(asked: np.dtype[Any], dtype: np.dtype[Any], *, is_input: bool) -> bool:
    narrowed = _NARROWED_INPUTS if is_input else _NARROWED_OUTPUTS
    widens = np.can_cast(asked, dtype, "safe") if is_input else np.can_cast(dtype, asked, "safe")
    return widens or (asked.str, dtype.str) in narrowed


def _is_within(shape: Shape, least: Shape, most: Shape) -> bool:
    return len(shape) == len(most) and all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True))


def _unfit(text: str) -> EngineBuildFailed:
    return EngineBuildFailed(f"the engine cannot serve this model: {text}", is_final=True)


def _read(plan: Path) -> bytes:
    try:
        return plan.read_bytes()
    except OSError as error:
        raise storage_error(error, str(plan)) or EngineBuildFailed(f"{plan}: {error.strerror}") from error
