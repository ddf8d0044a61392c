"""The middle of one HTTP/1.1 connection: whole requests are let in and answered, at once, with others, or later."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Awaitable

from edge_agent.contract.errors import Busy
from edge_agent.serving.connections import Connections
from edge_agent.serving.http.answering import HttpAnswering
from edge_agent.serving.http.head import Head
from edge_agent.serving.http.limits import HttpLimits, Phase
from edge_agent.serving.http.message import Buffer, Express, HttpHandler, HttpRequest, HttpResponse, failure
from edge_agent.serving.http.refusals import BodyTooLarge
from edge_agent.serving.peer import Peer, Transport


class HttpWorking(HttpAnswering):
    """Has requests answered; :class:`edge_agent.serving.http.protocol.HttpProtocol` reads them.

    Args:
        handler: Answers the requests.
        transport: Whether the listener is a TCP or a unix socket.
    """

    def __init__(
        self, handler: HttpHandler, connections: Connections, limits: HttpLimits, transport: Transport
    ) -> None:
        super().__init__(connections, limits)
        self._handler = handler
        self._peer = Peer(transport, loopback=False)
        self._express: Express | None = None  # what answers a head that came before
        self._task: asyncio.Future[HttpResponse] | None = None

    @abstractmethod
    def _advance(self) -> None:
        """Go on with what was received while the connection waited."""

    def _join(self, body: bytes) -> bool:
        """Have it answered with those of other connections that are read in this turn of the loop; else False."""
        if self._express is None or not self._connections.several:
            return False
        try:
            waiting = self._express.join(body, self._take_outcome)
            if waiting == 1:
                self._connections.heard()
            elif not waiting:
                return False
        except Exception as error:  # noqa: BLE001 - logged; whatever happens to one request, others are served
            self._answer(self._failure(error))
            return True
        self._phase = Phase.WORKING
        return True

    def _take_outcome(self, body: bytes, outcome: bytes | list[Buffer] | Exception | None) -> None:
        """The answer to a request that was joined."""
        if self._phase is Phase.CLOSED:
            return
        if outcome is None:
            self._answer_ordinarily(body)
        elif isinstance(outcome, Exception):
            self._answer(self._failure(outcome))
        elif self._draining:
            start, *rest = [outcome] if isinstance(outcome, bytes) else outcome
            self._write([bytes(start).replace(b"\r\n", b"\r\nconnection: close\r\n", 1), *rest])
            self._close()
            return
        else:
            self._write(outcome)
            self._connections.answered()
            self._phase = Phase.BLOCKED if self._writing_paused else Phase.IDLE
            self._since = 0.0
        if self._stash:
            self._advance()

    def _answer_express(self, body: bytes | memoryview) -> bool:
        """Have it answered at once; False where it goes the ordinary way."""
        if self._express is None or self._draining:
            return False
        self._connections.heard()
        try:
            data = self._express.answer(body)
        except Exception as error:  # noqa: BLE001 - logged; whatever happens to one request, others are served
            self._answer(self._failure(error))
            return True
        if data is None:
            return False
        self._write(data)
        self._connections.answered()
        self._phase = Phase.BLOCKED if self._writing_paused else Phase.IDLE
        self._since = 0.0
        return True

    def _request_of(self, head: Head) -> HttpRequest:
        return HttpRequest(head.method, head.path, head.query, head.headers, self._peer)

    def _admit(self, request: HttpRequest, length: int | None, left: int | None) -> bool:
        """Whether the request is worth reading on; where not, it has been answered.

        Args:
            left: Of its body, what has not been taken out of what arrived.
        """
        try:
            room = self._handler.admit(request, length)
        except Exception as error:  # noqa: BLE001 - logged; whatever happens to one request, others are served
            self._refuse_body(self._failure(error), left)
            return False
        self._room = room
        if length is not None and length > room.limit_bytes:
            self._release()
            self._refuse_body(failure(BodyTooLarge(room.limit_bytes)), left)
            return False
        return True

    def _handle_body(self, body: memoryview) -> None:
        request = self._request
        self._body = self._chunks = self._request = None
        if request is None:  # its head came before: nobody was asked about it
            if not self._answer_express(body):
                self._answer_ordinarily(body)
            return
        request.body = body
        self._handle(request)

    def _answer_ordinarily(self, body: bytes | memoryview) -> None:
        """Have a whole request answered that nobody was asked about yet."""
        request = self._request_of(self._head)
        if self._admit(request, len(body), 0):
            request.body = body
            self._handle(request)

    def _handle(self, request: HttpRequest) -> None:
        """Have a whole request answered, now or later."""
        self._connections.heard()
        try:
            answer = self._handler.handle(request)
            if isinstance(answer, HttpResponse):
                self._answer(answer)
            else:
                self._answer_later(answer)
        except Exception as error:  # noqa: BLE001 - logged; whatever happens to one request, others are served
            self._answer(self._failure(error))

    def _answer_later(self, answer: Awaitable[HttpResponse]) -> None:
        task = asyncio.ensure_future(answer)
        self._task = task
        self._enter(Phase.WORKING)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Future[HttpResponse]) -> None:
        self._task = None
        if task.cancelled():
            answer = failure(Busy("the request was given up: the agent is stopping"))
        else:
            # Not raised here: task, error and this frame would hold each other, and with them the whole body, until the
            # garbage collector comes round.
            error = task.exception()
            answer = task.result() if error is None else self._failure(error)
        if self._phase is Phase.CLOSED:
            self._release()
            return
        try:
            self._answer(answer)
        except Exception as mistake:  # noqa: BLE001 - logged; the answer that a route has made is none
            self._answer(self._failure(mistake))
        self._advance()
