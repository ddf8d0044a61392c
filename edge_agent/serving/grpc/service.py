"""The protocol's gRPC service: inference on the serving core, everything else through the routes of the REST API.

So a model's metadata, an index or a registration says the same over both, and the same applications may ask for it.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import unquote

import grpc
import grpc.aio
import msgspec
from google.protobuf.message import Message

from edge_agent.contract.errors import CallerError, ModelUnavailable, ShoalError, UnknownModel
from edge_agent.runtime.repository import Repository
from edge_agent.runtime.slots import LoadedModel, Slots
from edge_agent.serving.access import Access, App, is_loopback
from edge_agent.serving.admission import Admission
from edge_agent.serving.grpc import oip_pb2 as oip
from edge_agent.serving.grpc.messages import (
    inference_request,
    inference_response,
    is_slow_to_read,
    is_slow_to_write,
)
from edge_agent.serving.grpc.methods import METHODS, Method
from edge_agent.serving.http.message import HttpHandler, HttpRequest
from edge_agent.serving.inference import Inference
from edge_agent.serving.peer import Peer, Transport
from edge_agent.serving.request import InferenceAnswer, InferenceRequest
from edge_agent.serving.shared_memory import Regions
from edge_agent.serving.waking import lease_awake

SERVICE = "inference.GRPCInferenceService"
Context = grpc.aio.ServicerContext[Any, Any]
log = logging.getLogger(__name__)

_CODES: Mapping[int, grpc.StatusCode] = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}


class GrpcService:
    """Answers calls in the event loop's thread.

    Args:
        routes: Of the REST API.
        max_rows: Rows that one request may hold.
    """

    def __init__(
        self,
        routes: HttpHandler,
        *,
        slots: Slots,
        repository: Repository,
        inference: Inference,
        regions: Regions,
        access: Access,
        admission: Admission,
        max_rows: int,
    ) -> None:
        self._routes, self._inference = routes, inference
        self._lease_awake = functools.partial(lease_awake, slots, repository, inference)
        self._regions, self._access, self._admission, self._max_rows = regions, access, admission, max_rows

    def handlers(self) -> grpc.GenericRpcHandler[Any, Any]:
        """All methods, as a server takes them."""
        told = {
            name: grpc.unary_unary_rpc_method_handler(
                self._answered(method), method.request.FromString, method.response.SerializeToString
            )
            for name, method in METHODS.items()
        }
        told["ModelInfer"] = grpc.unary_unary_rpc_method_handler(
            self._infer, oip.ModelInferRequest.FromString, oip.ModelInferResponse.SerializeToString
        )
        told["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(
            self._infer_stream, oip.ModelInferRequest.FromString, oip.ModelStreamInferResponse.SerializeToString
        )
        return grpc.method_handlers_generic_handler(SERVICE, told)

    async def _infer(self, request: oip.ModelInferRequest, context: Context) -> oip.ModelInferResponse:
        try:
            return await self._answer(request, self._identify(context))
        except ShoalError as error:
            await _abort(context, error)
            raise AssertionError("abort raises") from error

    async def _infer_stream(
        self, requests: AsyncIterator[oip.ModelInferRequest], context: Context
    ) -> AsyncIterator[oip.ModelStreamInferResponse]:
        """Each request's answer in turn; an error is the answer of its own request and ends nothing."""
        async for request in requests:
            try:
                answer = await self._answer(request, self._identify(context))
                yield oip.ModelStreamInferResponse(infer_response=answer)
            except ShoalError as error:
                yield oip.ModelStreamInferResponse(
                    error_message=str(error), infer_response=oip.ModelInferResponse(id=request.id)
                )

    async def _answer(self, message: oip.ModelInferRequest, app: App) -> oip.ModelInferResponse:
        self._access.enter(app, message.model_name)
        with await self._lease_awake(message.model_name, message.model_version or None) as loaded:
            if self._inference.inline(loaded) and not is_slow_to_read(message):
                request = self._decode(loaded, message)
                return self._encode(loaded, request, self._inference.answer(loaded, request))
            with self._admission.admit(message.ByteSize()):
                return await self._answer_later(loaded, message)

    async def _answer_later(self, loaded: LoadedModel, message: oip.ModelInferRequest) -> oip.ModelInferResponse:
        in_thread = self._inference.in_thread
        if is_slow_to_read(message):
            request = await in_thread(self._decode, loaded, message)
        else:
            request = self._decode(loaded, message)
        answer = await self._inference.answer_later(loaded, request)
        if is_slow_to_write(answer):
            return await in_thread(self._encode, loaded, request, answer)
        return self._encode(loaded, request, answer)

    def _decode(self, loaded: LoadedModel, message: oip.ModelInferRequest) -> InferenceRequest:
        try:
            return inference_request(message, loaded.signature, max_rows=self._max_rows, regions=self._regions)
        except CallerError as error:
            self._inference.refused(loaded, error)
            raise

    def _encode(
        self, loaded: LoadedModel, request: InferenceRequest, answer: InferenceAnswer
    ) -> oip.ModelInferResponse:
        return inference_response(request, answer, loaded.signature, self._regions, task=loaded.manifest.task)

    def _identify(self, context: Context) -> App:
        return self._access.identify(_peer(context.peer()), _token(context))

    def _answered(self, method: Method) -> Callable[[Any, Context], Awaitable[Message]]:
        async def answer(request: Any, context: Context) -> Message:
            try:
                return method.read(await self._ask(method, request, context))
            except (UnknownModel, ModelUnavailable) as error:
                if method.response is not oip.ModelReadyResponse:
                    await _abort(context, error)
                return oip.ModelReadyResponse(ready=False)  # an answer, not an error, to its clients
            except ShoalError as error:
                await _abort(context, error)
                raise AssertionError("abort raises") from error

        return answer

    async def _ask(self, method: Method, message: Any, context: Context) -> Any:
        """The document that a route of the REST API answers."""
        verb, path, document = method.route(message)
        body = b"" if document is None else msgspec.json.encode(document)
        token = _token(context)
        headers = {} if token is None else {b"authorization": f"Bearer {token}".encode()}
        request = HttpRequest(verb, unquote(path), "", headers, _peer(context.peer()), body)
        room = self._routes.admit(request, len(body))
        try:
            answer = self._routes.handle(request)
            response = await answer if inspect.isawaitable(answer) else answer
        finally:
            room.release()
        data = response.body
        return msgspec.json.decode(data if isinstance(data, bytes | bytearray | memoryview) else b"".join(data))


def _token(context: Context) -> str | None:
    """The bearer token that the call brings."""
    for key, value in context.invocation_metadata() or ():
        if key == "authorization" and isinstance(value, str):
            scheme, _, token = value.partition(" ")
            return token.strip() if scheme.lower() == "bearer" else ""
    return None


def _peer(text: str) -> Peer:
    """Who calls, as gRPC writes it: ``ipv4:127.0.0.1:4711``, ``ipv6:%5B::1%5D:4711``, ``unix:``.

    gRPC does not tell whose process is at the other end of a unix socket.
    """
    kind, _, rest = text.partition(":")
    if kind == "unix":
        return Peer(Transport.GRPC)
    host = unquote(rest).rpartition(":")[0].strip("[]")
    return Peer(Transport.GRPC, address=host, loopback=is_loopback(host))


async def _abort(context: Context, error: ShoalError) -> None:
    headers = {name.decode(): value.decode() for name, value in error.http_headers}
    trailing = [(name, value) for name, value in headers.items() if name == "retry-after"]
    await context.abort(_CODES.get(error.http_status, grpc.StatusCode.INTERNAL), str(error), tuple(trailing))
