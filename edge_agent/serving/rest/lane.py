"""Small requests for one model, of all connections: those that meet in one turn of the event loop run together.

Where the model cannot run them as one, they are read first and then answered one after the other: either goes faster
while the processor has it in its caches, and the inferences in between empty them.

A turn's requests are all there when the loop has read what was readable: whoever comes first asks the loop to be called
back then, which costs no time that it would not spend anyway, and nobody waits for requests still to come. A lone one
is answered as ever.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import weakref
from collections.abc import Callable, Sequence
from time import perf_counter_ns
from typing import NamedTuple, Protocol

from edge_agent.contract.errors import ShoalError
from edge_agent.contract.tensors import Datatype
from edge_agent.runtime.slots import LoadedModel, Slots
from edge_agent.serving.answer_templates import AnswerTemplates
from edge_agent.serving.http.answer import Ending, head_of
from edge_agent.serving.http.message import JSON, Buffer, HttpResponse, Reply
from edge_agent.serving.inference import Inference
from edge_agent.serving.plans import Plan, Plans
from edge_agent.serving.together import runs_of

log = logging.getLogger(__name__)

BINARY = b"application/octet-stream"
# What waits in one lane takes so much at most; who comes then is answered at once.
_WAITING_BYTES = 4 * 1024 * 1024
# Joining so little costs less than another piece to write.
_JOINED_BYTES = 16 * 1024


class Asker(Protocol):
    """A connection's part in its requests."""

    def answer_entered(self, body: bytes, came_ns: int) -> bytes | list[Buffer] | None:
        """The response to a request that has been let in, by itself; None where it goes the ordinary way.

        Args:
            came_ns: When it came, by ``perf_counter_ns``.
        Raises:
            ShoalError: The request is refused, or failed.
        """


class _Asked(NamedTuple):
    asker: Asker
    body: bytes
    reply: Reply
    came_ns: int


class Lane:
    """What requests for one model with JSON of one length have in common; used by the event loop's thread alone.

    Args:
        version: As the path names it; None where it leaves it open.
        json_length: As the head says; None where the whole body is JSON.
        tools: Gives what reads and writes the bodies of a model.
    Attributes:
        limit_bytes: Longest body that the event loop answers itself.
        takes_text: Whether an input of the model is text.
        joins: Whether requests that meet wait for the end of the turn; ``together``: whether they run as one then.
    """

    def __init__(
        self,
        slots: Slots,
        inference: Inference,
        model: str,
        version: str | None,
        *,
        json_length: int | None,
        tools: Callable[[LoadedModel], tuple[Plans, AnswerTemplates]],
    ) -> None:
        self.slots, self.inference, self.model, self.version = slots, inference, model, version
        self.json_length, self._tools = json_length, tools
        # Not the model itself: one that is replaced must come free.
        self.loaded: Callable[[], LoadedModel | None] = _no_model
        self.plans: Plans
        self.templates: AnswerTemplates
        self.limit_bytes = 0.0
        self.takes_text = self.joins = self.together = False
        self._waiting: list[_Asked] = []
        self._waiting_bytes = 0

    def adopt(self, loaded: LoadedModel) -> None:
        """Another model serves under this name than the last time."""
        self.loaded = weakref.ref(loaded)
        self.plans, self.templates = self._tools(loaded)
        # In each form of the protocol an element takes a byte at least: so many rows there are at most.
        elements = sum(math.prod(axis or 1 for axis in spec.shape[1:]) for spec in loaded.signature.inputs)
        self.limit_bytes = self.inference.longest_inline(loaded) * max(1, elements)
        self.takes_text = any(spec.datatype is Datatype.BYTES for spec in loaded.signature.inputs)
        self.joins = self.inference.inline(loaded)
        self.together = bool(self.json_length) and loaded.together > 1

    def takes(self, body: bytes) -> bool:
        """Whether this request may wait for the end of the turn."""
        size = len(body)
        return self.joins and size <= self.limit_bytes and self._waiting_bytes + size <= _WAITING_BYTES

    def join(self, asker: Asker, body: bytes, reply: Reply) -> int:
        """Have a request that has been let in answered at the end of this turn of the loop; how many wait for that."""
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._answer)
        self._waiting.append(_Asked(asker, body, reply, perf_counter_ns()))
        self._waiting_bytes += len(body)
        return len(self._waiting)

    def _answer(self) -> None:
        waiting, self._waiting, self._waiting_bytes = self._waiting, [], 0
        if self.together and len(waiting) > 1:
            waiting = self._answer_together(waiting)
        for asked in waiting:
            outcome: bytes | list[Buffer] | Exception | None
            try:
                outcome = asked.asker.answer_entered(asked.body, asked.came_ns)
            except Exception as error:  # noqa: BLE001 - the connection answers it
                outcome = error
            asked.reply(asked.body, outcome)

    def _answer_together(self, waiting: list[_Asked]) -> list[_Asked]:
        """Answer those that can be answered together; the others."""
        try:
            lease = self.slots.lease(self.model, self.version)
        except ShoalError:
            return waiting
        left: list[_Asked] = []
        with lease as loaded:
            if self.loaded() is not loaded:
                self.adopt(loaded)
            if not (self.together and self.inference.inline(loaded)):
                return waiting
            while len(waiting) > 1:
                plan = self.plans.plan(waiting[0].body, self.json_length or 0)
                if plan is None or not plan.one_row:
                    left.append(waiting.pop(0))
                    continue
                alike = [asked for asked in waiting if plan.fits(asked.body)]
                waiting = [asked for asked in waiting if not plan.fits(asked.body)] if len(alike) < len(waiting) else []
                for some in runs_of(alike, loaded.together):
                    if len(some) < 2 or not self._run(loaded, plan, some):
                        left += some
        return left + waiting

    def _run(self, loaded: LoadedModel, plan: Plan, requests: Sequence[_Asked]) -> bool:
        """Answer requests of one row; False where they are to be answered one by one."""
        inputs = plan.joined([asked.body for asked in requests])
        run = self.inference.together.answer(loaded, plan.like, inputs, [asked.came_ns for asked in requests])
        if run is None:
            return False
        for asked, (parts, length) in zip(requests, self.templates.encode_shared(plan.like, run), strict=True):
            asked.reply(asked.body, framed(parts, length))
        return True


def _no_model() -> LoadedModel | None:
    return None


def framed(parts: Sequence[Buffer], length: int | None) -> bytes | list[Buffer]:
    """The bytes of an answer with its head, on a connection of HTTP/1.1 that stays open."""
    size = len(parts[0]) if len(parts) == 1 else sum(map(len, parts))
    head = _head(size, length)
    return b"".join((head, *parts)) if size <= _JOINED_BYTES else [head, *parts]


@functools.lru_cache(maxsize=256)
def _head(size: int, json_length: int | None) -> bytes:
    """Of an answer whose body has ``size`` bytes; as :func:`response` has it."""
    return head_of(response((), json_length), Ending.SILENT, size)


def response(parts: Sequence[Buffer], length: int | None, encoding: str | None = None) -> HttpResponse:
    """The answer to an inference request: JSON, or JSON of a length and raw tensors behind it."""
    headers: tuple[tuple[bytes, bytes], ...] = ()
    if length is not None:
        headers = ((b"inference-header-content-length", b"%d" % length),)
    if encoding is not None:
        headers += ((b"content-encoding", encoding.encode()),)
    body = parts[0] if len(parts) == 1 else parts
    return HttpResponse(200, body, JSON if length is None else BINARY, headers)
