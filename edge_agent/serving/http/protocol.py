"""One HTTP/1.1 connection: takes requests out of what arrives, has them answered one after the other.

::

    IDLE -> HEAD -> BODY or CHUNKS -> WORKING -> BLOCKED -> IDLE       each step only where it has to wait:
                 -> DISCARD -> IDLE                                    most requests go from IDLE to IDLE at once
                 -> LINGER or CLOSING -> CLOSED

Three things keep the transport out of a request's way. A head that equals the last one of its connection, or
differs in a few values, is not parsed again. Timeouts are found by one sweep over all connections, not by timers. And a
body that does not come with its head is received straight into the buffer that the routes see.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

import numpy as np

from edge_agent.contract.errors import ShoalError
from edge_agent.contract.framing import ROOM_LEFT
from edge_agent.serving.connections import Connections
from edge_agent.serving.http.answer import CONTINUE, Ending, encode
from edge_agent.serving.http.chunked import ChunkedBody
from edge_agent.serving.http.head import HEAD_END, Head, refusal_of_start
from edge_agent.serving.http.head_reader import HeadReader
from edge_agent.serving.http.limits import HttpLimits, Phase
from edge_agent.serving.http.message import HttpHandler, Room, failure
from edge_agent.serving.http.refusals import HeadTooLarge, too_many_connections
from edge_agent.serving.http.working import HttpWorking
from edge_agent.serving.peer import Transport, peer_of

# Received while a request is being worked on; beyond it the socket is not read, so that its application waits.
_STASH_BYTES = 64 * 1024
# From here on a body's memory is not cleared before it is received into.
_LARGE_BODY_BYTES = 16 * 1024


class HttpProtocol(HttpWorking):
    """One connection, made by the factory of a listener.

    Args:
        handler: Answers the requests.
        connections: Counts this connection, and sweeps it.
        transport: Whether the listener is a TCP or a unix socket.
    """

    def __init__(
        self, handler: HttpHandler, connections: Connections, limits: HttpLimits, transport: Transport
    ) -> None:
        super().__init__(handler, connections, limits, transport)
        self._kind = transport
        self._max_header_bytes = limits.max_header_bytes
        self._received = connections.received  # what every connection receives into, in turn
        self._received_bytes = connections.received_bytes
        self._heads = HeadReader()
        self._repeats = False  # whether the head came before
        self._scanned = 0  # bytes of the stash in which a head does not end
        self._reading_paused = False

    # ---- what the event loop calls ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection, or tell the one too many that it is."""
        self._transport = cast(asyncio.Transport, transport)
        if self._connections.add(self):
            try:
                self._peer = peer_of(self._transport, self._kind)
            except (OSError, ValueError, TypeError):  # it has gone before anybody could ask who it is
                self._transport.abort()
        elif self._connections.add_refused(self):
            self._refuse(too_many_connections(self._connections.limit))
        else:
            self._transport.abort()

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's signature
        """Where to receive the next bytes."""
        return self._received if self._body is None else self._body[self._arrived :]

    def buffer_updated(self, nbytes: int) -> None:
        """Bytes have been received."""
        phase = self._phase
        if phase is Phase.BODY:
            self._arrived += nbytes
            self._connections.heard()
            if self._arrived >= cast(int, self._head.length):
                self._end_body(cast(memoryview, self._body))
        elif phase is Phase.HEAD or phase is Phase.WORKING or phase is Phase.BLOCKED:
            self._stash += self._received[:nbytes]
            self._advance()
        elif phase is not Phase.IDLE or not self._take_repeated(nbytes):
            self._take(self._received_bytes, self._received, nbytes)

    def eof_received(self) -> bool:
        """The application sends no more: it has gone, or its request will never be whole."""
        if self._phase in (Phase.HEAD, Phase.BODY, Phase.CHUNKS):
            self._write(encode(failure(self._truncated()), Ending.CLOSE, head_only=False))
        self._draining = True
        if self._phase is not Phase.WORKING:
            self._give_up_request()
            self._enter(Phase.CLOSING)
        return False  # the transport closes, once it has written what is left: for that long it is swept

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """The connection is closed, by whomever; work for it is cancelled."""
        self._enter(Phase.CLOSED)
        self._connections.remove(self)
        self._body = self._chunks = self._request = None
        self._stash = bytearray()
        if self._task is not None:
            self._task.cancel()  # its room is given back when it has ended
        else:
            self._release()

    def pause_writing(self) -> None:
        """The application does not read its answer as fast as it is written."""
        self._writing_paused = True
        if self._phase is Phase.IDLE:
            self._enter(Phase.BLOCKED)

    def resume_writing(self) -> None:
        """It has read most of it."""
        self._writing_paused = False
        if self._phase is Phase.BLOCKED:
            self._enter(Phase.IDLE)
            self._advance()

    # ---- what the connections call ----

    def sweep(self, now: float) -> None:
        """Close the connection where its phase has taken too long."""
        if self._since == 0.0:
            self._since = now
        elif now - self._since >= self._seconds[self._phase]:
            self._expire()

    def drain(self) -> None:
        """Close after the answer to the request at hand, or now where there is none."""
        self._draining = True
        if self._phase in (Phase.IDLE, Phase.BLOCKED):
            self._close()
        elif self._phase is Phase.DISCARD:
            self._linger()

    def abort(self) -> None:
        """Close now, whatever is in flight."""
        self._transport.abort()

    # ---- taking requests out of what arrives ----

    def _take(self, data: bytes | bytearray, view: memoryview, size: int) -> None:
        """Take in ``data[:size]``; what has to wait goes to the stash."""
        at = 0
        while at < size:
            phase = self._phase
            if phase is Phase.IDLE:
                at = self._take_request(data, view, at, size)
            elif phase is Phase.CHUNKS:
                at = self._take_chunks(view, at, size)
            elif phase is Phase.DISCARD:
                at = self._throw_away(at, size)
            elif phase in (Phase.HEAD, Phase.WORKING, Phase.BLOCKED):
                self._stash += view[at:size]
                return
            else:
                self._left -= size - at
                if phase is Phase.LINGER and self._left < 0:
                    self._transport.abort()
                return

    def _take_request(self, data: bytes | bytearray, view: memoryview, at: int, size: int) -> int:
        """Take one request, or as much of it as is there; return where the next one begins."""
        while data[at] in b"\r\n":  # RFC 9112, section 2.2: empty lines before a request mean nothing
            at += 1
            if at == size:
                return at
        end = data.find(HEAD_END, at, size)
        if end < 0 or end - at > self._max_header_bytes:
            self._enter(Phase.HEAD)
            self._scanned = 0
            self._check_start(data[at:size])
            return at
        end += len(HEAD_END)
        before = self._head
        try:
            head = self._head = self._heads.read(bytes(view[at:end]))
        except ShoalError as error:
            self._refuse(error)
            return end
        if head is not before:
            self._express, self._repeats = None, False
            return self._take_body(view, end, size, express=False)
        return self._take_body(view, end, size, express=self._has_express(head))

    def _take_repeated(self, size: int) -> bool:
        """Take what is one whole request with the head before, and nothing else, as nearly all that arrives is."""
        raw = self._heads.raw
        begin = len(raw)
        if self._express is None or size != begin + (self._head.length or 0) or self._draining:
            return False
        if not self._received_bytes.startswith(raw):
            return False
        body = bytes(self._received[begin:size])
        if not self._join(body) and not self._answer_express(body):
            self._answer_ordinarily(body)
        return True

    def _take_body(self, view: memoryview, at: int, size: int, *, express: bool) -> int:
        """Take the body of the head at hand, or as much of it as is there; return where it ends."""
        length = self._head.length
        whole = length is not None and size - at >= length
        if express and length:
            if not whole:  # nobody is asked about it before it is
                return self._begin_body(view, at, size)
            body = bytes(view[at : at + length])
            if self._join(body) or self._answer_express(body):
                return at + length
        request = self._request_of(self._head)
        if not self._admit(request, length, length):
            return at
        if not whole:
            self._request = request
            return self._begin_body(view, at, size)
        if length:
            request.body = bytes(view[at : at + length])
            at += length
        self._handle(request)
        return at

    def _has_express(self, head: Head) -> bool:
        """Whether requests with this head, which came before, may be answered at once."""
        if not self._repeats:
            self._repeats = True
            if head.length and head.keep_alive and not head.http_1_0:
                self._express = self._handler.express(self._request_of(head), head.length)
        return self._express is not None and not self._draining

    def _begin_body(self, view: memoryview, at: int, size: int) -> int:
        """Prepare for the rest of a body of which at most ``view[at:size]`` is there."""
        if self._head.expects_continue and at == size:
            self._transport.write(CONTINUE)
        length = self._head.length
        if length is None:
            self._chunks = ChunkedBody(cast(Room, self._room).limit_bytes)
            self._enter(Phase.CHUNKS)
            return at
        # Clearing 600 KB that will be overwritten costs 20 us and more; nobody sees them before they are.
        cleared, room = length < _LARGE_BODY_BYTES, length + ROOM_LEFT
        self._body = memoryview(bytearray(room) if cleared else cast(Any, np.empty(room, np.uint8)))
        self._arrived = size - at
        self._body[: self._arrived] = view[at:size]
        self._connections.heard()
        self._enter(Phase.BODY)
        return size

    def _end_body(self, body: memoryview) -> None:
        """Have the request answered whose body has arrived, and go on with what came behind it."""
        length = cast(int, self._head.length)
        self._stash += body[length : self._arrived]
        self._handle_body(body[:length])
        if self._stash:
            self._advance()

    def _take_chunks(self, view: memoryview, at: int, size: int) -> int:
        chunks = cast(ChunkedBody, self._chunks)
        try:
            at = chunks.feed(view, at, size)
        except ShoalError as error:
            self._refuse(error)
            return size
        if chunks.whole:
            self._handle_body(memoryview(chunks.body))
        return at

    def _throw_away(self, at: int, size: int) -> int:
        taken = min(self._left, size - at)
        self._left -= taken
        if self._left == 0:
            self._enter(Phase.BLOCKED if self._writing_paused else Phase.IDLE)
        return at + taken

    def _check_start(self, start: bytes | bytearray) -> None:
        """Refuse a head that is too long or cannot become one, without waiting for the rest."""
        if len(start) > self._max_header_bytes:
            limit = f"{self._max_header_bytes} bytes (max_header_kib under [api] in the agent's settings)"
            self._refuse(HeadTooLarge(f"request line and headers are longer than the limit of {limit}"))
        elif (error := refusal_of_start(start)) is not None:
            self._refuse(error)

    def _advance(self) -> None:
        """Go on with what was received while the connection waited."""
        if self._phase is Phase.HEAD:
            end = self._stash.find(HEAD_END, max(0, self._scanned - len(HEAD_END)))
            if end < 0:
                self._check_start(self._stash)
                self._scanned = len(self._stash)
            else:
                self._phase = Phase.IDLE
        if self._phase is Phase.IDLE and self._stash:
            data, self._stash = bytes(self._stash), bytearray()
            self._take(data, memoryview(data), len(data))
        # While nobody reads, nobody notices either that the application has gone: only a greedy one is made to wait.
        waiting = self._phase in (Phase.WORKING, Phase.BLOCKED) and len(self._stash) > _STASH_BYTES
        if waiting and not self._reading_paused:
            self._reading_paused = True
            self._transport.pause_reading()
        elif self._reading_paused and not waiting and self._phase not in (Phase.CLOSING, Phase.CLOSED):
            self._reading_paused = False
            self._transport.resume_reading()
