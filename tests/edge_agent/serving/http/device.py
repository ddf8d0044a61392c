"""A server with a handler of the tests' own, and a raw client that sees every byte."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import json
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from edge_agent.contract.errors import Busy, Forbidden, MalformedRequest
from edge_agent.serving.connections import Connections
from edge_agent.serving.http.limits import HttpLimits
from edge_agent.serving.http.message import HttpRequest, HttpResponse, Reply, document
from edge_agent.serving.http.protocol import HttpProtocol
from edge_agent.serving.listen import address_of, listen_tcp, listen_unix
from edge_agent.serving.peer import Transport
from edge_agent.serving.server import Listener, Server

BODY_LIMIT = 1_000_000


class CountedRoom:
    """Counts how often it is given back."""

    def __init__(self, handler: Routes, limit_bytes: int) -> None:
        self._handler, self._limit = handler, limit_bytes
        self.released = 0

    @property
    def limit_bytes(self) -> int:
        return self._limit

    def release(self) -> None:
        self.released += 1
        self._handler.releases += 1


class Repeats:
    """Answers bodies of requests whose head came before; some not, and some wrongly."""

    def answer(self, body: bytes | memoryview) -> bytes | list[bytes | bytearray | memoryview] | None:
        body = bytes(body)
        if body.startswith(b"ordinary"):
            return None
        if body == b"refused!":
            raise MalformedRequest("not this")
        if body == b"mistake!":
            raise ZeroDivisionError("a mistake of ours")
        head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body)
        return [head, body] if body == b"in parts" else head + body

    def join(self, body: bytes, reply: Reply) -> bool:
        """What begins so waits until the loop has read all that was readable."""
        if body.startswith(b"no entry"):
            raise Forbidden("not for you")
        if not body.startswith(b"joined"):
            return False
        asyncio.get_running_loop().call_soon(self._reply, body, reply)
        return True

    def _reply(self, body: bytes, reply: Reply) -> None:
        outcome: Any = None
        if body != b"joined, ordinary":
            try:
                outcome = self.answer(body.removeprefix(b"joined, "))
            except Exception as error:  # noqa: BLE001 - as whoever joins requests does
                outcome = error
        reply(body, outcome)


class Routes:
    """Answers by path: what came in, large bodies, later, never, wrongly."""

    def __init__(self) -> None:
        self.rooms: list[CountedRoom] = []
        self.releases = 0
        self.seen: list[HttpRequest] = []
        self.cancelled = threading.Event()
        self.working = threading.Event()
        self.go_on = threading.Event()
        self.lengths: list[int | None] = []
        self.expressed: list[int] = []

    def admit(self, head: HttpRequest, length: int | None) -> CountedRoom:
        self.lengths.append(length)
        if head.path == "/forbidden":
            raise Forbidden("not for you")
        if head.path == "/busy":
            raise Busy("later")
        if head.path == "/broken/admit":
            raise ZeroDivisionError("a mistake of ours")
        room = CountedRoom(self, BODY_LIMIT)
        self.rooms.append(room)
        return room

    def express(self, head: HttpRequest, length: int) -> Repeats | None:
        self.expressed.append(length)
        return Repeats() if head.path == "/repeats" else None

    def handle(self, request: HttpRequest) -> HttpResponse | Awaitable[HttpResponse]:
        self.seen.append(request)
        routes: dict[str, Callable[[HttpRequest], HttpResponse | Awaitable[HttpResponse]]] = {
            "/large": self._large,
            "/later": self._later,
            "/never": self._never,
            "/stubborn": self._stubborn,
            "/refused": self._refused,
            "/broken": self._broken,
            "/broken/later": self._broken_later,
            "/broken/header": self._broken_header,
            "/empty": lambda _: HttpResponse(204),
        }
        return routes.get(request.path, self._echo)(request)

    def wait_released(self) -> None:
        """Until every room has been given back; each of them once."""
        wait_until(lambda: self.releases >= len(self.rooms))
        assert [room.released for room in self.rooms] == [1] * len(self.rooms)

    def _echo(self, request: HttpRequest) -> HttpResponse:
        return document(self._answer(request))

    def _answer(self, request: HttpRequest) -> dict[str, Any]:
        return {
            "method": request.method,
            "path": request.path,
            "query": request.query,
            "size": len(request.body),
            "sha": hashlib.sha256(request.body).hexdigest(),
        }

    def _large(self, request: HttpRequest) -> HttpResponse:
        size, count = (int(parse_qs(request.query)[name][0]) for name in ("size", "pieces"))
        pieces = [memoryview(bytearray([65 + index]) * (size // count)) for index in range(count)]
        return HttpResponse(200, pieces, b"application/octet-stream", ((b"x-pieces", b"%d" % count),))

    async def _later(self, request: HttpRequest) -> HttpResponse:
        await asyncio.sleep(0.001)
        return document(self._answer(request))

    async def _never(self, _: HttpRequest) -> HttpResponse:
        self.working.set()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        raise AssertionError

    async def _stubborn(self, request: HttpRequest) -> HttpResponse:
        self.working.set()
        await asyncio.get_running_loop().run_in_executor(None, self.go_on.wait, 30)
        return document(self._answer(request))

    def _refused(self, _: HttpRequest) -> HttpResponse:
        raise Forbidden("seen, and refused")

    def _broken(self, _: HttpRequest) -> HttpResponse:
        raise ZeroDivisionError("a mistake of ours")

    async def _broken_later(self, _: HttpRequest) -> HttpResponse:
        await asyncio.sleep(0)
        raise ZeroDivisionError("a mistake of ours")

    def _broken_header(self, _: HttpRequest) -> HttpResponse:
        return HttpResponse(200, b"{}", headers=((b"x-injected", b"a\r\nx-evil: 1"),))


@dataclasses.dataclass
class Device:
    """A running server."""

    routes: Routes
    connections: Connections
    server: Server
    port: int
    unix: str

    def connect(self) -> Client:
        """A new TCP connection."""
        return Client(socket.create_connection(("127.0.0.1", self.port), timeout=20))

    def connect_unix(self) -> Client:
        """A new connection to the unix socket."""
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(20)
        connection.connect(self.unix)
        return Client(connection)

    def ask(self, data: bytes) -> list[Answer]:
        """All answers to ``data``, which ends with the last request on its connection."""
        with self.connect() as client:
            client.send(data)
            return client.answers_until_closed()

    def assert_serves(self) -> None:
        """Nothing so far has stopped it."""
        (answer,) = self.ask(b"GET /alive HTTP/1.0\r\n\r\n")
        assert (answer.status, answer.json()["path"]) == (200, "/alive")


@contextlib.contextmanager
def serving(
    folder: Path, *, limit: int = 100, sweep_s: float = 0.05, grace_s: float = 5.0, **limits: Any
) -> Iterator[Device]:
    """A server on a TCP port and a unix socket of its own."""
    routes, connections = Routes(), Connections(limit, sweep_s=sweep_s)
    http_limits = HttpLimits(**limits)
    tcp, path = listen_tcp("127.0.0.1", 0), str(folder / "api.sock")
    unix = listen_unix(path, 0o600)

    def factory(kind: Transport) -> Callable[[], HttpProtocol]:
        return lambda: HttpProtocol(routes, connections, http_limits, kind)

    listeners = [
        Listener(tcp, factory(Transport.TCP), address_of(tcp)),
        Listener(unix, factory(Transport.UNIX), address_of(unix), path),
    ]
    server = Server(listeners, connections, grace_s=grace_s)
    port = tcp.getsockname()[1]
    server.start()
    try:
        yield Device(routes, connections, server, port, path)
    finally:
        routes.go_on.set()
        server.stop()
    routes.wait_released()


@dataclasses.dataclass
class Answer:
    """One response, as it came."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The text of an error in the protocol's form, which has no other member."""
        members = self.json()
        assert list(members) == ["error"]
        return str(members["error"])


class Client:
    """A socket that reads responses byte-exactly."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self._buffer = bytearray()

    def __enter__(self) -> Client:  # noqa: PYI034 - the device's tests run on Python 3.10, which has no Self
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):  # refused and closed already
            self.socket.sendall(data)

    def half_close(self) -> None:
        self.socket.shutdown(socket.SHUT_WR)

    def answer(self, *, head_only: bool = False) -> Answer:
        """The next response."""
        while b"\r\n\r\n" not in self._buffer:
            self._receive()
        end = self._buffer.index(b"\r\n\r\n")
        lines = self._buffer[:end].decode("latin-1").split("\r\n")
        del self._buffer[: end + 4]
        version, status, _ = lines[0].split(" ", 2)
        assert version == "HTTP/1.1"
        headers = dict(line.lower().split(": ", 1) for line in lines[1:])
        size = 0 if head_only else int(headers.get("content-length", "0"))
        while len(self._buffer) < size:
            self._receive()
        body = bytes(self._buffer[:size])
        del self._buffer[:size]
        return Answer(int(status), headers, body)

    def ask(self, data: bytes) -> Answer:
        self.send(data)
        return self.answer()

    def answers_until_closed(self) -> list[Answer]:
        """All responses until the server closes the connection."""
        answers = []
        while True:
            try:
                answers.append(self.answer())
            except EOFError:
                assert not self._buffer, "the server closed within an answer"
                return answers

    def is_closed(self) -> bool:
        """Whether the server closes the connection without another byte (waits for it)."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def _receive(self) -> None:
        try:
            data = self.socket.recv(1 << 20)
        except ConnectionResetError:
            data = b""
        if not data:
            raise EOFError
        self._buffer += data


def wait_until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    """Wait until something has come true in the server's thread."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "did not come true in time"
        time.sleep(0.005)


def post(path: str = "/echo", body: bytes = b"", *headers: str, version: str = "1.1") -> bytes:
    """The bytes of a POST with a content-length."""
    lines = [f"POST {path} HTTP/{version}", "Host: x", *headers, f"Content-Length: {len(body)}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def get(path: str = "/echo", *headers: str, method: str = "GET") -> bytes:
    """The bytes of a request without a body."""
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: x", *headers]).encode() + b"\r\n\r\n"


def chunked(path: str, *chunks: bytes, trailer: bytes = b"", headers: bytes = b"") -> bytes:
    """The bytes of a POST with a body in chunks."""
    head = b"POST %b HTTP/1.1\r\nHost: x\r\n%bTransfer-Encoding: chunked\r\n\r\n" % (path.encode(), headers)
    return head + b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n" + trailer + b"\r\n"
