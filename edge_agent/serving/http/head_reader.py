"""Reads the heads of one connection: what equals the head before need not be parsed again.

Most applications send one head over and over, or change a few of its values: a content-length, a trace. Parsing each
of them from the start is the largest single part of what a small request costs here.
"""

from __future__ import annotations

import re

from edge_agent.serving.http.head import Head, read_head

# All that a parser would let pass as a header's value: anything but control characters.
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
# What decides on more than its own value: how the body is framed, whether the connection stays open.
_FRAMING = frozenset((
    b"connection", b"expect", b"host", b"http2-settings", b"keep-alive", b"proxy-connection", b"te", b"trailer",
    b"transfer-encoding", b"upgrade",
))  # fmt: skip
_MOST_CHANGED = 4


class HeadReader:
    """Parses the heads of one connection, one after the other.

    Attributes:
        raw: The last head; empty where it was none.
    """

    __slots__ = ("_head", "_lines", "raw")

    def __init__(self) -> None:
        self.raw = b""
        self._lines: list[bytes] = []
        self._head: Head | None = None

    def read(self, raw: bytes) -> Head:
        """Parse a head, up to and with the empty line: exactly what :func:`read_head` makes of it.

        Raises:
            ShoalError: As :func:`read_head` does.
        """
        if raw == self.raw and self._head is not None:
            return self._head
        lines = raw.split(b"\r\n")
        head = self._amended(lines)
        if head is None:
            self.raw = b""
            head = read_head(raw)
        self.raw, self._lines, self._head = raw, lines, head
        return head

    def _amended(self, lines: list[bytes]) -> Head | None:
        """The last head with other values, or None where more than some values have changed."""
        last, before = self._head, self._lines
        if last is None or not self.raw or len(lines) != len(before) or lines[0] != before[0]:
            return None
        changed = [pair for pair in zip(lines, before, strict=True) if pair[0] != pair[1]]
        if len(changed) > _MOST_CHANGED:
            return None
        headers, length = last.headers.copy(), last.length
        for line, old in changed:
            name, colon, value = line.partition(b":")
            prefix = name + colon
            lowercase, value = name.lower(), value.strip(b" \t")
            if not colon or not old.startswith(prefix) or lowercase in _FRAMING or _VALUE.fullmatch(value) is None:
                return None
            if headers.get(lowercase) != old[len(prefix) :].strip(b" \t"):
                return None  # one of several with this name, or a line that goes on with the one before
            if lowercase == b"content-length":
                if not value.isdigit() or len(value) > 18:
                    return None
                length = int(value)
            headers[lowercase] = value
        return Head(
            last.method, last.path, last.query, headers, length, last.keep_alive, last.http_1_0, last.expects_continue
        )
