"""Takes a chunked body apart (RFC 9112, section 7.1), strictly and within bounds."""

from __future__ import annotations

import re

from edge_agent.contract.errors import MalformedRequest
from edge_agent.serving.http.refusals import BodyTooLarge

# Extensions are allowed and ignored, without control characters; 16 hexadecimal digits hold any length there is.
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t]*(?:;[\t\x20-\x7e\x80-\xff]*)?\Z")
_TRAILER_LINE = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*\Z")
_LINE_LIMIT = 1024
_TRAILER_LIMIT = 8192
# Framing that is read beside the data: chunks of one byte take 5 bytes of it each, only padding takes more than this.
_OVERHEAD_BYTES = 64 * 1024
_OVERHEAD_PER_BYTE = 8


class ChunkedBody:
    """A body that is still arriving.

    Args:
        limit_bytes: Longest body that is taken.
    """

    __slots__ = ("_left", "_limit", "_line", "_overhead", "_stage", "_trailer_bytes", "body", "whole")

    def __init__(self, limit_bytes: int) -> None:
        self.body = bytearray()
        self.whole = False
        self._limit = limit_bytes
        self._line = bytearray()  # of a line that is not whole yet
        self._left = 0  # of the chunk's data
        self._overhead = self._trailer_bytes = 0
        self._stage = self._take_size_line

    def feed(self, data: memoryview, at: int, size: int) -> int:
        """Take what belongs to the body out of ``data[at:size]``; return where the rest begins.

        Raises:
            MalformedRequest: Not a chunked body.
            BodyTooLarge: It is longer than the limit.
        """
        while at < size and not self.whole:
            if self._left:
                taken = min(self._left, size - at)
                self.body += data[at : at + taken]
                self._left -= taken
                at += taken
            else:
                at = self._take_line(data, at, size)
        return at

    def _take_line(self, data: memoryview, at: int, size: int) -> int:
        window = bytes(data[at : min(size, at + _LINE_LIMIT)])
        end = window.find(b"\n")
        self._line += window if end < 0 else window[: end + 1]
        if len(self._line) > _LINE_LIMIT:
            raise MalformedRequest(f"chunked body: a line is longer than {_LINE_LIMIT} bytes")
        if end < 0:
            return at + len(window)
        if self._line[-2:] != b"\r\n":
            raise MalformedRequest("chunked body: a line ends without a carriage return")
        line = bytes(self._line[:-2])
        self._line.clear()
        self._overhead += len(line) + 2
        if self._overhead > _OVERHEAD_BYTES + _OVERHEAD_PER_BYTE * len(self.body):
            raise MalformedRequest("chunked body: more framing than data: send larger chunks")
        self._stage(line)
        return at + end + 1

    def _take_size_line(self, line: bytes) -> None:
        match = _SIZE_LINE.match(line)
        if match is None:
            raise MalformedRequest(f"chunked body: no chunk size: {line[:40].decode('latin-1')!r}")
        self._left = int(match[1], 16)
        if len(self.body) + self._left > self._limit:
            raise BodyTooLarge(self._limit)
        self._stage = self._take_data_end if self._left else self._take_trailer

    def _take_data_end(self, line: bytes) -> None:
        if line:
            raise MalformedRequest("chunked body: a chunk is longer than its size says")
        self._stage = self._take_size_line

    def _take_trailer(self, line: bytes) -> None:
        if not line:
            self.whole = True
            return
        self._trailer_bytes += len(line)
        if self._trailer_bytes > _TRAILER_LIMIT or _TRAILER_LINE.match(line) is None:
            raise MalformedRequest("chunked body: the trailer is malformed or too long")
