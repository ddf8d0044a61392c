"""Inference requests whose head is that of the request before: all that the head decides was decided then.

An application sends the same head again and again. Who it is, which path it asks, where its JSON ends and how it wants
its answer need not be looked at each time; what may differ from one request to the next is: permission and quota, the
model that serves, whether it still runs in the event loop, and the body. A third less work for a small request.
"""

from __future__ import annotations

import functools
import math
import weakref
from collections.abc import Callable, Sequence
from typing import Protocol

from edge_agent.contract.errors import CallerError, ShoalError
from edge_agent.runtime.slots import LoadedModel, Slots
from edge_agent.serving.access import App
from edge_agent.serving.http.answer import Ending, head_of
from edge_agent.serving.http.message import JSON, Buffer, HttpResponse
from edge_agent.serving.inference import Inference
from edge_agent.serving.request import InferenceAnswer, InferenceRequest

BINARY = b"application/octet-stream"
# Joining so little costs less than another piece to write.
_JOINED_BYTES = 16 * 1024


class Reader(Protocol):
    """Takes bodies of one model apart; raises CallerError, which is not yet counted."""

    def __call__(self, body: Buffer, json_length: int | None) -> InferenceRequest:
        """See :meth:`edge_agent.serving.plans.Plans.decode`."""


class Writer(Protocol):
    """Gives the answer in pieces, and the length of its JSON where raw tensors follow it."""

    def __call__(self, request: InferenceRequest, answer: InferenceAnswer) -> tuple[list[Buffer], int | None]:
        """See :meth:`edge_agent.serving.answer_templates.AnswerTemplates.encode`."""


class Express:
    """Answers the requests of one connection that have one head; called in the event loop's thread.

    Args:
        version: As the path names it; None where it leaves it open.
        app: Who asks.
        json_length: As the head says; None where the whole body is JSON.
        tools: Gives what reads and writes the bodies of a model.
        count: Told of every request that is refused or fails.
    """

    __slots__ = ("_app", "_count", "_inference", "_json_length", "_limit", "_loaded", "_place", "_read", "_slots",
                 "_tools", "_write")  # fmt: skip

    def __init__(
        self,
        slots: Slots,
        inference: Inference,
        model: str,
        version: str | None,
        *,
        app: App,
        json_length: int | None,
        tools: Callable[[LoadedModel], tuple[Reader, Writer]],
        count: Callable[[ShoalError], None],
    ) -> None:
        self._slots, self._inference, self._place = slots, inference, (model, version)
        self._app, self._json_length, self._tools, self._count = app, json_length, tools, count
        # Not the model itself: one that is replaced must come free.
        self._loaded: Callable[[], LoadedModel | None] = _no_model
        self._read: Reader
        self._write: Writer
        self._limit = 0.0

    def answer(self, body: bytes | memoryview) -> bytes | list[Buffer] | None:
        """The bytes of the response, with its head; None where it has to go the ordinary way, nothing counted yet.

        Raises:
            ShoalError: The request is refused, or failed.
        """
        model, version = self._place
        try:
            lease = self._slots.lease(model, version)
        except ShoalError:
            return None
        with lease as loaded:
            if self._loaded() is not loaded:
                self._adopt(loaded)
            if len(body) > self._limit or not loaded.inline:
                return None
            try:
                self._app.enter(model, control=False)
                request = self._decode(loaded, body)
                if self._inference.is_long(loaded, request):  # a short body may name much in shared memory
                    self._app.leave()
                    return None
                parts, length = self._write(request, self._inference.answer(loaded, request))
            except ShoalError as error:
                self._count(error)
                raise
        size = len(parts[0]) if len(parts) == 1 else sum(map(len, parts))
        head = _head(size, length)
        return b"".join((head, *parts)) if size <= _JOINED_BYTES else [head, *parts]

    def _decode(self, loaded: LoadedModel, body: Buffer) -> InferenceRequest:
        try:
            return self._read(body, self._json_length)
        except CallerError as error:
            self._inference.refused(loaded, error)
            raise

    def _adopt(self, loaded: LoadedModel) -> None:
        """Another model serves under this name than the last time."""
        self._loaded = weakref.ref(loaded)
        self._read, self._write = self._tools(loaded)
        # In each form of the protocol an element takes a byte at least: so many rows there are at most.
        elements = sum(math.prod(axis or 1 for axis in spec.shape[1:]) for spec in loaded.signature.inputs)
        self._limit = self._inference.longest_inline(loaded) * max(1, elements)


def _no_model() -> LoadedModel | None:
    return None


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
