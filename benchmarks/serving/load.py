"""The load: prebuilt requests on kept connections, each of which asks again when it is answered (a closed loop).

One connection is a plain blocking loop, which adds least of its own; several are one epoll loop without any framework,
so that the generator's core has time to spare where the server's has none.
"""

from __future__ import annotations

import dataclasses
import select
import socket
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
    """What one round measured."""

    requests: int
    seconds: float
    p50_us: float
    p99_us: float

    @property
    def requests_per_s(self) -> float:
        """Answered requests per second."""
        return self.requests / self.seconds


def connect_tcp(port: int) -> Connect:
    """Connections to a port of this machine."""

    def connect() -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", port), timeout=_TIMEOUT_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    return connect


def connect_unix(path: str) -> Connect:
    """Connections to a unix socket."""

    def connect() -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(_TIMEOUT_S)
        connection.connect(path)
        return connection

    return connect


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
        return wire.framing.body(_receive(connection, wire.framing))


def measure(wire: Wire, connections: int, seconds: float) -> Figures:
    """Ask for so many seconds.

    Raises:
        ValueError: An answer was a refusal.
        OSError: The server closed a connection, or was silent for half a minute.
    """
    return _one(wire, seconds) if connections == 1 else _several(wire, connections, seconds)


def _one(wire: Wire, seconds: float) -> Figures:
    times: list[int] = []
    request, before = wire.request(0), wire.before
    with wire.connect() as connection:
        begin = last = time.perf_counter_ns()
        until = begin + int(seconds * 1e9)
        while last < until:
            last = time.perf_counter_ns()
            if before is not None:
                before(0)
            connection.sendall(request)
            answer = _receive(connection, wire.framing)
            now = time.perf_counter_ns()
            times.append(now - last)
            last = now
        wire.framing.body(answer)
    return _figures(times, (last - begin) / 1e9)


def _receive(connection: socket.socket, framing: Framing) -> bytes:
    received = connection.recv(_RECEIVE_BYTES)
    while True:
        size = framing.size(received)
        if size and len(received) >= size:
            return received
        more = connection.recv(_RECEIVE_BYTES)
        if not more:
            raise ConnectionResetError(f"the server closed the connection after {received[:200]!r}")
        received += more


class _Connection:
    """One connection's state in the epoll loop."""

    __slots__ = ("asked_ns", "index", "received", "request", "rest", "socket")

    def __init__(self, wire: Wire, index: int) -> None:
        self.socket = wire.connect()
        self.socket.setblocking(False)
        self.index = index
        self.request = memoryview(wire.request(index))
        self.rest: memoryview | None = None
        self.received = b""
        self.asked_ns = 0


def _several(wire: Wire, count: int, seconds: float) -> Figures:
    times: list[int] = []
    framing, before = wire.framing, wire.before
    poller = select.epoll()
    connections: dict[int, _Connection] = {}
    clock = time.perf_counter_ns

    def ask(connection: _Connection) -> None:
        connection.asked_ns = clock()
        if before is not None:
            before(connection.index)
        connection.rest = connection.request
        push(connection)

    def push(connection: _Connection) -> None:
        rest = connection.rest
        if rest is None:
            return
        try:
            sent = connection.socket.send(rest)
        except BlockingIOError:
            sent = 0
        if sent == len(rest):
            if rest is not connection.request:
                poller.modify(connection.socket, select.EPOLLIN)
            connection.rest = None
        else:
            connection.rest = rest[sent:]
            poller.modify(connection.socket, select.EPOLLIN | select.EPOLLOUT)

    try:
        for index in range(count):
            connection = _Connection(wire, index)
            connections[connection.socket.fileno()] = connection
            poller.register(connection.socket, select.EPOLLIN)
        begin = clock()
        until, now = begin + int(seconds * 1e9), begin
        for connection in connections.values():
            ask(connection)
        answer = b""
        while now < until:
            events = poller.poll(_TIMEOUT_S)
            if not events:
                raise TimeoutError(f"no answer for {_TIMEOUT_S:.0f} s")
            for number, event in events:
                connection = connections[number]
                if event & select.EPOLLOUT:
                    push(connection)
                    continue
                received = connection.socket.recv(_RECEIVE_BYTES)
                if not received:
                    raise ConnectionResetError(f"the server closed a connection after {connection.received[:200]!r}")
                if connection.received:
                    received = connection.received + received
                size = framing.size(received)
                if not size or len(received) < size:
                    connection.received = received
                    continue
                connection.received = b""
                answer = received
                now = clock()
                times.append(now - connection.asked_ns)
                ask(connection)
        framing.body(answer)
    finally:
        poller.close()
        for connection in connections.values():
            connection.socket.close()
    return _figures(times, (now - begin) / 1e9)


def _figures(times: list[int], seconds: float) -> Figures:
    p50, p99 = np.percentile(times, (50, 99)) / 1e3
    return Figures(requests=len(times), seconds=seconds, p50_us=float(p50), p99_us=float(p99))
