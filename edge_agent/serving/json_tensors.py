"""Tensor data in JSON: nested or flat lists to arrays and back ("Tensor Data", OIP v2). Pure."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.errors import MalformedRequest, SignatureMismatch
from edge_agent.contract.tensors import Datatype

# Data longer than this are decoded piece by piece: as one list of Python objects they would take many times their
# length in memory, and hold the interpreter's lock, and so the event loop, until the last element.
LARGE_BYTES: Final = 64 * 1024
_PIECE_BYTES: Final = 64 * 1024
_PIECE_ELEMENTS: Final = 8192
# For as many struct.pack takes half of numpy's time, and finds values that do not fit on the way.
_PACKED: Final = 4096
# The struct module's codes, by NumPy's.
_CODES: Final = {"b1": "?", "f2": "e", "f4": "f", "f8": "d", "i1": "b", "i2": "h", "i4": "i", "i8": "q"} | {
    f"u{size}": code for size, code in ((1, "B"), (2, "H"), (4, "I"), (8, "Q"))
}
_PACKED_AS: Final[Mapping[Datatype, tuple[str, np.dtype[Any]]]] = {
    datatype: (_CODES[datatype.numpy.str[1:]], datatype.numpy)
    for datatype in Datatype
    if datatype is not Datatype.BYTES
}
# By kind of dtype; null is a missing float, and nothing else.
_ELEMENTS: Final[Mapping[str, msgspec.json.Decoder[Any]]] = {
    "f": msgspec.json.Decoder(list[float | None]),
    "i": msgspec.json.Decoder(list[int]),
    "u": msgspec.json.Decoder(list[int]),
    "b": msgspec.json.Decoder(list[bool]),
    "O": msgspec.json.Decoder(list[str]),
}
_NESTING: Final = b"[] \t\r\n"
_BACKSLASH: Final = ord("\\")
# One text, the brackets and space around it, and the comma after it. Only sets of characters are repeated: a repeated
# group (for escapes) takes 130 bytes of memory for each character of a text.
_BEFORE, _AFTER = rb'[\[ \t\r\n]*(?=")', rb"[\] \t\r\n]*(?:,|\Z)"
_TEXT: Final = re.compile(_BEFORE + rb'("[^"\\]*")' + _AFTER)
_BEFORE_TEXT: Final = re.compile(_BEFORE)
_AFTER_TEXT: Final = re.compile(_AFTER)
_encode = msgspec.json.Encoder().encode


def read_json(name: str, datatype: Datatype, shape: tuple[int, ...], data: msgspec.Raw) -> NDArray[Any]:
    """The array in the JSON of an input's ``data``.

    Args:
        shape: Every axis at least 1.
        data: A JSON list of numbers, booleans or text, nested as the shape says or flat; null is NaN for floats.
    Raises:
        MalformedRequest: It is no list.
        SignatureMismatch: An element is not of the datatype, or there are more or fewer than the shape holds.
    """
    raw = bytes(data)
    if not raw.startswith(b"["):
        raise MalformedRequest(f"input '{name}': data must be a list")
    if datatype is Datatype.BYTES:
        return _read_texts(name, shape, raw)
    # It has been read as JSON already: without brackets and space it is its elements, with commas between them.
    elements = raw.translate(None, _NESTING)
    del raw
    check_count(name, shape, elements.count(b",") + 1 if elements else 0)
    if len(elements) <= LARGE_BYTES:
        return read_values(name, datatype, shape, _decode(name, datatype, elements, 0))
    out = np.empty(math.prod(shape), dtype=datatype.numpy)
    begin = at = 0
    while begin < len(elements):
        end = elements.find(b",", begin + _PIECE_BYTES)
        end = len(elements) if end < 0 else end
        values = _decode(name, datatype, elements[begin:end], at)
        if at + len(values) > len(out):
            check_count(name, shape, at + len(values))
        out[at : at + len(values)] = _array(name, datatype, values)
        begin, at = end + 1, at + len(values)
    check_count(name, shape, at)
    return out.reshape(shape)


def read_values(name: str, datatype: Datatype, shape: tuple[int, ...], values: list[Any]) -> NDArray[Any]:
    """The array of an input's elements, which are of the datatype's kind.

    Raises:
        SignatureMismatch: A value does not fit in the datatype, or there are more or fewer than the shape holds.
    """
    if len(values) != math.prod(shape):
        check_count(name, shape, len(values))
    return _array(name, datatype, values).reshape(shape)


def check_count(name: str, shape: tuple[int, ...], found: int) -> None:
    """Refuse another number of elements than the shape holds.

    Raises:
        SignatureMismatch: It is another one.
    """
    count = math.prod(shape)
    if found != count:
        raise SignatureMismatch(
            name, rule="shape", detail=f"shape {list(shape)} needs {count} elements, data has {found}"
        )


def write_json(name: str, array: NDArray[Any]) -> Any:
    """The elements of an output as a flat list to encode; NaN and infinities become null, which is all JSON has.

    Raises:
        MalformedRequest: A BYTES element is no UTF-8 text, which is all that JSON can hold.
    """
    flat = array.reshape(-1)
    if flat.size <= _PIECE_ELEMENTS:
        return _elements(name, flat)
    # In pieces, so that neither memory nor other threads suffer.
    pieces = (flat[at : at + _PIECE_ELEMENTS] for at in range(0, flat.size, _PIECE_ELEMENTS))
    return msgspec.Raw(b"[" + b",".join(_encode(_elements(name, piece))[1:-1] for piece in pieces) + b"]")


def _elements(name: str, flat: NDArray[Any]) -> list[Any]:
    if flat.dtype.kind != "O":
        return list(flat.tolist())
    try:
        return [element.decode() for element in flat]
    except UnicodeDecodeError as error:
        raise MalformedRequest(f"output '{name}' is no UTF-8 text: ask for it with binary_data: true") from error


def _decode(name: str, datatype: Datatype, elements: bytes, at: int) -> list[Any]:
    try:
        values: list[Any] = _ELEMENTS[datatype.numpy.kind].decode(b"[%b]" % elements)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        where = f" of the elements from {at} on" if at else ""
        detail = f"{datatype.value}: {error}{where}"
        raise SignatureMismatch(name, rule="datatype", detail=detail) from error
    return values


def _read_texts(name: str, shape: tuple[int, ...], raw: bytes) -> NDArray[Any]:
    """Text, nested or flat. Brackets may stand in a text too, so it is cut between texts only."""
    count = math.prod(shape)
    fewest = (raw.count(b'"') - raw.count(b'\\"')) // 2
    # Surely too many, or too few (a text takes two quotes): refused before anything of the shape's size is made.
    if fewest > count or 2 * count > len(raw):
        check_count(name, shape, fewest)
    out = np.empty(count, dtype=object)
    found = at = 0
    while at < len(raw):
        tokens: list[bytes] = []
        begin = at
        while at < len(raw) and len(tokens) < _PIECE_ELEMENTS and at - begin < _PIECE_BYTES:
            match = _TEXT.match(raw, at)
            text, end = (match[1], match.end()) if match is not None else _escaped_text(raw, at)
            if not text:
                rest = raw[at : at + 40].decode(errors="replace")
                detail = f"BYTES: expected text after {found + len(tokens)} elements, got {rest!r}"
                raise SignatureMismatch(name, rule="datatype", detail=detail)
            tokens.append(text)
            at = end
        values = _decode(name, Datatype.BYTES, b",".join(tokens), found)
        if found + len(values) > count:
            check_count(name, shape, found + len(values))
        out[found : found + len(values)] = [text.encode() for text in values]
        found += len(values)
    check_count(name, shape, found)
    return out.reshape(shape)


def _escaped_text(raw: bytes, at: int) -> tuple[bytes, int]:
    """The next text, which has escapes in it, and where the one after it begins; nothing where there is no text."""
    before = _BEFORE_TEXT.match(raw, at)
    if before is None:
        return b"", at
    begin = end = before.end()
    while (end := raw.find(b'"', end + 1)) > 0:
        first = end  # of the backslashes before the quote: after an even number of them it is the closing one
        while raw[first - 1] == _BACKSLASH:
            first -= 1
        if (end - first) % 2 == 0:
            after = _AFTER_TEXT.match(raw, end + 1)
            return (raw[begin : end + 1], after.end()) if after is not None else (b"", at)
    return b"", at


def _array(name: str, datatype: Datatype, values: list[Any]) -> NDArray[Any]:
    """array[n] of the values, which are of the datatype's kind; read-only where it is small."""
    if datatype is Datatype.BYTES:
        out = np.empty(len(values), dtype=object)
        out[:] = [text.encode() for text in values]
        return out
    if len(values) > _PACKED:
        return _large_array(name, datatype, values)
    code, dtype = _PACKED_AS[datatype]
    try:
        return np.frombuffer(struct.pack(f"<{len(values)}{code}", *values), dtype)
    except OverflowError as error:
        raise SignatureMismatch(name, rule="datatype", detail=f"a value does not fit in {datatype.value}") from error
    except struct.error:  # a null, or an integer that does not fit
        return _large_array(name, datatype, values)


def _large_array(name: str, datatype: Datatype, values: list[Any]) -> NDArray[Any]:
    dtype = datatype.numpy
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        wrong = next((value for value in values if not limits.min <= value <= limits.max), None)
        if wrong is not None:
            raise SignatureMismatch(name, rule="datatype", detail=f"value {wrong} does not fit in {datatype.value}")
    if dtype.kind != "f":
        return np.array(values, dtype=dtype)
    # NumPy takes None for NaN.
    wide = np.array(values, dtype=np.float64)
    if dtype.itemsize == 8:
        return wide
    with np.errstate(over="ignore"):
        narrow = wide.astype(dtype)
    if np.isinf(narrow).any():
        raise SignatureMismatch(name, rule="datatype", detail=f"a value does not fit in {datatype.value}")
    return narrow
