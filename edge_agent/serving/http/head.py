"""Reads the head of a request: request line and headers, as RFC 9112 has them, strictly.

Each head is parsed alone by a parser of its own, so that nothing that one request says can change how the next one is
read. Where two readers could disagree on where a request ends (request smuggling, RFC 9112, section 11.2), it is
refused.
"""

from __future__ import annotations

import functools
import re
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

import httptools

from edge_agent.contract.errors import MalformedRequest, ShoalError
from edge_agent.serving.http.refusals import ExpectationFailed, HeadTooLarge, NotImplementedHere, VersionNotSupported

HEAD_END = b"\r\n\r\n"
MAX_HEADERS = 100
_REQUEST_LINE = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]{1,32}) ([\x21-\x7e]+) HTTP/([0-9])\.([0-9])\r\n")
# Not decoded in a path: a slash that is part of a name (decoded, it would name another path than the one that a proxy
# in front has let through), and what breaks the lines of a log.
_KEPT = re.compile(rb"%(2f|[01][0-9a-f]|7f)", re.IGNORECASE)
_ABSOLUTE = re.compile(rb"https?://[^/?#]*", re.IGNORECASE)
_ONCE = frozenset((b"content-length", b"transfer-encoding", b"host", b"expect"))
_SHOWN = 60  # of what somebody sent, in an error's text


class Head(NamedTuple):
    """Request line and headers.

    Args:
        path: Percent-decoded (but for slashes and control characters), without the query.
        headers: Names in lowercase; values of repeated headers are joined by ``, ``.
        length: Bytes of the body that follows; 0 for none; None where it comes in chunks.
        keep_alive: Whether the connection stays open after the answer.
        http_1_0: Whether it is of HTTP/1.0, which closes connections unless both sides say otherwise.
        expects_continue: Whether the body is sent only after ``100 Continue``.
    """

    method: str
    path: str
    query: str
    headers: dict[bytes, bytes]
    length: int | None
    keep_alive: bool
    http_1_0: bool
    expects_continue: bool


class _Headers:
    """Takes the headers as the parser finds them; errors wait, since the parser swallows what its callbacks raise."""

    __slots__ = ("count", "found", "keep_alive", "repeated", "should_keep_alive")

    def __init__(self) -> None:
        self.found: dict[bytes, bytes] = {}
        self.repeated: list[bytes] = []
        self.count = 0
        self.keep_alive = False

    def feed(self, raw: bytes) -> None:
        """Have ``raw`` parsed.

        Raises:
            httptools.HttpParserError: It is no head.
        """
        parser = httptools.HttpRequestParser(self)
        self.should_keep_alive = parser.should_keep_alive
        try:
            parser.feed_data(raw)
        finally:
            del self.should_keep_alive  # the two hold each other: the garbage collector would have to part them

    def on_header(self, name: bytes, value: bytes) -> None:
        name, value = name.lower(), value.rstrip(b" \t")
        self.count += 1
        if name in self.found:
            self.repeated.append(name)
            value = self.found[name] + b", " + value
        self.found[name] = value

    def on_headers_complete(self) -> None:
        self.keep_alive = self.should_keep_alive()


def read_head(raw: bytes) -> Head:
    """Parse the head of one request, up to and with the empty line.

    Raises:
        MalformedRequest, HeadTooLarge, ExpectationFailed, NotImplementedHere, VersionNotSupported: It is refused, and
            what follows it on the connection cannot be read.
    """
    line = raw[: raw.find(b"\r\n") + 2]
    # Applications ask for few things, again and again; what is long is rare, and not worth remembering.
    method, path, query, http_1_0 = _request_line(line) if len(line) <= 256 else _request_line.__wrapped__(line)
    headers = _headers(raw)
    found = headers.found
    if not http_1_0 and b"host" not in found:
        raise MalformedRequest("no Host header: HTTP/1.1 asks for exactly one (RFC 9112, section 3.2)")
    expected = found.get(b"expect")
    if expected is not None and expected.lower() != b"100-continue":
        raise ExpectationFailed(f"Expect: {_shown(expected)}: only 100-continue can be expected here")
    length = _length(found, http_1_0=http_1_0)
    expects_continue = expected is not None and not http_1_0
    return Head(method, path, query, found, length, headers.keep_alive, http_1_0, expects_continue)


@functools.lru_cache(maxsize=256)
def _request_line(line: bytes) -> tuple[str, str, str, bool]:
    """Method, path, query, and whether it is HTTP/1.0."""
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        raise refusal_of_start(line) or MalformedRequest(
            f"no request line of HTTP: {_shown(line[:-2])}; expected METHOD /PATH HTTP/1.1"
        )
    method, target, major, minor = match.groups()
    if major != b"1" or minor not in b"01":
        raise VersionNotSupported(f"HTTP/{int(major)}.{int(minor)} is not spoken here: use HTTP/1.1")
    if method == b"CONNECT":
        raise NotImplementedHere("CONNECT is for proxies, and this is none")
    path, query = _target(target)
    return method.decode("ascii"), path, query, minor == b"0"


def _headers(raw: bytes) -> _Headers:
    headers = _Headers()
    try:
        headers.feed(raw)
    except httptools.HttpParserUpgrade:
        pass  # an offer to speak something else (h2c, websocket) may be ignored: RFC 9110, section 7.8
    except httptools.HttpParserInvalidMethodError as error:
        raise NotImplementedHere(f"no method of HTTP: {_shown(raw.split(b' ', 1)[0])}") from error
    except httptools.HttpParserError as error:
        raise MalformedRequest(f"malformed request head: {error}") from error
    if headers.count > MAX_HEADERS:
        raise HeadTooLarge(f"{headers.count} headers, the limit is {MAX_HEADERS}: send fewer")
    for name in headers.repeated:
        if name in _ONCE:
            raise MalformedRequest(f"header {name.decode()}: sent more than once: send it once")
    return headers


def _length(headers: dict[bytes, bytes], *, http_1_0: bool) -> int | None:
    coding, length = headers.get(b"transfer-encoding"), headers.get(b"content-length")
    if coding is not None:
        if length is not None:
            raise MalformedRequest("both transfer-encoding and content-length: the body's end is ambiguous: send one")
        if http_1_0:
            raise MalformedRequest("transfer-encoding: HTTP/1.0 has none: send content-length")
        if coding.lower() != b"chunked":
            raise NotImplementedHere(f"transfer-encoding {_shown(coding)}: only chunked is read here")
        return None
    if length is None:
        return 0
    if not length.isdigit() or len(length) > 18:
        raise MalformedRequest(f"header content-length: must be a length in bytes, got {_shown(length)}")
    return int(length)


def _target(target: bytes) -> tuple[str, str]:
    """Path and query of any form of request target (RFC 9112, section 3.2)."""
    if target[:1] != b"/" and target != b"*":
        absolute = _ABSOLUTE.match(target)
        if absolute is None:
            raise MalformedRequest(f"request target {_shown(target)}: must begin with / or http://")
        target = target[absolute.end() :]
        if target[:1] != b"/":
            target = b"/" + target
    if b"#" in target:
        raise MalformedRequest(f"request target {_shown(target)}: a fragment (#) is for browsers: leave it out")
    raw, _, query = target.partition(b"?")
    if b"%" in raw:
        raw = unquote_to_bytes(_KEPT.sub(rb"%25\1", raw))
    try:
        return raw.decode("utf-8"), query.decode("ascii")
    except UnicodeDecodeError as error:
        raise MalformedRequest(f"request target {_shown(target)}: its path is no UTF-8 once decoded") from error


def refusal_of_start(start: bytes | bytearray) -> ShoalError | None:
    """What is wrong with the beginning of a head that is not whole yet, where that can be told already.

    A peer that speaks something else (TLS, a terminal with bare line feeds) learns it at once and not by a timeout.
    """
    if start and not (65 <= start[0] <= 90 or 97 <= start[0] <= 122 or start[0] in b"!#$%&'*+-.^_`|~\r"):
        return MalformedRequest("no request of HTTP (is this TLS? there is none here): expected METHOD /PATH HTTP/1.1")
    if start.count(b"\n") != start.count(b"\r\n"):
        return MalformedRequest("a line of the head ends without a carriage return: end lines with CR LF")
    return None


def _shown(value: bytes) -> str:
    return repr(value[:_SHOWN].decode("latin-1"))
