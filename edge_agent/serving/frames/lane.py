"""Requests in frames for one model that are readable in one turn of the event loop: they run together.

As :mod:`edge_agent.serving.rest.lane` for HTTP; here a connection's own requests may meet as well, where it sends
several without waiting for the answers. A turn's requests keep the model that its first one found.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from time import perf_counter_ns
from typing import Final, NamedTuple

import numpy as np

from edge_agent.contract.errors import ShoalError
from edge_agent.contract.frame_messages import Infer, Values
from edge_agent.contract.frames import Buffer
from edge_agent.contract.signature import Signature
from edge_agent.contract.tensors import Datatype
from edge_agent.runtime.slots import Lease, LoadedModel, Slots
from edge_agent.serving.frames.answer_templates import FrameTemplates
from edge_agent.serving.inference import Inference
from edge_agent.serving.request import InferenceRequest
from edge_agent.serving.together import runs_of

Parts = list[Buffer]
Reply = Callable[[int, "Parts | Exception"], None]

# Larger inputs come in several pieces, and are answered by themselves; at most so many bytes wait for a turn's end.
_SMALL_BYTES: Final = 64 * 1024
_WAITING_BYTES: Final = 4 * 1024 * 1024
_TEXT: Final = Datatype.BYTES
_LIKE: Final = {monitored: InferenceRequest("", {}, binary=True, monitored=monitored) for monitored in (False, True)}


class _Asked(NamedTuple):
    number: int
    request: InferenceRequest
    reply: Reply
    came_ns: int
    size: int


class _Turn(NamedTuple):
    lease: Lease
    loaded: LoadedModel
    asked: list[_Asked]


class FrameLanes:
    """What waits for the end of this turn of the loop, by model; used by the event loop's thread alone.

    Args:
        decode: Reads a request for a model's signature, or refuses it.
        templates: Gives what writes the answers of a model.
    """

    def __init__(
        self,
        slots: Slots,
        inference: Inference,
        *,
        decode: Callable[[Infer, Signature], InferenceRequest],
        templates: Callable[[LoadedModel], FrameTemplates],
    ) -> None:
        self._slots, self._inference, self._decode, self._templates = slots, inference, decode, templates
        self._turns: dict[tuple[str, str], _Turn] = {}
        self._waiting_bytes = 0

    def join(
        self, request: Infer, enter: Callable[[], None], reply: Reply, decoded: InferenceRequest | None = None
    ) -> int:
        """Have a request answered at the end of this turn; how many of its model wait for that now.

        0 where it goes the ordinary way, nothing counted yet.

        Args:
            decoded: What it asks of its model, where that is known already.
            enter: Counts it against its application's quota, once it is certain to be answered so.
            reply: Takes the request's number, and its answer or why there is none.
        Raises:
            ShoalError: The application may not ask.
        """
        if request.request or request.group or request.outputs or request.priority or request.timeout_us:
            return 0
        key = (request.model, request.version)
        turn = self._turns.get(key)
        try:
            lease = turn.lease if turn is not None else self._slots.lease(request.model, request.version or None)
        except ShoalError:
            return 0  # it is told so on the ordinary way, like all that is wrong with it
        asked: _Asked | None = None
        loaded = lease.__enter__()
        try:
            small, size = self._small(loaded, request, decoded)
            if small is None or self._waiting_bytes + size > _WAITING_BYTES:
                return 0
            enter()
            asked = _Asked(request.id, small, reply, perf_counter_ns(), size)
        finally:
            if turn is None and asked is None:
                lease.__exit__(None, None, None)
        if turn is None:
            turn = self._turns[key] = _Turn(lease, loaded, [])
            asyncio.get_running_loop().call_soon(self._answer, key, turn)
        turn.asked.append(asked)
        self._waiting_bytes += size
        return len(turn.asked)

    def answer_now(self) -> None:
        """Answer what waits for the end of the turn: a connection is about to close."""
        for key, turn in list(self._turns.items()):
            self._answer(key, turn)

    def _small(
        self, loaded: LoadedModel, request: Infer, decoded: InferenceRequest | None
    ) -> tuple[InferenceRequest | None, int]:
        """The request, where it may run with others of one row, and the bytes of its inputs."""
        if loaded.together < 2 or not self._inference.inline(loaded):
            return None, 0
        if decoded is None:
            if not all(map(_is_small, request.inputs)):
                return None, 0
            try:
                decoded = self._decode(request, loaded.signature)
            except ShoalError:
                return None, 0
        size = 0
        for array in decoded.inputs.values():
            if len(array) != 1:
                return None, 0
            size += array.nbytes
        return (decoded, size) if size <= _SMALL_BYTES and not self._inference.is_long(loaded, decoded) else (None, 0)

    def _answer(self, key: tuple[str, str], turn: _Turn) -> None:
        if self._turns.get(key) is not turn:
            return  # has been answered
        del self._turns[key]
        self._waiting_bytes -= sum([asked.size for asked in turn.asked])
        with turn.lease as loaded:
            alike: dict[object, list[_Asked]] = {}
            for asked in turn.asked:
                inputs = asked.request.inputs
                form = [(name, array.dtype, array.shape) for name, array in inputs.items()]
                alike.setdefault((asked.request.monitored, *form), []).append(asked)
            for group in alike.values():
                for some in runs_of(group, loaded.together):
                    if len(some) < 2 or not self._run(loaded, some):
                        self._one_by_one(loaded, some)

    def _run(self, loaded: LoadedModel, some: Sequence[_Asked]) -> bool:
        """Answer requests of one form in one run; False where they are to be answered one by one."""
        first = some[0].request
        inputs = {name: np.concatenate([each.request.inputs[name] for each in some]) for name in first.inputs}
        run = self._inference.together.answer(loaded, _LIKE[first.monitored], inputs, [each.came_ns for each in some])
        if run is None:
            return False
        frames = self._templates(loaded).encode_shared([each.number for each in some], run)
        for asked, parts in zip(some, frames, strict=True):
            asked.reply(asked.number, parts)
        return True

    def _one_by_one(self, loaded: LoadedModel, some: Sequence[_Asked]) -> None:
        templates = self._templates(loaded)
        for number, request, reply, came_ns, _ in some:
            outcome: Parts | Exception
            try:
                outcome = templates.encode(number, request, self._inference.answer(loaded, request, came_ns))
            except Exception as error:  # noqa: BLE001 - the connection answers it
                outcome = error
            reply(number, outcome)


def _is_small(values: Values) -> bool:
    """Whether a tensor may be one row that is read in no time: a short frame may name much in shared memory."""
    return values.shape[:1] == (1,) and values.size <= _SMALL_BYTES and not (values.region and values.type is _TEXT)
