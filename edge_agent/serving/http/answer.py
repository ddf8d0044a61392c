"""Writes answers: the bytes of one response, in as few pieces as a single write needs.

There is no Date header: RFC 9110, section 6.6.1, asks for it only where the clock can be trusted.
"""

from __future__ import annotations

import enum
import functools
import http
from collections.abc import Sequence

from edge_agent.serving.http.message import Buffer, HttpResponse

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
# Up to here joining costs less than one more piece in the system call.
_JOINED_BYTES = 16 * 1024


class Ending(enum.IntEnum):
    """What the answer says about the connection."""

    SILENT = 0  # HTTP/1.1 keeps it open without saying so
    CLOSE = 1
    KEEP_ALIVE = 2  # to an application of HTTP/1.0 that asked for it


_CONNECTION = {
    Ending.SILENT: b"",
    Ending.CLOSE: b"connection: close\r\n",
    Ending.KEEP_ALIVE: b"connection: keep-alive\r\n",
}


def encode(response: HttpResponse, ending: Ending, *, head_only: bool) -> bytes | list[Buffer]:
    """The bytes of an answer: in one piece, or in pieces that are to be written together.

    Args:
        head_only: For HEAD: everything but the body, with the body's length.
    Raises:
        ValueError: A header would end early, or is not allowed here.
    """
    body = response.body
    if type(body) is bytes:
        size = len(body)
        pieces: Sequence[Buffer] = (body,)
    else:
        pieces = (body,) if isinstance(body, bytes | bytearray | memoryview) else body
        size = sum(piece.nbytes if isinstance(piece, memoryview) else len(piece) for piece in pieces)
    status = response.status
    if status in (204, 304) or status < 200:
        return _start(status, b"", ending) + _lines(response.headers) + b"\r\n"
    head = head_of(response, ending, size)
    if head_only:
        return head
    if size <= _JOINED_BYTES:
        return head + pieces[0] if len(pieces) == 1 else b"".join((head, *pieces))
    return [head, *(piece for piece in pieces if len(piece))]


def head_of(response: HttpResponse, ending: Ending, size: int) -> bytes:
    """Status line and headers of an answer whose body has ``size`` bytes, up to and with the empty line.

    Raises:
        ValueError: A header would end early, or is not allowed here.
    """
    start = _start(response.status, response.content_type, ending)
    if response.headers:
        start += _lines(response.headers)
    return b"%bcontent-length: %d\r\n\r\n" % (start, size)


@functools.lru_cache(maxsize=256)
def _start(status: int, content_type: bytes, ending: Ending) -> bytes:
    """Status line and the headers that many answers share."""
    try:
        reason = http.HTTPStatus(status).phrase
    except ValueError:
        reason = "Unknown"
    kind = _lines(((b"content-type", content_type),)) if content_type else b""
    return b"HTTP/1.1 %d %b\r\n%b%b" % (status, reason.encode("ascii"), kind, _CONNECTION[ending])


def _lines(headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    for name, value in headers:
        if b"\r" in value or b"\n" in value or b"\0" in value or not name or b":" in name or name.split() != [name]:
            raise ValueError(f"no header: {name!r}: {value!r}")
    return b"".join(b"%b: %b\r\n" % header for header in headers)
