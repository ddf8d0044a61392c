"""What the requests of one model have in common is worked out once: applications send the same JSON again and again.

Only the tensors change where they follow the JSON in binary, as most clients of the protocol send them. What the
bytes of a head meant once they mean again: names, datatypes, shapes, parameters and wanted outputs, all checked.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.signature import Signature
from edge_agent.serving.codec import decode_request
from edge_agent.serving.json_request import read_head
from edge_agent.serving.request import InferenceRequest
from edge_agent.serving.shared_memory import Regions

Buffer = bytes | bytearray | memoryview

# Per model at most 64 heads of 4 KiB are remembered. Who sends more different ones gains nothing here anyway.
_LONGEST_HEAD: Final = 4 * 1024
_MOST: Final = 64
# So much of a body is copied sooner than a view of it is made.
_SLICED_BYTES: Final = 2 * 1024


class _Tensor(NamedTuple):
    """Where a tensor lies: in the body, or at ``offset`` of a region of shared memory."""

    name: str
    dtype: np.dtype[Any]
    elements: int
    shape: tuple[int, ...]
    offset: int
    region: str | None = None


class Plan(NamedTuple):
    """How a body is read that begins with a certain head.

    Args:
        size: Of the whole body, in bytes.
        like: The first request with this head, without its inputs.
    """

    head: bytes
    size: int
    tensors: Sequence[_Tensor]
    like: InferenceRequest

    @property
    def one_row(self) -> bool:
        """Whether each of its inputs has one row, and lies in the body."""
        return all(tensor.shape[0] == 1 and tensor.region is None for tensor in self.tensors)

    def fits(self, body: bytes) -> bool:
        """Whether this is how the body is read."""
        return len(body) == self.size and body.startswith(self.head)

    def joined(self, bodies: Sequence[bytes]) -> dict[str, NDArray[Any]]:
        """The inputs of several bodies that fit, of one row each, as one batch; read-only."""
        inputs: dict[str, NDArray[Any]] = {}
        for name, dtype, elements, shape, offset, _ in self.tensors:
            size = elements * dtype.itemsize
            if size > _SLICED_BYTES:
                data = b"".join([memoryview(body)[offset : offset + size] for body in bodies])
            else:
                data = b"".join([body[offset : offset + size] for body in bodies])
            inputs[name] = np.frombuffer(data, dtype).reshape((len(bodies), *shape[1:]))
        return inputs


class Plans:
    """Reads the requests of one model, those whose JSON was there before without reading it again. Any thread.

    Args:
        max_rows: Rows that a request may hold.
        regions: Shared memory that it may name; None for none.
    """

    def __init__(self, signature: Signature, *, max_rows: int, regions: Regions | None = None) -> None:
        self._signature, self._max_rows, self._regions = signature, max_rows, regions
        self._plans: dict[bytes, Plan] = {}

    def __len__(self) -> int:
        return len(self._plans)

    def decode(self, body: Buffer, json_length: int | None) -> InferenceRequest:
        """As :func:`edge_agent.serving.codec.decode_request`, which reads what was not there before."""
        if not json_length or not 0 < json_length <= _LONGEST_HEAD:
            return self._read(body, json_length)
        head = bytes(body[:json_length])
        plan = self._plans.get(head)
        if plan is None:
            request = self._read(body, json_length)
            self._remember(head, len(body), request)
            return request
        if plan.size != len(body):
            return self._read(body, json_length)
        inputs: dict[str, NDArray[Any]] = {}
        for name, dtype, elements, shape, offset, region in plan.tensors:
            if region is not None and self._regions is not None:
                data = self._regions.read(region, offset, elements * dtype.itemsize)
                inputs[name] = np.frombuffer(data, dtype).reshape(shape)
                continue
            flat = np.frombuffer(body, dtype, elements, offset)
            if not flat.flags.aligned:
                flat = flat.copy()
            inputs[name] = flat.reshape(shape)
        like = plan.like
        return InferenceRequest(
            "",
            inputs,
            like.outputs,
            like.binary,
            like.monitored,
            "",
            like.priority,
            like.timeout_us,
            like.flagged,
        )

    def plan(self, body: bytes, json_length: int) -> Plan | None:
        """How bodies like this one are read; None where nothing like it was there before."""
        plan = self._plans.get(body[:json_length])
        return plan if plan is not None and plan.size == len(body) else None

    def _read(self, body: Buffer, json_length: int | None) -> InferenceRequest:
        return decode_request(body, json_length, self._signature, max_rows=self._max_rows, regions=self._regions)

    def _remember(self, head: bytes, size: int, request: InferenceRequest) -> None:
        """Make a plan, where the next body that begins so will differ in nothing but its numbers."""
        if request.id or request.group:  # likely to be others next time
            return
        if any(output.region is not None for output in request.outputs or ()):  # may be gone next time
            return
        # Text has lengths of its own, and truth is not a view.
        if any(array.dtype.kind in "Ob" for array in request.inputs.values()):
            return
        tensors = self._in_regions(head, request) if size == len(head) else _behind(head, size, request)
        if not tensors:
            return
        if len(self._plans) >= _MOST:
            self._plans.clear()
        self._plans[head] = Plan(head, size, tuple(tensors), dataclasses.replace(request, inputs={}))

    def _in_regions(self, head: bytes, request: InferenceRequest) -> list[_Tensor]:
        """Where the tensors lie in shared memory; empty where one does not."""
        tensors: list[_Tensor] = []
        for told in read_head(memoryview(head), self._signature).inputs:
            region = told.parameters.shared_memory_region if told.parameters is not None else None
            if told.parameters is None or region is None:
                return []
            array = request.inputs[told.name]
            offset = told.parameters.shared_memory_offset
            tensors.append(_Tensor(told.name, array.dtype, array.size, array.shape, offset, region))
        return tensors


def _behind(head: bytes, size: int, request: InferenceRequest) -> list[_Tensor]:
    """Where the tensors lie behind the JSON; empty where one does not."""
    tensors: list[_Tensor] = []
    at = len(head)
    for name, array in request.inputs.items():
        tensors.append(_Tensor(name, array.dtype, array.size, array.shape, at))
        at += array.nbytes
    # Every tensor takes a byte at least: what follows the JSON holds them all only where none is elsewhere.
    return tensors if at == size else []
