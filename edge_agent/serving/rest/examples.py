"""Requests that work, built from a signature's bounds: for people, for generated clients, and for the page to send.

Golden samples give the sizes of open axes only. Their values are data that the model was made from, and may be
somebody's.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.constraint import Constraint
from edge_agent.contract.errors import PackageError, SignatureMismatch
from edge_agent.contract.signature import TensorSpec
from edge_agent.contract.tensors import Datatype
from edge_agent.runtime.slots import LoadedModel

# As JSON about 30 KB; longer examples have an address of their own.
INLINE_ELEMENTS = 4096
_TEXT = "example"


def example_request(loaded: LoadedModel) -> dict[str, Any] | None:
    """A JSON request of one row that the model answers; None where JSON cannot carry one (encoded images).

    It is a probe: the agent neither counts nor samples it.
    """
    sizes = _golden_shapes(loaded)
    inputs: list[dict[str, Any]] = []
    for spec in loaded.signature.inputs:
        value = example_value(spec)
        if value is None:
            return None
        shape = _shape(spec, sizes.get(spec.name))
        count = math.prod(shape)
        tensor = {"name": spec.name, "datatype": spec.datatype.value, "shape": shape, "data": [value] * count}
        inputs.append(tensor)
    request = {"id": "example", "parameters": {"monitor": False}, "inputs": inputs}
    return request if _satisfies(request, loaded) else None


def elements(request: Mapping[str, Any]) -> int:
    """Elements of all inputs of an example."""
    return sum(len(tensor["data"]) for tensor in request["inputs"])


def example_value(spec: TensorSpec) -> float | str | None:
    """A value that an element of ``spec`` may have; None where JSON has none."""
    limits = spec.constraint
    if limits.allowed:
        value = limits.allowed[0]
        if isinstance(value, str):
            return value
        kind = spec.datatype.numpy.kind
        return bool(value) if kind == "b" else int(value) if kind in "iu" else value
    if spec.datatype is Datatype.BYTES:
        return _text(limits)
    if spec.datatype is Datatype.BOOL:
        return True
    return _middle(spec)


def _middle(spec: TensorSpec) -> float:
    """Half way between the bounds, or the bound there is, or 0."""
    low, high = spec.constraint.minimum, spec.constraint.maximum
    if low is not None and high is not None:
        value = low / 2 + high / 2
    elif low is not None:
        value = max(low, 0.0)
    elif high is not None:
        value = min(high, 0.0)
    else:
        value = 0.0
    if spec.datatype.numpy.kind in "iu":
        whole = math.floor(value)
        return whole if low is None or whole >= low else math.ceil(value)
    return float(np.float32(value)) if spec.datatype is not Datatype.FP64 else value


def _text(limits: Constraint) -> str | None:
    if limits.image is not None:
        return None
    if limits.date is not None:
        noon = dt.datetime(2026, 3, 2, 12, tzinfo=dt.timezone.utc)
        return noon.strftime("%Y-%m-%dT%H:%M:%SZ" if limits.date.format == "iso8601" else limits.date.format)
    if limits.number is not None:
        number = f"{_between(limits):g}"
        return number.replace(".", limits.number.decimal)
    shortest = limits.min_length or 0
    text = _TEXT if len(_TEXT) >= shortest else _TEXT.ljust(shortest, "x")
    return text if limits.max_length is None else text[: limits.max_length]


def _between(limits: Constraint) -> float:
    low = limits.minimum if limits.minimum is not None else min(0.0, limits.maximum or 0.0)
    high = limits.maximum if limits.maximum is not None else max(low, 1.0)
    return low / 2 + high / 2


def _shape(spec: TensorSpec, golden: tuple[int, ...] | None) -> list[int]:
    """One row; open axes as long as the golden samples have them, within their limits."""
    lowest = {limit.axis: limit.minimum for limit in spec.constraint.axes}
    shape: list[int] = []
    for index, axis in enumerate(spec.shape):
        if axis is not None:
            shape.append(axis)
        elif index == 0 or golden is None:
            shape.append(lowest.get(index, 1))
        else:
            shape.append(golden[index])
    return shape


def _golden_shapes(loaded: LoadedModel) -> dict[str, tuple[int, ...]]:
    if all(axis is not None for spec in loaded.signature.inputs for axis in spec.shape[1:]):
        return {}
    try:
        return {name: array.shape for name, array in loaded.package.golden().inputs.items()}
    except PackageError:
        return {}  # a pipeline need not have any


def _satisfies(request: Mapping[str, Any], loaded: LoadedModel) -> bool:
    try:
        loaded.check({tensor["name"]: _array(tensor) for tensor in request["inputs"]})
    except SignatureMismatch:
        return False
    return True


def _array(tensor: Mapping[str, Any]) -> NDArray[Any]:
    data = tensor["data"]
    datatype = Datatype(tensor["datatype"])
    if datatype is Datatype.BYTES:
        data = [text.encode() for text in data]
    array: NDArray[Any] = np.array(data, dtype=datatype.numpy)
    return array.reshape(tuple(tensor["shape"]))
