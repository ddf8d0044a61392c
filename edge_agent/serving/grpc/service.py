"""The protocol's gRPC service: inference on the serving core, everything else through the routes of the REST API.

So a model's metadata, an index or a registration says the same over both, and the same applications may ask for it.
"""

from __future__ import annotations

import functools
import inspect
import ipaddress
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, NoReturn, TypeVar
from urllib.parse import unquote

import grpc
import grpc.aio
import msgspec
from google.protobuf.message import DecodeError, Message

from edge_agent.contract.errors import (
    CallerError,
    MalformedRequest,
    ModelUnavailable,
    ShoalError,
    UnknownModel,
)
from edge_agent.contract.failures import retry_after_s
from edge_agent.runtime.repository import Repository
from edge_agent.runtime.slots import LoadedModel, Slots
from edge_agent.serving.access import Access, App, bearer_token
from edge_agent.serving.admission import Admission
from edge_agent.serving.grpc import oip_pb2 as oip
from edge_agent.serving.grpc.messages import (
    inference_request,
    inference_response,
    is_slow_to_read,
    is_slow_to_write,
)
from edge_agent.serving.grpc.methods import METHODS, Method
from edge_agent.serving.grpc.reads import Context, Reads
from edge_agent.serving.http.message import HttpHandler, HttpRequest
from edge_agent.serving.inference import Inference
from edge_agent.serving.peer import Peer, Transport
from edge_agent.serving.request import InferenceAnswer, InferenceRequest
from edge_agent.serving.shared_memory import Regions
from edge_agent.serving.waking import lease_awake

SERVICE = "inference.GRPCInferenceService"
M = TypeVar("M", bound=Message)

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
        message_s: Seconds in which the message of a call must arrive.
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
        message_s: float,
    ) -> None:
        self._routes, self._inference = routes, inference
        self._lease_awake = functools.partial(lease_awake, slots, repository, inference)
        self._regions, self._access, self._admission = regions, access, admission
        self._max_rows, self._message_s, self._idle_s = max_rows, message_s, message_s
        self._reads = Reads()

    def handlers(self, *, max_calls: int, max_bytes: int, idle_s: float) -> grpc.GenericRpcHandler[Any, Any]:
        """All methods, as a server takes them.

        Args:
            max_calls: That the server takes at once.
            max_bytes: Longest message that it takes.
            idle_s: Seconds for which a stream may send nothing.
        """
        self._reads.limit(max_calls=max_calls, max_bytes=max_bytes)
        self._idle_s = max(idle_s, self._message_s)  # a message under way looks as one that nobody sends
        # All of them as streams of requests, though most take one: so it is known who asks before a message is read.
        told = {
            name: grpc.stream_unary_rpc_method_handler(
                self._answered(method), response_serializer=method.response.SerializeToString
            )
            for name, method in METHODS.items()
        }
        told["ModelInfer"] = grpc.stream_unary_rpc_method_handler(
            self._infer, response_serializer=oip.ModelInferResponse.SerializeToString
        )
        told["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(
            self._infer_stream, response_serializer=oip.ModelStreamInferResponse.SerializeToString
        )
        return grpc.method_handlers_generic_handler(SERVICE, told)

    async def _infer(self, _: AsyncIterator[bytes], context: Context) -> oip.ModelInferResponse:
        try:
            app = self._identify(context)
            return await self._answer(await self._read(oip.ModelInferRequest, context, app), app)
        except ShoalError as error:
            await _abort(context, error)

    async def _infer_stream(self, _: AsyncIterator[bytes], context: Context) -> None:
        """Each request's answer in turn; an error is the answer of its own request and ends nothing."""
        last_bytes: int | None = None
        try:
            app = self._identify(context)
            caller = app.name, context.peer()
            while True:
                message = await self._reads.read(context, caller, self._idle_s, last_bytes=last_bytes)
                if message is None:
                    return
                last_bytes = len(message)
                await context.write(await self._answer_in_stream(message, app))
                del message  # it may be large, and the next one may be long in coming
        except ShoalError as error:
            await _abort(context, error)

    async def _answer_in_stream(self, message: bytes, app: App) -> oip.ModelStreamInferResponse:
        answer = oip.ModelStreamInferResponse()
        try:
            request = _parsed(oip.ModelInferRequest, message)
            answer.infer_response.id = request.id
            answer.infer_response.CopyFrom(await self._answer(request, app))
        except ShoalError as error:
            answer.error_message = str(error)
        return answer

    async def _read(self, kind: type[M], context: Context, app: App) -> M:
        """The one message of a call.

        Raises:
            MalformedRequest: There is none, or it is no such message.
            DeadlineExceeded: It does not come.
            Busy: It does not come, nor do too many others.
        """
        message = await self._reads.read(context, (app.name, context.peer()), self._message_s)
        if message is None:
            raise MalformedRequest("the call ended before its message was whole")
        return _parsed(kind, message)

    async def _answer(self, message: oip.ModelInferRequest, app: App) -> oip.ModelInferResponse:
        self._access.enter(app, message.model_name)
        with await self._lease_awake(message.model_name, message.model_version or None) as loaded:
            if self._inference.inline(loaded) and not is_slow_to_read(message):
                request = self._decode(loaded, message)
                if not self._inference.is_long(loaded, request):
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
        async def answer(_: AsyncIterator[bytes], context: Context) -> Message:
            try:
                if method.is_open:
                    request = method.request()
                else:
                    request = await self._read(method.request, context, self._identify(context))
                return method.read(await self._ask(method, request, context))
            except (UnknownModel, ModelUnavailable) as error:
                if method.response is not oip.ModelReadyResponse:
                    await _abort(context, error)
                return oip.ModelReadyResponse(ready=False)  # an answer, not an error, to its clients
            except ShoalError as error:
                await _abort(context, error)

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


def _parsed(kind: type[M], message: bytes) -> M:
    try:
        return kind.FromString(message)
    except DecodeError as error:
        raise MalformedRequest(f"the message's bytes are no {kind.DESCRIPTOR.name}") from error


def _token(context: Context) -> str | None:
    """The bearer token that the call brings."""
    for key, value in context.invocation_metadata() or ():
        if key == "authorization" and isinstance(value, str):
            return bearer_token(value)
    return None


def _peer(text: str) -> Peer:
    """Who calls, as gRPC writes it: ``ipv4:127.0.0.1:4711``, ``ipv6:%5B::1%5D:4711``, ``unix:``.

    gRPC does not tell whose process is at the other end of a unix socket.
    """
    kind, _, rest = text.partition(":")
    if kind == "unix":
        return Peer(Transport.GRPC)
    host = unquote(rest).rpartition(":")[0].strip("[]")
    try:
        loopback = ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:  # whatever it is, it is not known to be this machine
        loopback = False
    return Peer(Transport.GRPC, address=host, loopback=loopback)


async def _abort(context: Context, error: ShoalError) -> NoReturn:
    # What is raised now is held until the garbage collector comes round, and with it all that led here: the message.
    error.__traceback__ = None
    wait_s = retry_after_s(error)
    told = (("retry-after", str(math.ceil(wait_s))),) if wait_s else ()
    await context.abort(_CODES.get(error.http_status, grpc.StatusCode.INTERNAL), str(error), told)
