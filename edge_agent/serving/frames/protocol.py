"""One connection that speaks frames: receives, has requests answered, sends, and survives whatever comes in."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import functools
import logging
from typing import cast

from edge_agent.contract import frames
from edge_agent.contract.errors import Busy, DeadlineExceeded, DeviceError, MalformedRequest, MessageError, ShoalError
from edge_agent.contract.failures import failure_of
from edge_agent.contract.framing import FrameBuffer
from edge_agent.serving.access import App
from edge_agent.serving.admission import HeldRoom
from edge_agent.serving.connections import Connections
from edge_agent.serving.frames.handler import FrameHandler, Later, Parts
from edge_agent.serving.peer import Transport, unix_peer

log = logging.getLogger(__name__)

# Requests of one connection that are answered before others get their turn.
_TURN = 16
# How soon to ask again for the memory that a large frame needs, where there is none now.
_ROOM_PAUSE_S = 0.005


@dataclasses.dataclass(frozen=True, slots=True)
class FrameLimits:
    """What one connection may take.

    Args:
        frame_bytes: Longest frame, without its length field.
        frame_s: Seconds in which a frame must arrive once its first byte has, and in which a client that has answers
            waiting must read some.
        idle_s: Seconds after which a silent connection is closed.
        outstanding: Requests of one connection that wait or run at once; no more are read meanwhile.
    """

    frame_bytes: int = 16 * 1024 * 1024
    frame_s: float = 30.0
    idle_s: float = 120.0
    outstanding: int = 64


class FrameProtocol(asyncio.BufferedProtocol):
    """The agent's end of one connection; a member of :class:`edge_agent.serving.connections.Connections`.

    A client that closes its connection, or its sending half, gives up what it has not been answered.
    """

    def __init__(self, handler: FrameHandler, connections: Connections, limits: FrameLimits) -> None:
        self._handler, self._connections, self._limits = handler, connections, limits
        self._buffer = FrameBuffer(limits.frame_bytes, connections.received)
        self._read = handler.reader().read
        self._loop = asyncio.get_running_loop()
        self._app: App | None = None
        self._frames: collections.deque[tuple[memoryview, HeldRoom | None]] = collections.deque()
        self._tasks: set[asyncio.Task[Parts]] = set()
        self._waiting = 0  # requests that are answered at the end of this turn of the loop
        self._room: HeldRoom | None = None  # for the large frame that is arriving
        self._room_retry: asyncio.TimerHandle | None = None
        self._next_turn: asyncio.Handle | None = None
        self._reading = self._writable = True
        self._draining = self._closing = False
        # When the client was last heard, when the frame that is arriving began, since when nothing can be written.
        self._heard_at = self._begun_at = self._blocked_at = self._loop.time()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Look who it is, and whether there is room for one more."""
        self._transport = cast("asyncio.Transport", transport)
        if not self._connections.add(self):
            if not self._connections.add_refused(self):
                self._abort()
                return
            self._refuse(
                Busy(f"{self._connections.limit} connections are open, which is the limit, or the agent stops")
            )
            return
        try:
            self._app = self._handler.identify(unix_peer(transport.get_extra_info("socket"), Transport.FRAMES))
        except ShoalError as error:
            self._refuse(error)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - why it ended does not matter
        """The client has gone, and with it whoever would read its answers."""
        self._give_up()
        self._connections.remove(self)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - the frames' sizes say more
        """Where the next bytes are received."""
        return self._buffer.room()

    def buffer_updated(self, nbytes: int) -> None:
        """Some bytes have arrived."""
        self._heard_at = self._loop.time()
        was_partial = self._buffer.partial
        complete = self._buffer.received(nbytes)
        if self._closing:
            return
        if len(complete) == 1 and not was_partial and self._is_at_ease:
            # What nearly every request of a client that waits for its answers comes to: nothing else to look at.
            self._begun_at = self._heard_at
            self._take(complete[0], None)
            if self._tasks or self._draining or not self._writable:
                self._work()
            return
        if complete:
            # A large frame comes alone; small ones need no room until they leave the event loop.
            self._frames.append((complete[0], self._room))
            self._frames.extend((frame, None) for frame in complete[1:])
            self._room = None
        if complete or not was_partial:
            self._begun_at = self._heard_at
        if not complete:
            self._connections.heard()
        if self._buffer.wanted_bytes:
            self._find_room()
        self._work()

    def eof_received(self) -> bool:
        """The client sends no more: the transport closes, once it has sent what is left."""
        self._give_up()
        self._blocked_at = self._loop.time()
        return False

    def pause_writing(self) -> None:
        """The client does not read its answers: make no more of them."""
        self._writable = False
        self._blocked_at = self._loop.time()
        self._regulate()

    def resume_writing(self) -> None:
        """It has read."""
        self._writable = True
        self._work()

    def sweep(self, now: float) -> None:
        """Close the connection where its client is too slow."""
        limits = self._limits
        if not self._writable or self._closing:
            if now - self._blocked_at > limits.frame_s:
                self._abort()
        elif self._buffer.partial and now - self._begun_at > limits.frame_s:
            if self._room_retry is not None:
                self._refuse(Busy("no memory was free for a large frame: ask again in a moment, or send fewer at once"))
            elif self._reading:
                self._refuse(DeadlineExceeded(f"a frame did not arrive within {limits.frame_s:g} s"))
        elif not self._busy and not self._buffer.partial and now - self._heard_at > limits.idle_s:
            self._close()

    def drain(self) -> None:
        """Close once what has arrived is answered; at once where nothing is."""
        self._draining = True
        self._work()

    def abort(self) -> None:
        """Close now, whatever is in flight."""
        self._abort()

    @property
    def _is_at_ease(self) -> bool:
        """Whether nothing waits, is held, or is about to end, so that a request can be taken up and forgotten."""
        return (
            self._reading
            and self._writable
            and not (self._frames or self._tasks or self._closing or self._draining or self._room)
            and not (self._buffer.partial or self._buffer.wanted_bytes or self._buffer.refusal)
        )

    @property
    def _busy(self) -> bool:
        return bool(self._frames or self._tasks or self._waiting)

    @property
    def _may_meet(self) -> bool:
        """Whether more requests may be readable in this turn of the loop: of other clients, or of this one."""
        return self._connections.several or bool(self._frames) or self._waiting > 0

    def _work(self) -> None:
        """Take up waiting frames, a turn's worth, as far as there is room for their answers."""
        if self._next_turn is not None:
            return
        taken = 0
        while self._frames and self._may_take:
            if taken == _TURN:
                self._next_turn = self._loop.call_soon(self._take_turn)
                break
            frame, room = self._frames.popleft()
            taken += 1
            self._take(frame, room)
        if not self._busy and not self._closing:
            if self._buffer.refusal is not None:
                self._refuse(self._buffer.refusal)
            elif self._draining:
                self._close()
        self._regulate()

    def _take_turn(self) -> None:
        self._next_turn = None
        self._work()

    @property
    def _may_take(self) -> bool:
        return self._writable and not self._closing and len(self._tasks) + self._waiting < self._limits.outstanding

    def _take(self, frame: memoryview, room: HeldRoom | None) -> None:
        number = 0
        try:
            request, decoded = self._read(frame)
            number, app = request.id, self._app
            joins = room is None and app is not None and self._may_meet
            waiting = self._handler.join(request, cast(App, app), self._joined, decoded) if joins else 0
            if waiting < 2:
                self._connections.heard()
            if waiting:
                self._waiting += 1
                return
            answer = self._handler.answer(request, app, decoded) if app is not None else []
            if not isinstance(answer, list):
                self._start(number, answer, self._room_for(answer, room, len(frame)))
                return
            self._send(answer)
            self._connections.answered()
        except MessageError as error:
            self._refuse_frame(frame, MalformedRequest(str(error)))
        except ShoalError as error:
            self._send([frames.encode(failure_of(number, error))])
        except Exception as error:
            log.exception("a request in a frame")
            self._send([frames.encode(failure_of(number, _internal(error)))])
        if room is not None:
            room.release()

    def _joined(self, number: int, outcome: Parts | Exception) -> None:
        """The answer to a request that was joined with others of this turn."""
        self._waiting -= 1
        if self._closing:
            return
        if isinstance(outcome, list):
            self._send(outcome)
            self._connections.answered()
        elif isinstance(outcome, ShoalError):
            self._send([frames.encode(failure_of(number, outcome))])
        else:
            log.error("a request in a frame", exc_info=outcome)
            self._send([frames.encode(failure_of(number, _internal(outcome)))])
        if not self._waiting and (self._frames or self._draining or self._buffer.refusal or not self._reading):
            self._work()

    def _room_for(self, answer: Later, held: HeldRoom | None, size: int) -> HeldRoom:
        try:
            if held is None:
                return self._handler.room(size)
            held.begin()
            return held
        except Busy:
            answer.close()
            raise

    def _start(self, number: int, answer: Later, room: HeldRoom) -> None:
        task = self._loop.create_task(answer)
        self._tasks.add(task)
        task.add_done_callback(functools.partial(self._finish, number, room))

    def _finish(self, number: int, room: HeldRoom, task: asyncio.Task[Parts]) -> None:
        self._tasks.discard(task)
        room.release()
        if task.cancelled():
            return
        error = task.exception()
        if self._closing:
            return
        if error is None:
            self._send(task.result())
            self._connections.answered()
        elif isinstance(error, ShoalError):
            self._send([frames.encode(failure_of(number, error))])
        else:
            log.error("a request in a frame", exc_info=error)
            self._send([frames.encode(failure_of(number, _internal(error)))])
        self._work()

    def _refuse_frame(self, frame: memoryview, error: MalformedRequest) -> None:
        """Where the frame has an id, its client made a mistake in one request; else it speaks something else."""
        number = frames.number_of(frame)
        if number:
            self._send([frames.encode(failure_of(number, error))])
        else:
            self._refuse(error)

    def _send(self, parts: Parts) -> None:
        if len(parts) == 1:
            self._transport.write(parts[0])
        else:
            self._transport.writelines(parts)

    def _find_room(self) -> None:
        """Hold room for the large frame that begins; while there is none, nothing is read."""
        self._room_retry = None
        try:
            self._room = self._handler.hold(self._buffer.wanted_bytes)
        except Busy:
            self._room_retry = self._loop.call_later(_ROOM_PAUSE_S, self._find_room)
        self._regulate()

    def _regulate(self) -> None:
        """Read exactly while what would be read can be worked on."""
        if self._closing:
            return
        read = (
            self._may_take
            and not self._frames
            and not self._draining
            and self._room_retry is None
            and self._buffer.refusal is None
        )
        if read == self._reading:
            return
        self._reading = read
        if read:
            self._begun_at = self._loop.time()  # the client could not send the rest meanwhile
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def _refuse(self, error: ShoalError) -> None:
        """Tell what is wrong with the connection itself, and close it; what came before is answered first."""
        if self._waiting:
            self._handler.answer_joined()
            if self._closing:
                return
        self._transport.write(frames.encode(failure_of(0, error)))
        self._close()

    def _close(self) -> None:
        """Send what is left to send, then close."""
        self._give_up()
        self._blocked_at = self._loop.time()
        self._transport.close()

    def _abort(self) -> None:
        self._give_up()
        self._transport.abort()

    def _give_up(self) -> None:
        """Nothing more is taken up or answered; what was held is given back."""
        self._closing = True
        for handle in (self._room_retry, self._next_turn):
            if handle is not None:
                handle.cancel()
        self._room_retry = self._next_turn = None
        for _, room in self._frames:
            if room is not None:
                room.release()
        self._frames.clear()
        if self._room is not None:
            self._room.release()
            self._room = None
        for task in self._tasks:
            task.cancel()


def _internal(error: BaseException) -> DeviceError:
    return DeviceError(f"internal error: {type(error).__name__}; see the agent's log")
