"""The paths of the REST API, who may ask them, and how much may wait: everything between the transport and the answers.

======  =========================================================  ===========================================
method  path                                                       what
======  =========================================================  ===========================================
GET     ``/v2``                                                    name, version, extensions
GET     ``/v2/health/live``, ``/v2/health/ready``                  whether it runs; whether it serves a model
GET     ``/v2/models/M[/versions/V][/ready|/config|/stats]``       a model's metadata, readiness, ...
GET     ``/v2/models/stats``                                       counts of all models
POST    ``/v2/models/M[/versions/V]/infer``                        inference
POST    ``/v2/models/M/feedback``                                  a label for an earlier request
POST    ``/v2/repository/index``                                   what this device holds
POST    ``/v2/repository/models/M/load``, ``.../unload``           for applications with ``control``
GET     ``/v2/systemsharedmemory[/region/R]/status``               so is registering: POST ``register``, ``unregister``
GET     ``/v2/cudasharedmemory[/region/R]/status``                 answered, though there is none
GET     ``/openapi.json``, ``/openapi/examples/M[/V]``             for generated clients
GET     ``/``, ``/docs``, ``/metrics``                             for people, and for Prometheus
======  =========================================================  ===========================================

Queries and slashes at the end make no difference; HEAD is GET. Errors are ``{"error": "..."}``.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from edge_agent.contract.errors import ModelUnavailable, ShoalError
from edge_agent.runtime.repository import Repository
from edge_agent.runtime.slots import Slots
from edge_agent.serving.access import Access, App, bearer_token
from edge_agent.serving.admission import Admission, HeldRoom, OpenRoom
from edge_agent.serving.connections import Connections
from edge_agent.serving.http.message import Express, HttpRequest, HttpResponse, Room
from edge_agent.serving.inference import Inference
from edge_agent.serving.labels import LabelSink
from edge_agent.serving.rest.cors import Origins
from edge_agent.serving.rest.feedback import FeedbackRoute
from edge_agent.serving.rest.infer import InferRoute, Unwritten
from edge_agent.serving.rest.introspection import Introspection
from edge_agent.serving.rest.metrics import BoardState, Metrics
from edge_agent.serving.rest.openapi import OpenApi
from edge_agent.serving.rest.paths import Paths, RegionAnswer
from edge_agent.serving.rest.repository_routes import RepositoryRoutes
from edge_agent.serving.rest.route import SMALL_BYTES, MethodNotAllowed, Needs, Route, Target
from edge_agent.serving.shared_memory import Regions

# Paths are few; somebody who tries many makes the table start anew.
_REMEMBERED_PATHS = 512
_LONGEST_PATH = 512


class Router:
    """Answers all requests of the REST API; implements :class:`edge_agent.serving.http.message.HttpHandler`.

    Args:
        feedback: Takes labels.
        body_limit_bytes: Longest body of an inference or load request.
        max_rows: Rows that one request may hold.
        cors_origins: Origins of web pages that may ask.
        connections: To be counted; None where nobody does.
        board: Shown at ``/metrics``; None where it tells nothing.
        trouble: What health says is wrong, though models are served.
    Raises:
        ConfigurationError: One of the origins is none.
    """

    def __init__(
        self,
        slots: Slots,
        repository: Repository,
        inference: Inference,
        feedback: LabelSink,
        regions: Regions,
        *,
        access: Access,
        admission: Admission,
        agent_version: str,
        max_rows: int,
        body_limit_bytes: int,
        cors_origins: Sequence[str] = (),
        connections: Connections | None = None,
        board: BoardState | None = None,
        trouble: str = "",
    ) -> None:
        self._slots, self._regions = slots, regions
        self._access, self._admission = access, admission
        self._limit_bytes = body_limit_bytes
        self._origins = Origins(cors_origins)
        self._errors: dict[int, int] = {}
        # Loading takes seconds, and a label waits for the disk: neither may keep the other, or inference, waiting.
        self._loading = ThreadPoolExecutor(1, thread_name_prefix="repository")
        self._disk = ThreadPoolExecutor(2, thread_name_prefix="disk")
        self._infer_answer = InferRoute(
            slots, repository, inference, regions, max_rows=max_rows, body_limit_bytes=body_limit_bytes
        )
        self._infer = Route("POST", Needs.MODEL, self._answer_infer, body_limit_bytes)
        metrics = Metrics(slots, access, admission, self._errors, connections, agent_version=agent_version, board=board)
        self._paths = Paths(
            Introspection(slots, agent_version=agent_version, max_rows=max_rows, trouble=trouble),
            RepositoryRoutes(slots, repository, self._loading, self._disk),
            FeedbackRoute(slots, feedback, self._disk),
            OpenApi(slots, access, self._disk, agent_version=agent_version),
            metrics,
            self._infer,
            self._shared_memory,
            body_limit_bytes,
        )
        self._targets: dict[str, Target] = {}
        self._inline_room = OpenRoom(body_limit_bytes)
        self._small_room = OpenRoom(SMALL_BYTES)

    def admit(self, head: HttpRequest, length: int | None) -> Room:
        """Decide on a request before its body is read; see :class:`edge_agent.serving.http.message.HttpHandler`."""
        try:
            target = self._targets.get(head.path) or self._resolve(head.path)
            route = target.route
            if head.method != route.method and not self._is_allowed(head, route):
                return self._small_room  # a preflight
            if route.is_open:
                return self._small_room
            app = self._identify(head)
            app.enter(target.model or None, control=route.is_control)
            if route is self._infer:
                return self._infer_room(target, length)
            if route.limit_bytes > SMALL_BYTES:
                return self._admission.hold(_bounded(length, route.limit_bytes), limit_bytes=route.limit_bytes)
            return self._small_room
        except ShoalError as error:
            self._count(head, error)
            raise

    def express(self, head: HttpRequest, length: int) -> Express | None:
        """What answers further requests with this head; see :class:`edge_agent.serving.http.message.HttpHandler`."""
        target = self._targets.get(head.path)
        if target is None or target.route is not self._infer or head.method != "POST" or self._origins.enabled:
            return None
        if not 0 < length <= SMALL_BYTES:
            return None
        token = _token(head)
        app = self._access.recognised(head.peer, token)
        if app is None:
            return None
        try:
            self._guard(head, token)
        except ShoalError:
            return None
        return self._infer_answer.express(head, target, app, functools.partial(self._count, head))

    def handle(self, request: HttpRequest) -> HttpResponse | Awaitable[HttpResponse]:
        """The answer at once, or later; see :class:`edge_agent.serving.http.message.HttpHandler`."""
        try:
            target = self._targets.get(request.path) or self._resolve(request.path)
            route = target.route
            if route is self._infer and request.method == "POST":
                answer = self._infer_answer(request, target.model, target.version)
            else:
                answer = self._answer(request, target)
        except ShoalError as error:
            self._count(request, error)
            raise
        if not isinstance(answer, HttpResponse):
            place = self._place_for(request, route, answer)
            task = asyncio.ensure_future(self._later(request, answer))
            # Not in the coroutine: no line of it is run where the task is cancelled before its first step, which a
            # connection does that is lost as its next request begins.
            task.add_done_callback(functools.partial(_ended, place, answer))
            return task
        if self._origins.enabled:
            answer.headers += self._origins.answer_headers(request)
        return answer

    def close(self) -> None:
        """End the threads, once what they do is done; loads that have not begun never do."""
        self._disk.shutdown(wait=True)
        self._loading.shutdown(wait=True, cancel_futures=True)

    async def _later(self, request: HttpRequest, waiting: Awaitable[HttpResponse]) -> HttpResponse:
        try:
            answer = await waiting
        except ShoalError as error:
            self._count(request, error)
            raise
        if self._origins.enabled:
            answer.headers += self._origins.answer_headers(request)
        return answer

    def _answer(self, request: HttpRequest, target: Target) -> HttpResponse | Awaitable[HttpResponse]:
        granted = self._origins.preflight(request)
        if granted is not None:
            return granted
        route = target.route
        if route.is_open:
            return route.answer(request, target, self._access.stranger)
        return route.answer(request, target, self._access.identify(request.peer, _token(request)))

    def _answer_infer(self, request: HttpRequest, target: Target, app: App) -> HttpResponse | Awaitable[HttpResponse]:  # noqa: ARG002 - a route's
        return self._infer_answer(request, target.model, target.version)

    def _shared_memory(self, answer: RegionAnswer) -> Callable[[HttpRequest, Target, App], HttpResponse]:
        return lambda request, target, _: answer(request, self._regions, target.region)

    def _identify(self, head: HttpRequest) -> App:
        token = _token(head)
        app = self._access.identify(head.peer, token)
        self._guard(head, token)
        return app

    def _guard(self, head: HttpRequest, token: str | None) -> None:
        if token is None or not self._access.has_tokens:
            self._origins.guard(head)

    def _is_allowed(self, head: HttpRequest, route: Route) -> bool:
        """Whether the route takes the method; False for a preflight, which any path takes.

        Raises:
            MethodNotAllowed: It does not.
        """
        if head.method == "HEAD" and route.method == "GET":
            return True
        if self._origins.preflight(head) is not None:
            return False
        raise MethodNotAllowed(head.path, head.method, route.allow)

    def _place_for(self, request: HttpRequest, route: Route, answer: Awaitable[HttpResponse]) -> OpenRoom | HeldRoom:
        """A place for what is not answered at once, taken when its request is whole: a slow sender has none.

        What the model has answered needs none: to refuse it then would be to ask it again.

        Raises:
            Busy: There is none.
        """
        if route.limit_bytes <= SMALL_BYTES or request.method != "POST" or isinstance(answer, Unwritten):
            return self._small_room
        is_large = len(request.body) > SMALL_BYTES or b"transfer-encoding" in request.headers
        has_room = is_large or route is not self._infer
        try:
            return self._admission.admit(0 if has_room else len(request.body))
        except ShoalError as error:
            self._count(request, error)
            _give_up(answer)
            raise

    def _infer_room(self, target: Target, length: int | None) -> Room:
        """Room for a large body, or one of unknown length; a small one takes it once it is whole, if it needs any."""
        try:
            self._slots.get(target.model, target.version)
        except ModelUnavailable as error:
            if not error.asleep:
                raise
        if length is not None and (length <= SMALL_BYTES or length > self._limit_bytes):
            return self._inline_room  # where it is too long the transport says so
        return self._admission.hold(_bounded(length, self._limit_bytes), limit_bytes=self._limit_bytes)

    def _count(self, request: HttpRequest, error: ShoalError) -> None:
        status = error.http_status
        self._errors[status] = self._errors.get(status, 0) + 1
        if self._origins.enabled:  # else the page would be told nothing but that something failed
            error.http_headers += self._origins.answer_headers(request)

    def _resolve(self, path: str) -> Target:
        target = self._paths.resolve(path)
        if len(path) <= _LONGEST_PATH:
            if len(self._targets) >= _REMEMBERED_PATHS:
                self._targets.clear()
            self._targets[path] = target
        return target


def _ended(place: OpenRoom | HeldRoom, answer: Awaitable[HttpResponse], _: object) -> None:
    place.release()
    _give_up(answer)


def _give_up(answer: Awaitable[HttpResponse]) -> None:
    """Say that nobody will await it, where it has not begun; else it has ended, and this changes nothing."""
    if inspect.iscoroutine(answer) or isinstance(answer, Unwritten):
        answer.close()


def _token(request: HttpRequest) -> str | None:
    value = request.headers.get(b"authorization")
    return None if value is None else bearer_token(value.decode("latin-1"))


def _bounded(length: int | None, limit_bytes: int) -> int:
    """Bytes to hold room for: all that may come where it comes in chunks."""
    return limit_bytes if length is None else min(length, limit_bytes)
