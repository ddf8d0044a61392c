"""The local API as a plain ASGI callable: routes of the Open Inference Protocol v2, and feedback.

======  =============================================  ====================================================
method  path                                           what
======  =============================================  ====================================================
GET     ``/v2``                                        the server's name, version, extensions
GET     ``/v2/health/live``, ``/v2/health/ready``      whether it runs; whether it serves a model
GET     ``/v2/models/M[/versions/V]``                  a model's inputs and outputs
GET     ``/v2/models/M[/versions/V]/ready``            whether this model serves
POST    ``/v2/models/M[/versions/V]/infer``            inference
POST    ``/v2/models/M/feedback``                      a label for an earlier request
POST    ``/v2/repository/index``                       the models that serve
GET     ``/v2/models[/M[/versions/V]]/stats``          501: not there yet; so is ``config``
======  =============================================  ====================================================

Every error is ``{"error": "..."}`` with the status of its class in :mod:`edge_agent.contract.errors`.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, Protocol, TypeVar

import msgspec

from edge_agent.contract.errors import Busy, MalformedRequest, ShoalError
from edge_agent.contract.signature import TensorSpec
from edge_agent.runtime.slots import LoadedModel, Slots
from edge_agent.serving.admission import RETRY_AFTER_S, Admission
from edge_agent.serving.asgi import (
    INFERENCE_LENGTH,
    Disconnected,
    Headers,
    Receive,
    Scope,
    Send,
    UploadTooSlow,
    announced_length,
    error_body,
    header_length,
    read_body,
    respond,
)
from edge_agent.serving.body_inference import BodyInference
from edge_agent.serving.body_codec import MAX_ROWS
from edge_agent.serving.inference import Observer

BODY_LIMIT_BYTES = 16 * 1024 * 1024
MAX_PENDING = 64
_FEEDBACK_LIMIT_BYTES = 64 * 1024
# Decoding this much JSON takes longer than a hand-over to a thread.
_INLINE_BODY_BYTES = 64 * 1024
# A large body holds room that others wait for: an application that stops sending must give it back.
_UPLOAD_S = 30.0
EXTENSIONS = ("binary_tensor_data", "model_repository")

P = ParamSpec("P")
T = TypeVar("T")
log = logging.getLogger(__name__)


class FeedbackSink(Protocol):
    """Who takes labels; may block on the disk."""

    def feedback(self, loaded: LoadedModel, request_id: str, label: str | int, source: str) -> None:
        """Keep a label for an earlier request; it is safe when this returns.

        Raises:
            UnknownRequest: Nobody remembers the request.
            MalformedRequest: The model has no such class.
            StorageFull: It could not be kept.
        """


class _Feedback(msgspec.Struct, forbid_unknown_fields=True):
    request_id: str
    label: str | int
    source: str = "application"
    row: int | None = None


class _Refusal(Exception):
    """A path or method that does not exist."""

    def __init__(self, status: int, text: str, allow: str = "") -> None:
        super().__init__(text)
        self.status, self.allow = status, allow


class InferenceApp:
    """The ASGI application (HTTP and lifespan).

    Args:
        observer: Told of every request.
        feedback: Takes labels.
        threads: Threads for models that are too slow for the event loop's own, and for large bodies.
        body_limit_bytes: Largest body of one request; all that wait or run at once may take twice as much together.
        max_rows: Rows that one request may hold.
        max_pending: Requests that may be read, wait or run at once beside those that the loop answers itself.
    """

    def __init__(
        self,
        slots: Slots,
        observer: Observer,
        feedback: FeedbackSink,
        *,
        agent_version: str,
        threads: int = 4,
        body_limit_bytes: int = BODY_LIMIT_BYTES,
        max_rows: int = MAX_ROWS,
        max_pending: int = MAX_PENDING,
    ) -> None:
        self._slots = slots
        self._inference = BodyInference(observer, max_rows=max_rows)
        self._admission = Admission(max_requests=max_pending, max_bytes=2 * body_limit_bytes)
        self._feedback = feedback
        self._agent_version = agent_version
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="inference")
        self._body_limit_bytes = body_limit_bytes
        self._feedback_decoder = msgspec.json.Decoder(_Feedback)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one connection's event, as ASGI 3 has it."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        if scope["type"] != "http":
            raise RuntimeError(f"ASGI scope {scope['type']!r} is not served here")
        try:
            await self._route(scope, receive, send)
        except Disconnected:
            return
        except _Refusal as refusal:
            await respond(send, refusal.status, error_body(refusal), allow=refusal.allow)
        except Busy as error:
            await respond(send, error.http_status, error_body(error), retry_after_s=RETRY_AFTER_S)
        except ShoalError as error:
            await respond(send, error.http_status, error_body(error))
        except Exception as error:
            # A mistake of ours; the protocol's clients need their error body all the same.
            log.exception("%s %s", scope["method"], scope["path"])
            await respond(send, 500, error_body(f"internal error: {type(error).__name__}; see the agent's log"))

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                self._threads.shutdown(wait=True)
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        parts = scope["path"].strip("/").split("/")
        match parts:
            case ["v2", "models", model, "infer"]:
                await self._infer(model, None, scope, receive, send)
            case ["v2", "models", model, "versions", version, "infer"]:
                await self._infer(model, version, scope, receive, send)
            case ["v2", "models", model, "feedback"]:
                await self._take_feedback(model, scope, receive, send)
            case ["v2", "repository", "index"]:
                _allow(scope, "POST")
                await read_body(scope["headers"], receive, _FEEDBACK_LIMIT_BYTES)
                await respond(send, 200, msgspec.json.encode([_indexed(loaded) for loaded in self._slots.models()]))
            case _:
                status, document = self._document(parts, scope)
                await respond(send, status, msgspec.json.encode(document))

    def _document(self, parts: list[str], scope: Scope) -> tuple[int, dict[str, Any]]:
        """Status and body of the routes that only tell something."""
        answer: Callable[[], dict[str, Any]]
        match parts:
            case ["v2"]:
                answer = self._server
            case ["v2", "health", "live"]:
                answer = lambda: {"live": True, "ready": bool(self._slots.models())}  # noqa: E731 - one expression each
            case ["v2", "health", "ready"]:
                ready = bool(self._slots.models())
                _allow(scope, "GET")
                return (200 if ready else 503), {"live": True, "ready": ready}
            case ["v2", "models", *_, ("stats" | "config") as what] if self._is_missing(parts):
                raise _Refusal(501, f"{scope['path']}: {what} is a part of the protocol that is not there yet")
            case ["v2", "models", model]:
                answer = lambda: _metadata(self._slots.get(model))  # noqa: E731
            case ["v2", "models", model, "versions", version]:
                answer = lambda: _metadata(self._slots.get(model, version))  # noqa: E731
            case ["v2", "models", model, "ready"]:
                answer = lambda: _ready(self._slots.get(model))  # noqa: E731
            case ["v2", "models", model, "versions", version, "ready"]:
                answer = lambda: _ready(self._slots.get(model, version))  # noqa: E731
            case _:
                raise _Refusal(404, f"no such path: {scope['path']}; the API begins at /v2")
        _allow(scope, "GET")
        return 200, answer()

    def _server(self) -> dict[str, Any]:
        return {"name": "shoal-agent", "version": self._agent_version, "extensions": EXTENSIONS}

    def _is_missing(self, parts: list[str]) -> bool:
        """Whether a path that ends in ``stats`` or ``config`` means the protocol's, not a model of that name."""
        match parts[2:-1]:
            case []:
                return all(loaded.name != parts[-1] for loaded in self._slots.models())
            case [model]:
                self._slots.get(model)
            case [model, "versions", version]:
                self._slots.get(model, version)
            case _:
                return False
        return True

    async def _infer(self, model: str, version: str | None, scope: Scope, receive: Receive, send: Send) -> None:
        _allow(scope, "POST")
        headers = scope["headers"]
        json_length = header_length(headers, INFERENCE_LENGTH)
        size = announced_length(headers, self._body_limit_bytes)
        # Leased only after reading: a slow upload must not hold a model that is being replaced.
        if size > _INLINE_BODY_BYTES:
            self._slots.get(model, version)  # an unknown model is refused before its request is read
            with self._admission.admit(size):
                body = await self._read_large(headers, receive)
                with self._slots.lease(model, version) as loaded:
                    answer, length = await self._in_thread(self._inference.answer, loaded, body, json_length)
        else:
            body = await read_body(headers, receive, _INLINE_BODY_BYTES)
            with self._slots.lease(model, version) as loaded:
                if loaded.inline:
                    answer, length = self._inference.answer(loaded, body, json_length)
                else:
                    with self._admission.admit(size):
                        answer, length = await self._in_thread(self._inference.answer, loaded, body, json_length)
        await respond(send, 200, answer, json_length=length)

    async def _read_large(self, headers: Headers, receive: Receive) -> bytes:
        try:
            return await asyncio.wait_for(read_body(headers, receive, self._body_limit_bytes), _UPLOAD_S)
        except asyncio.TimeoutError as error:
            raise UploadTooSlow(f"the body did not arrive within {_UPLOAD_S:.0f} s") from error

    async def _in_thread(self, work: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(
            self._threads, functools.partial(work, *arguments, **named)
        )

    async def _take_feedback(self, model: str, scope: Scope, receive: Receive, send: Send) -> None:
        _allow(scope, "POST")
        body = await read_body(scope["headers"], receive, _FEEDBACK_LIMIT_BYTES)
        loaded = self._slots.get(model)
        try:
            told = self._feedback_decoder.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise MalformedRequest(f"the feedback's JSON: {error}") from error
        request_id = told.request_id if told.row is None else f"{told.request_id}/{told.row}"
        # In a thread: the label is on disk before the answer.
        with self._admission.admit(len(body)):
            await self._in_thread(self._feedback.feedback, loaded, request_id, told.label, told.source)
        await respond(
            send,
            200,
            msgspec.json.encode({"model_name": model, "request_id": told.request_id, "accepted": True}),
        )


def _allow(scope: Scope, method: str) -> None:
    """Refuse other methods; HEAD is GET without its body, which the server leaves out."""
    if scope["method"] != method and not (method == "GET" and scope["method"] == "HEAD"):
        raise _Refusal(405, f"{scope['path']}: takes {method}, not {scope['method']}", allow=method)


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    shape = [-1 if axis is None else axis for axis in spec.shape]
    return {"name": spec.name, "datatype": spec.datatype.value, "shape": shape}


def _metadata(loaded: LoadedModel) -> dict[str, Any]:
    return {
        "name": loaded.name,
        "versions": [loaded.version],
        "platform": loaded.backend.platform,
        "inputs": [_tensor(spec) for spec in loaded.signature.inputs],
        "outputs": [_tensor(spec) for spec in loaded.signature.outputs],
    }


def _ready(loaded: LoadedModel) -> dict[str, Any]:
    return {"name": loaded.name, "ready": True}


def _indexed(loaded: LoadedModel) -> dict[str, str]:
    return {"name": loaded.name, "version": loaded.version, "state": "READY", "reason": ""}
