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
# As _FLAT, with nulls.
_NULLABLE: Mapping[str, msgspec.json.Decoder[Any]] = {
    kind: msgspec.json.Decoder(_LISTS[kind]) for kind in ("f", "i", "u", "b")
}
_DEEPEST = 32
# Data longer than this are decoded piece by piece: as one list of Python objects they would take many times their
# length in memory, and hold the interpreter's lock, and so the event loop, until the last element.
LARGE_BYTES = 64 * 1024
_PIECE_BYTES = 64 * 1024
# Nested text cannot be cut into pieces.
_NESTED_TEXT_BYTES = 1024 * 1024


def read_json(name: str, datatype: Datatype, shape: tuple[int, ...], data: msgspec.Raw) -> NDArray[Any]:
    """The array in an input's ``data``.

    Args:
        shape: Every axis at least 1.
        data: A JSON list of numbers, booleans or text, nested as the shape says or flat; null is NaN for floats.
    Raises:
        SignatureMismatch: An element is not of the datatype, or there are more or fewer than the shape holds.
    """
    size = len(memoryview(data))
    if size > LARGE_BYTES and datatype is not Datatype.BYTES:
        return _read_in_pieces(name, datatype, shape, bytes(data))
    if size > LARGE_BYTES:
        _check_texts(name, shape, bytes(data))
    try:
        values = _FLAT[datatype.numpy.kind].decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        if size > _NESTED_TEXT_BYTES:
            raise SignatureMismatch(
                name, rule="datatype", detail=f"{error}; send so much text in binary, or as a list without lists in it"
            ) from error
        values = _flatten(name, datatype, data)
    _check_count(name, shape, len(values))
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


def _check_count(name: str, shape: tuple[int, ...], found: int) -> None:
    count = math.prod(shape)
    if found != count:
        raise SignatureMismatch(
            name, rule="shape", detail=f"shape {list(shape)} needs {count} elements, data has {found}"
        )


def _check_texts(name: str, shape: tuple[int, ...], data: bytes) -> None:
    """Refuse what surely holds more texts than the shape, before they are made."""
    fewest = (data.count(b'"') - data.count(b'\\"')) // 2
    if fewest > math.prod(shape):
        _check_count(name, shape, fewest)


def _read_in_pieces(name: str, datatype: Datatype, shape: tuple[int, ...], data: bytes) -> NDArray[Any]:
    """Numbers or booleans, nested or flat, counted before the first is decoded."""
    if not data.startswith(b"["):
        raise MalformedRequest(f"input '{name}': data must be a list")
    # It has been read as JSON already: without brackets and space it is its elements, with commas between them.
    elements = data.translate(None, b"[] \t\r\n")
    del data
    _check_count(name, shape, elements.count(b",") + 1)
    out = np.empty(math.prod(shape), dtype=datatype.numpy)
    begin = at = 0
    while begin < len(elements):
        end = elements.find(b",", begin + _PIECE_BYTES)
        end = len(elements) if end < 0 else end
        values = _piece(name, datatype, b"[" + elements[begin:end] + b"]", at)
        out[at : at + len(values)] = _array(name, datatype, values)
        begin, at = end + 1, at + len(values)
    _check_count(name, shape, at)
    return out.reshape(shape)


def _piece(name: str, datatype: Datatype, piece: bytes, at: int) -> list[Any]:
    kind = datatype.numpy.kind
    try:
        values: list[Any] = _FLAT[kind].decode(piece)
    except (msgspec.DecodeError, UnicodeDecodeError):
        try:
            nullable = _NULLABLE[kind].decode(piece)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            detail = f"{datatype.value}: {error} of the elements from {at} on"
            raise SignatureMismatch(name, rule="datatype", detail=detail) from error
        values = [math.nan if value is None else value for value in nullable]
    return values


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
