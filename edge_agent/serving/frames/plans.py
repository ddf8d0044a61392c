"""What one client's requests in frames have in common is read once: it sends the same frame but for its id and values.

As :mod:`edge_agent.serving.plans` for HTTP. What the other bytes of a frame meant once they mean again: the model, the
tensors' names, datatypes and shapes, all checked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_agent.contract import frames
from edge_agent.contract.errors import MessageError
from edge_agent.contract.frame_messages import VERSION, Infer, Request
from edge_agent.contract.framing import LENGTH_BYTES
from edge_agent.serving.frames.tensors import plain_array
from edge_agent.serving.request import InferenceRequest

_LARGEST: Final = 16 * 1024
_MOST: Final = 16
# To learn a frame takes several times as long as to read it: a client whose frames all differ is given up.
_ATTEMPTS: Final = 64
# So long may be what stands before the values, and so many places in it may look like the id.
_LONGEST_HEAD: Final = 1024
_PLACES: Final = 16
_MOST_IN_A_BYTE: Final = 0x7F


class _Tensor(NamedTuple):
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int


class _Plan(NamedTuple):
    """How a frame is read.

    Args:
        before: Its bytes up to those of the id that differ; ``between``: from there on to the first values; the rest of
            what is no values: each with where it begins.
        number: Where the id stands; ``most``: the largest that it can be: where it is one byte, others than those up to
            0x7f say what follows.
        like: The request without id and inputs; ``request``: without its inputs.
    """

    before: bytes
    number: slice
    most: int
    between: bytes
    values_at: int
    gaps: Sequence[tuple[slice, bytes]]
    tensors: Sequence[_Tensor]
    like: Infer
    request: InferenceRequest


class FramePlans:
    """Reads the frames of one connection.

    Args:
        max_rows: Rows that a request may hold.
    """

    __slots__ = ("_attempts", "_max_rows", "_plans")

    def __init__(self, max_rows: int) -> None:
        self._max_rows = max_rows
        self._plans: dict[int, _Plan] = {}  # by the frame's size
        self._attempts = 0

    def read(self, frame: memoryview) -> tuple[Request, InferenceRequest | None]:
        """The request in a frame; beside it what is asked of the model, where one like it came before.

        Raises:
            MessageError: The frame is no request.
        """
        plan = self._plans.get(len(frame))
        if plan is None:
            return self._learn(frame), None
        before, place, most, between, values_at, gaps, tensors, like, request = plan
        head = bytes(frame[:values_at])
        number = int.from_bytes(head[place], "big")
        if not 0 < number <= most or not head.startswith(before) or not head.endswith(between):
            return self._learn(frame), None
        for gap, constant in gaps:
            if frame[gap] != constant:
                return self._learn(frame), None
        inputs: dict[str, NDArray[Any]] = {}
        for name, shape, dtype, offset in tensors:
            inputs[name] = np.ndarray(shape, dtype, frame, offset)
        asked = Infer(
            v=VERSION, id=number, model=like.model, version=like.version, priority=like.priority,
            timeout_us=like.timeout_us, monitor=like.monitor, inputs=[],
        )  # fmt: skip
        return asked, InferenceRequest(
            "", inputs, None, True, request.monitored, "", request.priority, request.timeout_us
        )

    def _learn(self, frame: memoryview) -> Request:
        """The ordinary way, and a plan for the next frame like this one where there can be one."""
        request = frames.decode_request(frame)
        if isinstance(request, Infer) and len(frame) <= _LARGEST and self._attempts < _ATTEMPTS:
            self._attempts += 1
            plan = _plan(frame, request, self._max_rows)
            if plan is not None and (len(self._plans) < _MOST or len(frame) in self._plans):
                self._plans[len(frame)] = plan
        return request


def _plan(frame: memoryview, request: Infer, max_rows: int) -> _Plan | None:
    """How frames like this one are read; None where they are not to be read so."""
    if request.v != VERSION or request.request or request.group or request.outputs or not request.inputs:
        return None
    begin = _address(frame)
    tensors: list[_Tensor] = []
    spans: list[tuple[int, int]] = []
    for values in request.inputs:
        array = plain_array(values, max_rows)
        if array is None or any(values.name == each.name for each in tensors):
            return None
        offset = _address(array) - begin
        tensors.append(_Tensor(values.name, array.shape, array.dtype, offset))
        spans.append((offset, offset + array.nbytes))
    head = bytes(frame[: spans[0][0]])
    place = _place_of_number(frame, head, request.id) if len(head) <= _LONGEST_HEAD else None
    if place is None:
        return None
    edges = [end for _, end in spans], [*[start for start, _ in spans[1:]], len(frame)]
    gaps = [slice(end, start) for end, start in zip(*edges, strict=True) if start > end]
    return _Plan(
        before=head[: place.start],
        number=place,
        most=_MOST_IN_A_BYTE if request.id <= _MOST_IN_A_BYTE else (1 << 64) - 1,
        between=head[place.stop :],
        values_at=len(head),
        gaps=[(gap, bytes(frame[gap])) for gap in gaps],
        tensors=tensors,
        like=msgspec.structs.replace(request, inputs=[]),
        request=InferenceRequest(
            "", {}, binary=True, monitored=request.monitor, priority=request.priority, timeout_us=request.timeout_us
        ),
    )


def _place_of_number(frame: memoryview, head: bytes, number: int) -> slice | None:
    """Where the bytes of the id stand that differ from one id to the next of the same length.

    Where another number in their place is another id, and only there, they are the id.
    """
    packed = msgspec.msgpack.encode(number)
    other = number ^ 1 or number ^ 2
    digits = max(1, len(packed) - 1)
    end = LENGTH_BYTES
    for _ in range(_PLACES):
        end = head.find(packed, end) + len(packed)
        if end < len(packed):  # no more of them
            break
        place = slice(end - digits, end)
        probe = bytearray(frame)
        probe[place] = other.to_bytes(digits, "big")
        end -= len(packed) - 1
        try:
            if frames.decode_request(probe).id == other:
                return place
        except MessageError:
            continue
    return None


def _address(memory: memoryview | NDArray[Any]) -> int:
    address: int = np.asarray(memory).__array_interface__["data"][0]
    return address
