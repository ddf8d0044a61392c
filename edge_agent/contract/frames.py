"""Messages in frames as bytes: what applications that count microseconds exchange with the agent.

A frame (:mod:`edge_agent.contract.framing`) holds one msgpack map. Its member ``op`` says what it is; an answer repeats
its request's ``op``, or has ``op`` ``error``, and carries the ``id`` that the client chose; answers may come in another
order than their requests. Members that a reader does not know are skipped, so that later versions may add some.

A tensor's values are a msgpack bin, little-endian and row-major, the last member of its map. Writers put a member
``pad`` before it, so long that the values begin at a multiple of 8 bytes from the frame's first byte (its length
field): a reader whose buffer is aligned then uses them where they are. ``docs/frames.md`` describes every byte.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.checking import Violation
from edge_agent.contract.errors import MessageError
from edge_agent.contract.frame_messages import Answer, BrokenRule, Id, Infer, Inferred, Request, Values
from edge_agent.contract.framing import LENGTH_BYTES
from edge_agent.contract.tensors import Datatype, pack_bytes, unpack_bytes

MAX_AXES = 32
ALIGNMENT = 8
# Below it, the parts of a frame are joined: one copy costs less than what the kernel does with a list of parts.
_JOINED_BYTES = 16 * 1024

Buffer = bytes | bytearray | memoryview


class _Numbered(msgspec.Struct):
    id: Id


_FIVE_MEMBERS = 0x85
_PADS = tuple(b"\xa3pad\xc4" + bytes((size,)) + bytes(size) + b"\xa4data\xc6" for size in range(ALIGNMENT))
# Found at once where the byte order is ours; else `Datatype.of` looks closer.
_DATATYPES = {datatype.numpy: datatype for datatype in Datatype if datatype is not Datatype.BYTES}

_encoder = msgspec.msgpack.Encoder()
_request_decoder: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_answer_decoder: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)
_OPS = [kind.__struct_config__.tag for kind in get_args(Request)]
_number_decoder = msgspec.msgpack.Decoder(_Numbered)


def decode_request(frame: Buffer) -> Request:
    """The request in a frame; its tensors are views on it.

    Raises:
        MessageError: It is none.
    """
    try:
        return _request_decoder.decode(memoryview(frame)[LENGTH_BYTES:])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MessageError(f"the frame is no request: {error}{_hint(str(error))}") from error


def decode_answer(frame: Buffer) -> Answer:
    """The answer in a frame; its tensors are views on it.

    Raises:
        MessageError: It is none.
    """
    try:
        return _answer_decoder.decode(memoryview(frame)[LENGTH_BYTES:])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MessageError(f"the frame is no answer: {error}") from error


def number_of(frame: Buffer) -> int:
    """The ``id`` in a frame that is otherwise no request; 0 where it has none."""
    try:
        return _number_decoder.decode(memoryview(frame)[LENGTH_BYTES:]).id
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return 0


def encode(message: Request | Answer) -> bytes:
    """The frame of a message that brings no tensors."""
    body = _encoder.encode(message)
    return len(body).to_bytes(LENGTH_BYTES, "little") + body


def encode_tensors(message: Infer | Inferred, tensors: Mapping[str, NDArray[Any] | Values]) -> list[Buffer]:
    """The frame of a message and its tensors, in parts that follow each other; the large ones are views on the arrays.

    Args:
        message: Without tensors of its own: they are its last member, which is written here by hand, so that large
            values are not copied and each begins at its place.
        tensors: By name: arrays in any memory layout, or where in shared memory they lie.
    Raises:
        MessageError: An array has no datatype of the Open Inference Protocol.
    """
    head = bytearray(LENGTH_BYTES)
    _encoder.encode_into(message, head, LENGTH_BYTES)
    head.pop()  # the empty array
    head += _array_header(len(tensors))
    parts: list[Buffer] = []
    done = 0
    current = head
    for name, tensor in tensors.items():
        if isinstance(tensor, Values):
            _encoder.encode_into(tensor, current, len(current))
            continue
        datatype = _DATATYPES.get(tensor.dtype) or Datatype.of(tensor.dtype)
        data = _payload(tensor, datatype)
        _describe(current, Values(name, datatype, tensor.shape), len(data), done)
        if len(data) < _JOINED_BYTES:
            current += data
            continue
        parts += (current, data)
        done += len(current) + len(data)
        current = bytearray()
    if current:
        parts.append(current)
        done += len(current)
    head[:LENGTH_BYTES] = (done - LENGTH_BYTES).to_bytes(LENGTH_BYTES, "little")
    return parts


def array_of(values: Values) -> NDArray[Any]:
    """The array of a tensor whose values stand in its frame: a view on them, or a copy where they lie askew.

    Raises:
        MessageError: The values do not fill the shape, or there are none.
    """
    if isinstance(values.data, msgspec.UnsetType):
        raise MessageError("has no data")
    return array_over(values.data, values.type, values.shape)


def array_over(data: memoryview, datatype: Datatype, shape: tuple[int, ...]) -> NDArray[Any]:
    """An array over a tensor's bytes; a copy for BYTES, and where they are not aligned.

    Raises:
        MessageError: The bytes do not fill the shape.
    """
    if len(shape) > MAX_AXES or (shape and min(shape) < 0):
        raise MessageError(f"needs at most {MAX_AXES} axes, none negative, got {list(shape[: MAX_AXES + 1])}")
    try:
        if datatype is Datatype.BYTES:
            return unpack_bytes(data, math.prod(shape)).reshape(shape)
        dtype = datatype.numpy
        size = math.prod(shape) * dtype.itemsize  # of Python's integers: a product that overflows must not look small
        if len(data) != size:
            raise MessageError(f"{datatype.value} of shape {list(shape)} needs {size} bytes, got {len(data)}")
        if datatype is Datatype.BOOL:  # any byte but 0 is true; numpy's own bytes must be 0 or 1
            return np.not_equal(np.frombuffer(data, dtype=np.uint8), 0).reshape(shape)
        array: NDArray[Any] = np.ndarray(shape, dtype, data)
    except (ValueError, OverflowError) as error:  # no elements, and other axes longer than numpy can hold
        raise MessageError(f"{datatype.value} of shape {list(shape)}: {error}") from error
    return array if array.flags.aligned else array.copy()  # not every processor reads numbers at odd addresses


def broken_rules(violations: Iterable[Violation]) -> list[BrokenRule]:
    """Violations as they travel."""
    return [BrokenRule(*violation) for violation in violations]


def violations_of(broken: Iterable[BrokenRule]) -> tuple[Violation, ...]:
    """Violations as they were before."""
    return tuple(
        Violation(each.tensor, each.rule, each.policy, each.rows, each.first_row, each.value) for each in broken
    )


def _hint(text: str) -> str:
    """What to send instead, where a request has a word that is none of ours."""
    if text.endswith("`$.op`"):
        return f"; there are: {', '.join(_OPS)}"
    if "enum value" in text:
        return f"; datatypes are {', '.join(datatype.value for datatype in Datatype)}"
    return ""


def _payload(array: NDArray[Any], datatype: Datatype) -> Buffer:
    if datatype is Datatype.BYTES:
        return pack_bytes(array)
    dtype = datatype.numpy
    if array.dtype != dtype:  # big-endian
        array = array.astype(dtype)
    if array.nbytes < _JOINED_BYTES:
        return array.tobytes()
    return np.ascontiguousarray(array).reshape(-1).data.cast("B")


def _describe(head: bytearray, values: Values, size: int, before: int) -> None:
    """Append a tensor's map, all but the bytes of its values, where the frame has so many bytes before ``head``."""
    begin = len(head)
    _encoder.encode_into(values, head, begin)
    head[begin] = _FIVE_MEMBERS
    # Still to come: the key "pad" and its length, the pad, then the key "data" and a bin 32 header.
    head += _PADS[-(before + len(head) + 6 + 10) % ALIGNMENT]
    head += size.to_bytes(4, "big")


def _array_header(count: int) -> bytes:
    return bytes((0x90 | count,)) if count < 16 else b"\xdc" + count.to_bytes(2, "big")
