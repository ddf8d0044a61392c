"""What passes between the HTTP transport and the routes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from edge_agent.contract.errors import ShoalError
from edge_agent.contract.failures import retry_after_s
from edge_agent.serving.peer import Peer

Buffer = bytes | bytearray | memoryview
JSON = b"application/json"


@dataclasses.dataclass(slots=True)
class HttpRequest:
    """One request.

    Args:
        path: Percent-decoded (but for slashes and control characters), without the query.
        query: What follows the question mark, as it came.
        headers: Names in lowercase; values of repeated headers are joined by ``, ``.
        body: Whole; empty while only the head has arrived. A memoryview stays valid as long as somebody holds it.
    """

    method: str
    path: str
    query: str
    headers: Mapping[bytes, bytes]
    peer: Peer
    body: Buffer = b""


@dataclasses.dataclass(slots=True)
class HttpResponse:
    """One answer.

    Args:
        body: In one piece, or in pieces that are written one after the other without being joined.
        headers: Beside content-type and content-length.
    """

    status: int
    body: Buffer | Sequence[Buffer] = b""
    content_type: bytes = JSON
    headers: tuple[tuple[bytes, bytes], ...] = ()


class Room(Protocol):
    """What a request was promised before its body was read."""

    @property
    def limit_bytes(self) -> int:
        """Longest body that is read; a longer one is a 413."""

    def release(self) -> None:
        """The request is over: answered, refused, or its application has gone. Called exactly once."""


class Reply(Protocol):
    """Takes the answer to a request that was joined with others; does not raise."""

    def __call__(self, body: bytes, outcome: bytes | list[Buffer] | Exception | None, /) -> None:
        """As :meth:`Express.answer` gives it, or what that raised."""


class Express(Protocol):
    """Answers requests of one connection whose heads are one and the same; called in the event loop's thread."""

    def answer(self, body: bytes | memoryview) -> bytes | list[Buffer] | None:
        """The bytes of the response, with its head; None where the request is to be admitted and handled as ever.

        The connection is of HTTP/1.1 and stays open.

        Raises:
            ShoalError: See :func:`failure`.
        """

    def join(self, body: bytes, reply: Reply) -> int:
        """Have ``reply`` called at the end of this turn of the loop, when all that was readable has been read.

        How many wait for that now; 0 where it is not to be: then :meth:`answer` is.

        Raises:
            ShoalError: It is refused at once; see :func:`failure`.
        """


class HttpHandler(Protocol):
    """Answers requests; called in the event loop's thread."""

    def admit(self, head: HttpRequest, length: int | None) -> Room:
        """Decide on a request before its body is read.

        Args:
            head: The request without its body.
            length: Bytes that its body will have; 0 for none; None where it comes in chunks.
        Raises:
            ShoalError: It is refused; its body is not read.
        """

    def express(self, head: HttpRequest, length: int) -> Express | None:
        """What answers further requests with this head at once, in place of both others; None where nothing does."""

    def handle(self, request: HttpRequest) -> HttpResponse | Awaitable[HttpResponse]:
        """The answer at once, or later. The waiting is cancelled when the application goes away.

        Raises:
            ShoalError: See :func:`failure`; the awaitable may raise it too.
        """


def failure(error: ShoalError) -> HttpResponse:
    """An error as all routes give it: clients of the protocol read exactly the member ``error``."""
    headers, wait_s = error.http_headers, retry_after_s(error)
    if wait_s:
        headers += ((b"retry-after", b"%d" % math.ceil(wait_s)),)  # whole seconds: RFC 9110, section 10.2.3
    if error.http_status == 401:
        headers += ((b"www-authenticate", b"Bearer"),)
    # Where a file's name is no UTF-8, its path holds what no JSON can.
    text = str(error).encode(errors="replace").decode()
    return HttpResponse(error.http_status, msgspec.json.encode({"error": text}), headers=headers)


def document(value: Any, status: int = 200) -> HttpResponse:
    """A JSON answer."""
    return HttpResponse(status, msgspec.json.encode(value))
