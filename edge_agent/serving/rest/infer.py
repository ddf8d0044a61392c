"""Inference over HTTP: from a request's body to the answer's, in the event loop where that is quick."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Coroutine, Generator
from time import perf_counter_ns
from typing import Any, Final
from weakref import WeakKeyDictionary, WeakValueDictionary

from edge_agent.contract.errors import CallerError, MalformedRequest, ModelUnavailable, ShoalError
from edge_agent.contract.tensors import Datatype
from edge_agent.runtime.slots import LoadedModel, Slots
from edge_agent.serving.access import App
from edge_agent.serving.answer_templates import AnswerTemplates
from edge_agent.serving.codec import decode_request, encode_response
from edge_agent.serving.compression import SMALLEST_BYTES, answer_encoding, pack, request_encoding, unpack
from edge_agent.serving.http.message import HttpRequest, HttpResponse
from edge_agent.serving.inference import LONG_BYTES, Inference, Waker
from edge_agent.serving.json_request import names_text_elsewhere
from edge_agent.serving.plans import Plans
from edge_agent.serving.request import InferenceAnswer, InferenceRequest
from edge_agent.serving.rest.express import Express
from edge_agent.serving.rest.lane import Lane, response
from edge_agent.serving.rest.route import Target
from edge_agent.serving.shared_memory import Regions
from edge_agent.serving.waking import lease_awake

Buffer = bytes | bytearray | memoryview

BODY_LIMIT_BYTES: Final = 16 * 1024 * 1024
# Decoding so much JSON takes longer than a hand-over to a thread.
_SMALL_BYTES: Final = 64 * 1024
# Packing more takes longer than a hand-over.
_PACKED_HERE_BYTES: Final = 8 * 1024
# Elements that are written as JSON, or sorted by class, in the event loop.
_WRITTEN_HERE: Final = 8 * 1024
# What a packed body unpacks to was not in the room that it was promised: of large ones so many are held at once, and
# the others wait as they came.
_MAX_UNPACKED: Final = 4
_LENGTH: Final = b"inference-header-content-length"
_ENCODING: Final = b"content-encoding"
_ACCEPT: Final = b"accept-encoding"


class Unwritten:
    """An answer that the model has given, and that takes long to write or to pack; to be awaited once."""

    __slots__ = ("_writing",)

    def __init__(self, writing: Coroutine[Any, Any, HttpResponse]) -> None:
        self._writing = writing

    def __await__(self) -> Generator[Any, Any, HttpResponse]:
        return self._writing.__await__()

    def close(self) -> None:
        """It will not be awaited."""
        self._writing.close()


class InferRoute:
    """Answers inference requests; called in the event loop's thread.

    Args:
        regions: Shared memory that requests may name.
        max_rows: Rows that one request may hold.
        body_limit_bytes: Longest body, once it is unpacked.
    """

    def __init__(
        self,
        slots: Slots,
        repository: Waker,
        inference: Inference,
        regions: Regions,
        *,
        max_rows: int,
        body_limit_bytes: int = BODY_LIMIT_BYTES,
    ) -> None:
        self._slots, self._inference, self._regions = slots, inference, regions
        self._lease_awake = functools.partial(lease_awake, slots, repository, inference)
        self._max_rows, self._body_limit_bytes = max_rows, body_limit_bytes
        # They go with their model.
        self._plans: WeakKeyDictionary[LoadedModel, Plans] = WeakKeyDictionary()
        self._templates: WeakKeyDictionary[LoadedModel, AnswerTemplates] = WeakKeyDictionary()
        # They go with the connections that use them.
        self._lanes: WeakValueDictionary[tuple[str, str | None, int | None], Lane] = WeakValueDictionary()
        self._unpacking = asyncio.Semaphore(_MAX_UNPACKED)

    def __call__(self, request: HttpRequest, model: str, version: str | None) -> HttpResponse | Awaitable[HttpResponse]:
        """The answer at once for a quick model, few rows, and a body that is small or only looked at; else later.

        Raises:
            ShoalError: The request is refused, or failed; the awaitable may raise it too.
        """
        size = len(request.body)
        if size > LONG_BYTES or _ENCODING in request.headers:
            return self._later(request, model, version)
        try:
            lease = self._slots.lease(model, version)
        except ModelUnavailable as error:
            if not error.asleep:
                raise
            return self._later(request, model, version)
        with lease as loaded:
            if not self._inference.inline(loaded) or (size > _SMALL_BYTES and not _makes_views(loaded, request)):
                return self._later(request, model, version)
            if names_text_elsewhere(loaded.signature, request.body):
                return self._later(request, model, version)
            decoded = self._decode(loaded, request, request.body)
            if self._inference.is_long(loaded, decoded):
                return self._long(request, decoded, model, version)
            answer = self._inference.answer(loaded, decoded)
            if size > _SMALL_BYTES and _elements(decoded, answer) > _WRITTEN_HERE:
                return Unwritten(self._written_later(request, loaded, decoded, answer))
            parts, length = self._encode(loaded, decoded, answer)
        if _ACCEPT in request.headers and sum(map(len, parts)) > SMALLEST_BYTES:
            encoding = _wanted_encoding(request)
            if encoding is not None:
                return Unwritten(self._packed(parts, length, encoding))
        return response(parts, length)

    def express(
        self, request: HttpRequest, target: Target, app: App, count: Callable[[ShoalError], None]
    ) -> Express | None:
        """What answers small requests with this head at once; None where they go the ordinary way."""
        if _ENCODING in request.headers or _wanted_encoding(request) is not None:
            return None
        try:
            length = _json_length(request)
        except MalformedRequest:
            return None
        key = (target.model, target.version, length)
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = Lane(
                self._slots,
                self._inference,
                target.model,
                target.version,
                json_length=length,
                tools=self._tools,
            )
        return Express(lane, app=app, count=count)

    def _tools(self, loaded: LoadedModel) -> tuple[Plans, AnswerTemplates]:
        """What reads and writes bodies of a model, and does not keep it alive."""
        return self._plans_of(loaded), self._templates_of(loaded)

    async def _later(self, request: HttpRequest, model: str, version: str | None) -> HttpResponse:
        came_ns = perf_counter_ns()
        encoding = request_encoding(request.headers.get(_ENCODING))
        if encoding is None:
            return await self._unpacked_later(request, request.body, model, version, came_ns)
        async with self._unpacking:
            body = await self._inference.in_thread(unpack, request.body, encoding, limit_bytes=self._body_limit_bytes)
            if len(body) > _SMALL_BYTES:
                return await self._unpacked_later(request, body, model, version, came_ns)
        return await self._unpacked_later(request, body, model, version, came_ns)

    async def _long(
        self, request: HttpRequest, decoded: InferenceRequest, model: str, version: str | None
    ) -> HttpResponse:
        """A quick model's answer to what would hold the event loop: it has been read, and is not read again."""
        came_ns = perf_counter_ns()
        with await self._lease_awake(model, version):  # it stays awake until the thread has a lease
            parts, length = await self._inference.in_thread(self._answered, decoded, model, version, came_ns)
        return await self._finished(request, parts, length)

    async def _written_later(
        self, request: HttpRequest, loaded: LoadedModel, decoded: InferenceRequest, answer: InferenceAnswer
    ) -> HttpResponse:
        """An answer that takes long to write."""
        return await self._finished(request, *await self._inference.in_thread(self._encode, loaded, decoded, answer))

    async def _unpacked_later(
        self, request: HttpRequest, body: Buffer, model: str, version: str | None, came_ns: int
    ) -> HttpResponse:
        asleep_ns = perf_counter_ns()
        with await self._lease_awake(model, version) as loaded:
            came_ns += perf_counter_ns() - asleep_ns  # loading is nobody's turn
            if self._inference.inline(loaded):
                parts, length = await self._inference.in_thread(self._whole, request, body, model, version, came_ns)
            else:
                decoded = await self._decode_later(loaded, request, body)
                answer = await self._inference.answer_later(loaded, decoded, came_ns)
                if _elements(decoded, answer) > _WRITTEN_HERE:
                    parts, length = await self._inference.in_thread(self._encode, loaded, decoded, answer)
                else:
                    parts, length = self._encode(loaded, decoded, answer)
        return await self._finished(request, parts, length)

    async def _finished(self, request: HttpRequest, parts: list[Buffer], length: int | None) -> HttpResponse:
        encoding = _wanted_encoding(request)
        if encoding is None or sum(map(len, parts)) <= SMALLEST_BYTES:
            return response(parts, length)
        return await self._packed(parts, length, encoding)

    def _answered(
        self, decoded: InferenceRequest, model: str, version: str | None, came_ns: int
    ) -> tuple[list[Buffer], int | None]:
        """In a thread, with a lease of its own: the application may go away meanwhile."""
        with self._slots.lease(model, version) as loaded:
            return self._encode(loaded, decoded, self._inference.answer(loaded, decoded, came_ns))

    def _whole(
        self, request: HttpRequest, body: Buffer, model: str, version: str | None, came_ns: int
    ) -> tuple[list[Buffer], int | None]:
        """All of a request in one thread, with a lease of its own: the application may go away meanwhile."""
        with self._slots.lease(model, version) as loaded:
            decoded = self._decode(loaded, request, body)
            return self._encode(loaded, decoded, self._inference.answer(loaded, decoded, came_ns))

    async def _decode_later(self, loaded: LoadedModel, request: HttpRequest, body: Buffer) -> InferenceRequest:
        is_short = len(body) <= _SMALL_BYTES and not names_text_elsewhere(loaded.signature, body)
        if is_short or _makes_views(loaded, request):
            return self._decode(loaded, request, body)
        return await self._inference.in_thread(self._decode, loaded, request, body)

    def _decode(self, loaded: LoadedModel, request: HttpRequest, body: Buffer) -> InferenceRequest:
        try:
            length = _json_length(request)
            if length:
                return self._plans_of(loaded).decode(body, length)
            return decode_request(body, length, loaded.signature, max_rows=self._max_rows, regions=self._regions)
        except CallerError as error:
            self._inference.refused(loaded, error)
            raise

    def _plans_of(self, loaded: LoadedModel) -> Plans:
        plans = self._plans.get(loaded)
        if plans is None:
            plans = self._plans[loaded] = Plans(loaded.signature, max_rows=self._max_rows, regions=self._regions)
        return plans

    def _encode(
        self, loaded: LoadedModel, decoded: InferenceRequest, answer: InferenceAnswer
    ) -> tuple[list[Buffer], int | None]:
        if decoded.binary or decoded.outputs is not None:
            return self._templates_of(loaded).encode(decoded, answer)
        return encode_response(decoded, answer, loaded.signature, self._regions, task=loaded.manifest.task)

    def _templates_of(self, loaded: LoadedModel) -> AnswerTemplates:
        templates = self._templates.get(loaded)
        if templates is None:
            templates = AnswerTemplates(loaded.signature, self._regions, task=loaded.manifest.task)
            self._templates[loaded] = templates
        return templates

    async def _packed(self, parts: list[Buffer], length: int | None, encoding: str) -> HttpResponse:
        if sum(map(len, parts)) <= _PACKED_HERE_BYTES:
            return response(pack(parts, encoding), length, encoding)
        return response(await self._inference.in_thread(pack, parts, encoding), length, encoding)


def _json_length(request: HttpRequest) -> int | None:
    value = request.headers.get(_LENGTH)
    if value is None:
        return None
    if not value.isdigit() or len(value) > 18:
        shown = value[:40].decode("latin-1")
        raise MalformedRequest(f"header Inference-Header-Content-Length: must be a length in bytes, got {shown!r}")
    return int(value)


def _wanted_encoding(request: HttpRequest) -> str | None:
    """How the answer is to be packed.

    Within one machine only where the application names the one coding that it wants: HTTP libraries offer a list of
    them without being asked, and packing 600 KB takes 40 ms to save a copy of 0.1 ms.
    """
    accepted = request.headers.get(_ACCEPT)
    if accepted is not None and request.peer.loopback and b"," in accepted:
        return None
    return answer_encoding(accepted)


def _makes_views(loaded: LoadedModel, request: HttpRequest) -> bool:
    """Whether a large body is nearly all raw numbers, which are only looked at."""
    value = request.headers.get(_LENGTH, b"")
    return (
        value.isdigit()
        and len(value) <= 5
        and int(value) <= _SMALL_BYTES
        and all(spec.datatype is not Datatype.BYTES for spec in loaded.signature.inputs)
    )


def _elements(decoded: InferenceRequest, answer: InferenceAnswer) -> int:
    """Elements that take time to write: those in JSON, of text, or to be sorted by class."""
    wanted = decoded.outputs
    if wanted is None:
        return sum(array.size for array in answer.outputs.values() if not decoded.binary or array.dtype.kind == "O")
    return sum(
        answer.outputs[output.name].size
        for output in wanted
        if output.classes
        or not (output.binary or output.region is not None)
        or answer.outputs[output.name].dtype.kind == "O"
    )
