"""The load: prebuilt requests on kept connections, each of which asks again when it is answered (a closed loop).

One connection is a plain blocking loop, which adds least of its own; several are one epoll loop without any framework,
so that the generator's core has time to spare where the server's has none.
"""

from __future__ import annotations

import dataclasses
import select
import socket
import struct
import time
from collections.abc import Callable

import numpy as np

from benchmarks.serving.framing import Framing

_RECEIVE_BYTES = 1 << 18
_TIMEOUT_S = 30.0
Connect = Callable[[], socket.socket]


@dataclasses.dataclass(frozen=True)
class Wire:
    """One way to ask a server.

    Args:
        connect: Opens a connection.
        request: The bytes that ask, for the connection with this number.
        before: Called with that number before each request, within the time that is measured: what an application has
            to do beside sending bytes, such as writing its input to shared memory.
    """

    name: str
    connect: Connect
    framing: Framing
    request: Callable[[int], bytes]
    before: Callable[[int], None] | None = None


@dataclasses.dataclass(frozen=True)
class Figures:
    """What one round measured.

    Args:
        requests: Answered in ``seconds``.
        first: Answered before, one on each connection, so that all were open.
    """

    requests: int
    seconds: float
    p50_us: float
    p99_us: float
    first: int = 0

    @property
    def requests_per_s(self) -> float:
        """Answered requests per second."""
        return self.requests / self.seconds

    def each_us(self, spent_s: float) -> float:
        """What each request took of what was spent on all, those before included."""
        return spent_s / (self.requests + self.first) * 1e6


def connect_tcp(port: int) -> Connect:
    """Connections to a port of this machine."""

    def connect() -> socket.socket:
        connection = _limited(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
        connection.connect(("127.0.0.1", port))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    return connect


def connect_unix(path: str) -> Connect:
    """Connections to a unix socket."""

    def connect() -> socket.socket:
        connection = _limited(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        connection.connect(path)
        return connection

    return connect


def _limited(connection: socket.socket) -> socket.socket:
    """The socket, with a limit on how long it blocks that the kernel keeps.

    One of Python's own would make two system calls of each, a poll before every send and receive.
    """
    limit = struct.pack("@ll", int(_TIMEOUT_S), 0)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
    return connection


def ask_once(wire: Wire) -> bytes:
    """What the server answers to one request, on a connection of its own.

    Raises:
        OSError: It cannot be reached, or closes the connection.
        ValueError: It refuses.
    """
    request = wire.request(0)
    with wire.connect() as connection:
        if wire.before is not None:
            wire.before(0)
        connection.sendall(request)
        return wire.framing.body(receive(connection, wire.framing))


def measure(wire: Wire, connections: int, seconds: float) -> Figures:
    """Ask for so many seconds.

    Raises:
        ValueError: An answer was a refusal.
        OSError: The server closed a connection, or was silent for half a minute.
    """
    if connections == 1:
        return _one(wire, seconds)
    loop = _Loop(wire, connections)
    try:
        return loop.run(seconds)
    finally:
        loop.close()


def _one(wire: Wire, seconds: float) -> Figures:
    times: list[int] = []
    request, before, framing = wire.request(0), wire.before, wire.framing
    with wire.connect() as connection:
        begin = last = time.perf_counter_ns()
        until = begin + int(seconds * 1e9)
        while last < until:
            last = time.perf_counter_ns()
            if before is not None:
                before(0)
            connection.sendall(request)
            answer = receive(connection, framing)
            now = time.perf_counter_ns()
            times.append(now - last)
            last = now
            if framing.is_refusal(answer):
                framing.body(answer)
    return _figures(times, (last - begin) / 1e9)


def receive(connection: socket.socket, framing: Framing) -> bytes:
    """One answer.

    Raises:
        OSError: The server closed the connection, or was silent for half a minute.
    """
    received = b""
    try:
        received = connection.recv(_RECEIVE_BYTES)
        while True:
            size = framing.size(received)
            if size and len(received) >= size:
                return received
            more = connection.recv(_RECEIVE_BYTES)
            if not more:
                raise ConnectionResetError(f"the server closed the connection after {received[:200]!r}")
            received += more
    except BlockingIOError as error:  # what the kernel's limit comes to
        raise TimeoutError(f"no answer for {_TIMEOUT_S:.0f} s, after {received[:200]!r}") from error


class _Connection:
    """One connection of the epoll loop."""

    __slots__ = ("asked_ns", "index", "received", "request", "rest", "socket")

    def __init__(self, wire: Wire, index: int) -> None:
        self.request = memoryview(wire.request(index))
        self.socket = wire.connect()
        self.socket.setblocking(False)
        self.index = index
        self.rest: memoryview | None = None  # what the kernel has not taken yet
        self.received = b""
        self.asked_ns = 0


class _Loop:
    """Several connections, each of which asks again as soon as it is answered."""

    def __init__(self, wire: Wire, count: int) -> None:
        self._framing, self._before = wire.framing, wire.before
        self._poller = select.epoll()
        self._times: list[int] = []
        connections = [_Connection(wire, index) for index in range(count)]
        self._connections = {connection.socket.fileno(): connection for connection in connections}
        for connection in connections:
            self._poller.register(connection.socket, select.EPOLLIN)

    def run(self, seconds: float) -> Figures:
        """Ask for so many seconds, from when every connection has had its first answer: applications keep theirs."""
        for connection in self._connections.values():
            self._ask(connection)
        new = set(self._connections)
        while new:
            new.difference_update(self._turn())
        first = len(self._times)
        self._times.clear()
        begin = now = time.perf_counter_ns()
        until = begin + int(seconds * 1e9)
        while now < until or not self._times:
            self._turn()
            now = time.perf_counter_ns()
        return dataclasses.replace(_figures(self._times, (now - begin) / 1e9), first=first)

    def _turn(self) -> list[int]:
        """Wait for answers, and ask again where they are whole: the numbers of these connections."""
        events = self._poller.poll(_TIMEOUT_S)
        if not events:
            raise TimeoutError(f"no answer for {_TIMEOUT_S:.0f} s")
        answered = []
        for number, event in events:
            connection = self._connections[number]
            if event & select.EPOLLOUT:
                self._push(connection)
            elif self._answered(connection):
                self._times.append(time.perf_counter_ns() - connection.asked_ns)
                self._ask(connection)
                answered.append(number)
        return answered

    def close(self) -> None:
        """Close all connections."""
        self._poller.close()
        for connection in self._connections.values():
            connection.socket.close()

    def _ask(self, connection: _Connection) -> None:
        connection.asked_ns = time.perf_counter_ns()
        if self._before is not None:
            self._before(connection.index)
        connection.rest = connection.request
        self._push(connection)

    def _push(self, connection: _Connection) -> None:
        """Send as much as the kernel takes; the poller says when it takes more."""
        rest = connection.rest
        if rest is None:
            return
        try:
            sent = connection.socket.send(rest)
        except BlockingIOError:
            sent = 0
        if sent == len(rest):
            connection.rest = None
            if rest is not connection.request:
                self._poller.modify(connection.socket, select.EPOLLIN)
        else:
            connection.rest = rest[sent:]
            self._poller.modify(connection.socket, select.EPOLLIN | select.EPOLLOUT)

    def _answered(self, connection: _Connection) -> bool:
        """Receive; whether the answer is whole."""
        received = connection.socket.recv(_RECEIVE_BYTES)
        if not received:
            raise ConnectionResetError(f"the server closed a connection after {connection.received[:200]!r}")
        if connection.received:
            received = connection.received + received
        size = self._framing.size(received)
        if not size or len(received) < size:
            connection.received = received
            return False
        connection.received = b""
        if self._framing.is_refusal(received):
            self._framing.body(received)
        return True


def _figures(times: list[int], seconds: float) -> Figures:
    p50, p99 = np.percentile(times, (50, 99)) / 1e3
    return Figures(requests=len(times), seconds=seconds, p50_us=float(p50), p99_us=float(p99))
