"""The writing half of one HTTP/1.1 connection: answers, refusals, and the connection's end."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from edge_agent.contract.errors import MalformedRequest, ShoalError
from edge_agent.serving.connections import Connections
from edge_agent.serving.http.answer import Ending, encode
from edge_agent.serving.http.chunked import ChunkedBody
from edge_agent.serving.http.head import Head
from edge_agent.serving.http.limits import LINGERING_BYTES, HttpLimits, Phase, phase_limits
from edge_agent.serving.http.message import HttpRequest, HttpResponse, Room, document, failure
from edge_agent.serving.http.refusals import RequestTimeout

_log = logging.getLogger(__name__)
# The rest of a refused body that is worth reading to keep the connection.
_DISCARDED_BYTES = 64 * 1024
_NO_HEAD = Head("", "", "", {}, 0, keep_alive=False, http_1_0=False, expects_continue=False)


class HttpAnswering(asyncio.BufferedProtocol):
    """Says what is to be said; :class:`edge_agent.serving.http.protocol.HttpProtocol` reads."""

    def __init__(self, connections: Connections, limits: HttpLimits) -> None:
        self._connections, self._seconds = connections, phase_limits(limits)
        self._transport: asyncio.Transport
        self._phase = Phase.IDLE
        self._since = 0.0  # when the sweep first saw this phase; 0 where it has not yet
        self._head = _NO_HEAD  # of the request at hand, or of the last one
        self._request: HttpRequest | None = None
        self._room: Room | None = None
        self._body: memoryview | None = None  # receives directly, from here on:
        self._arrived = 0
        self._chunks: ChunkedBody | None = None
        self._left = 0  # bytes to throw away
        self._stash = bytearray()  # received, but not looked at yet, or not a whole head
        self._writing_paused = self._draining = False

    def _answer(self, response: HttpResponse) -> None:
        """Write the answer and be ready for the next request."""
        head = self._head
        closing = self._draining or not head.keep_alive
        ending = Ending.CLOSE if closing else Ending.KEEP_ALIVE if head.http_1_0 else Ending.SILENT
        self._write(encode(response, ending, head_only=head.method == "HEAD"))
        self._release()
        if closing:
            self._close()
            return
        self._connections.answered()
        self._phase = Phase.BLOCKED if self._writing_paused else Phase.IDLE
        self._since = 0.0

    def _failure(self, error: BaseException) -> HttpResponse:
        if isinstance(error, ShoalError):
            return failure(error)
        # A mistake of ours; the protocol's clients need their error body all the same.
        _log.error("%s %s failed", self._head.path, self._head.method, exc_info=error)
        return document({"error": f"internal error: {type(error).__name__}; see the agent's log"}, status=500)

    def _refuse_body(self, response: HttpResponse, length: int | None) -> None:
        """Answer a request whose body is not wanted, and go on after the body where that is worth it."""
        head = self._head
        short = length is not None and length <= _DISCARDED_BYTES and not (length and head.expects_continue)
        if short and head.keep_alive and not self._draining:
            self._answer(response)
            if length:
                self._left = length
                self._enter(Phase.DISCARD)
            return
        self._write(encode(response, Ending.CLOSE, head_only=head.method == "HEAD"))
        self._linger()

    def _refuse(self, error: ShoalError) -> None:
        """Answer what cannot be read on after: the connection ends with it."""
        self._write(encode(failure(error), Ending.CLOSE, head_only=False))
        self._linger()

    def _write(self, data: bytes | list[Any]) -> None:
        # One system call each: uvloop hands the pieces of writelines to one writev.
        if isinstance(data, bytes):
            self._transport.write(data)
        else:
            self._transport.writelines(data)

    # ---- ending ----

    def _enter(self, phase: Phase) -> None:
        self._phase, self._since = phase, 0.0

    def _release(self) -> None:
        room, self._room = self._room, None
        if room is not None:
            room.release()

    def _close(self) -> None:
        self._enter(Phase.CLOSING)
        self._transport.close()

    def _linger(self) -> None:
        """Close once the application has read the answer; closing at once would take it away from it (TCP resets)."""
        self._give_up_request()
        self._left = LINGERING_BYTES
        self._enter(Phase.LINGER)
        if not self._transport.is_closing() and self._transport.can_write_eof():
            self._transport.write_eof()

    def _give_up_request(self) -> None:
        self._release()
        self._body = self._chunks = self._request = None
        self._stash = bytearray()

    def _expire(self) -> None:
        if self._phase is Phase.IDLE:
            self._close()
        elif self._phase in (Phase.HEAD, Phase.BODY, Phase.CHUNKS):
            part = "head" if self._phase is Phase.HEAD else "body"
            self._refuse(RequestTimeout(f"the request's {part} did not arrive within {self._seconds[self._phase]:g} s"))
        else:
            self._transport.abort()

    def _truncated(self) -> ShoalError:
        if self._phase is Phase.BODY:
            return MalformedRequest(f"the body ended after {self._arrived} of {self._head.length} bytes")
        return MalformedRequest(f"the request ended within its {'head' if self._phase is Phase.HEAD else 'body'}")
