"""Tensors as raw bytes: little-endian, row-major ("Binary Tensor Data Extension", OIP v2). Pure."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.errors import MalformedRequest, MessageError, SignatureMismatch
from edge_agent.contract.signature import Signature, TensorSpec
from edge_agent.contract.tensors import Datatype, pack_bytes, unpack_bytes

Buffer = bytes | bytearray | memoryview

MAX_AXES = 32


def read_binary(name: str, datatype: Datatype, shape: tuple[int, ...], data: memoryview) -> NDArray[Any]:
    """The array in raw bytes: a view on them where it can be one, read-only or not as they are.

    Args:
        shape: Every axis at least 1.
    Raises:
        SignatureMismatch: They do not fill the shape.
    """
    if datatype is Datatype.BYTES:
        try:
            return unpack_bytes(data, math.prod(shape)).reshape(shape)
        except MessageError as error:
            raise SignatureMismatch(name, rule="shape", detail=f"shape {list(shape)}: {error}") from error
    dtype = datatype.numpy
    check_size(name, datatype, shape, len(data))
    if datatype is Datatype.BOOL:  # any byte but 0 is true; numpy's own bytes must be 0 or 1
        return np.not_equal(np.frombuffer(data, dtype=np.uint8), 0).reshape(shape)
    flat = np.frombuffer(data, dtype)
    if not flat.flags.aligned:  # not every processor reads floats at odd addresses; 30 us for 600 KB, flat as it is
        flat = flat.copy()
    return flat.reshape(shape)


def check_axes(name: str, shape: tuple[int, ...], *, max_rows: int) -> None:
    """Refuse a shape that no tensor of a request can have.

    Args:
        max_rows: Most rows, which axis 0 counts.
    Raises:
        SignatureMismatch: Too many axes, none, or an empty one.
        MalformedRequest: Too many rows.
    """
    if not 0 < len(shape) <= MAX_AXES or min(shape) < 1:
        detail = f"needs 1 to {MAX_AXES} axes, each at least 1, got {list(shape[: MAX_AXES + 1])}"
        raise SignatureMismatch(name, rule="shape", detail=detail)
    if shape[0] > max_rows:
        raise MalformedRequest(
            f"input '{name}': {shape[0]} rows, the limit is {max_rows} (max_rows under [api] in the agent's settings): "
            "send fewer rows per request"
        )


def check_size(name: str, datatype: Datatype, shape: tuple[int, ...], size: int) -> None:
    """Refuse another number of bytes than the shape takes; any number passes for BYTES.

    Raises:
        SignatureMismatch: It is another one.
    """
    if datatype is Datatype.BYTES:
        return
    expected = math.prod(shape) * datatype.numpy.itemsize
    if size != expected:
        detail = f"{datatype.value} of shape {list(shape)} needs {expected} bytes, got {size}"
        raise SignatureMismatch(name, rule="shape", detail=detail)


def check_shape(name: str, shape: tuple[int, ...], signature: Signature) -> None:
    """What the check against the signature would refuse anyway, before memory is spent on it.

    Raises:
        SignatureMismatch: The model has no such input, or one of another shape.
    """
    spec = signature.input(name)
    same_axes = len(spec.shape) == len(shape)
    if not same_axes or any(want not in (None, have) for want, have in zip(spec.shape, shape, strict=True)):
        expected = ", ".join("-1" if axis is None else str(axis) for axis in spec.shape)
        raise SignatureMismatch(name, rule="shape", detail=f"expected [{expected}], got {list(shape)}")


def write_binary(array: NDArray[Any], datatype: Datatype) -> Buffer:
    """The raw bytes of an array: its own memory where that is in order."""
    if datatype is Datatype.BYTES:
        return pack_bytes(array)
    # Flat it may still be every other element of a larger array, or big-endian.
    return np.ascontiguousarray(array.reshape(-1), datatype.numpy).view(np.uint8).data


def read_raw_body(body: Buffer, signature: Signature) -> tuple[TensorSpec, NDArray[Any]]:
    """The one input in a body without JSON; its shape follows from the signature, with at most one dynamic axis.

    Raises:
        MalformedRequest: The model has several inputs.
        SignatureMismatch: The body does not fill the input's shape.
    """
    if len(signature.inputs) != 1:
        raise MalformedRequest(f"a raw body needs a model of one input, this one has {len(signature.inputs)}")
    spec = signature.inputs[0]
    size = spec.datatype.size_bytes
    if size is None:  # the whole body is one element
        element = np.empty(1, dtype=object)
        element[0] = bytes(body)
        return spec, element.reshape((1,) * len(spec.shape))
    return spec, read_binary(spec.name, spec.datatype, _raw_shape(spec, len(body), size), memoryview(body))


def _raw_shape(spec: TensorSpec, body_bytes: int, size: int) -> tuple[int, ...]:
    fixed = size * math.prod(axis for axis in spec.shape if axis is not None)
    if spec.shape.count(None) > 1:
        raise SignatureMismatch(spec.name, rule="shape", detail="has several dynamic axes: send its shape in JSON")
    if body_bytes == 0 or body_bytes % fixed or (None not in spec.shape and body_bytes != fixed):
        raise SignatureMismatch(spec.name, rule="shape", detail=f"a row has {fixed} bytes, the body {body_bytes}")
    return tuple(body_bytes // fixed if axis is None else axis for axis in spec.shape)
