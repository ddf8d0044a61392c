"""Tensor data in JSON: nested or flat lists to arrays and back ("Tensor Data", OIP v2). Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.errors import MalformedRequest, SignatureMismatch
from edge_agent.contract.tensors import Datatype

_LISTS: Mapping[str, Any] = {
    "f": list[float | None],
    "i": list[int],
    "u": list[int],
    "b": list[bool],
    "O": list[str],
}
# Flat lists without nulls, by kind of dtype: what nearly every request sends.
_FLAT: Mapping[str, msgspec.json.Decoder[Any]] = {
    "f": msgspec.json.Decoder(list[float]),
    "i": msgspec.json.Decoder(list[int]),
    "u": msgspec.json.Decoder(list[int]),
    "b": msgspec.json.Decoder(list[bool]),
    "O": msgspec.json.Decoder(list[str]),
}
_DEEPEST = 32


def read_json(name: str, datatype: Datatype, shape: tuple[int, ...], data: msgspec.Raw) -> NDArray[Any]:
    """The array in an input's ``data``.

    Args:
        shape: Every axis at least 1.
        data: A JSON list of numbers, booleans or text, nested as the shape says or flat; null is NaN for floats.
    Raises:
        SignatureMismatch: An element is not of the datatype, or there are more or fewer than the shape holds.
    """
    try:
        values = _FLAT[datatype.numpy.kind].decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        values = _flatten(name, datatype, data)
    count = math.prod(shape)
    if len(values) != count:
        raise SignatureMismatch(
            name, rule="shape", detail=f"shape {list(shape)} needs {count} elements, data has {len(values)}"
        )
    return _array(name, datatype, values).reshape(shape)


def write_json(name: str, array: NDArray[Any]) -> list[Any]:
    """The elements of an output as a flat list; NaN and infinities become null on encoding.

    Raises:
        MalformedRequest: A BYTES element is no UTF-8 text, which is all that JSON can hold.
    """
    if array.dtype.kind != "O":
        return list(array.ravel().tolist())
    try:
        return [element.decode() for element in array.ravel()]
    except UnicodeDecodeError as error:
        raise MalformedRequest(f"output '{name}' is no UTF-8 text: ask for it with binary_data: true") from error


def _array(name: str, datatype: Datatype, values: list[Any]) -> NDArray[Any]:
    dtype = datatype.numpy
    if datatype is Datatype.BYTES:
        out = np.empty(len(values), dtype=object)
        out[:] = [text.encode() for text in values]
        return out
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        wrong = next((value for value in values if not limits.min <= value <= limits.max), None)
        if wrong is not None:
            raise SignatureMismatch(name, rule="datatype", detail=f"value {wrong} does not fit in {datatype.value}")
    if dtype.kind == "f" and dtype.itemsize < 8:
        with np.errstate(over="ignore"):
            narrow = np.array(values, dtype=np.float64).astype(dtype)
        if np.isinf(narrow).any():
            raise SignatureMismatch(name, rule="datatype", detail=f"a value does not fit in {datatype.value}")
        return narrow
    return np.array(values, dtype=dtype)


def _flatten(name: str, datatype: Datatype, data: msgspec.Raw) -> list[Any]:
    """The slow way, for nested lists and nulls, and to say precisely what is wrong."""
    flat: list[Any] = []
    try:
        _collect(name, msgspec.json.decode(data), flat, depth=0)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SignatureMismatch(name, rule="datatype", detail=f"{datatype.value}: {error}") from error
    try:
        values: list[Any] = msgspec.convert(flat, _LISTS[datatype.numpy.kind])
    except msgspec.ValidationError as error:
        raise SignatureMismatch(name, rule="datatype", detail=f"{datatype.value}: {error} of the data") from error
    return [math.nan if value is None else value for value in values]


def _collect(name: str, value: Any, flat: list[Any], *, depth: int) -> None:
    if isinstance(value, list):
        if depth >= _DEEPEST:
            raise MalformedRequest(f"input '{name}': data is nested deeper than {_DEEPEST} lists")
        for item in value:
            _collect(name, item, flat, depth=depth + 1)
    elif depth == 0:
        raise MalformedRequest(f"input '{name}': data must be a list, got {type(value).__name__}")
    else:
        flat.append(value)
