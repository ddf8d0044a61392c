"""How an answer's end is told on the wire, and whether it is one: all that the load generator knows of a protocol."""

from __future__ import annotations

from typing import Protocol


class Framing(Protocol):
    """How answers stand in a stream of bytes."""

    def size(self, received: bytes) -> int:
        """Bytes of the first answer, once that can be told; 0 before."""

    def is_refusal(self, answer: bytes) -> bool:
        """Whether the server refused, as far as the first bytes of a whole answer say."""

    def body(self, answer: bytes) -> bytes:
        """What a whole answer carries.

        Raises:
            ValueError: The server refused; it says why.
        """


class HttpFraming:
    """HTTP/1.1 answers with a Content-Length, as all servers here give them."""

    def __init__(self) -> None:
        self._sizes: dict[bytes, int] = {}  # heads repeat, but for a date or an identifier

    def size(self, received: bytes) -> int:
        """See :class:`Framing`."""
        end = received.find(b"\r\n\r\n")
        if end < 0:
            return 0
        head = received[:end]
        known = self._sizes.get(head)
        if known is None:
            if len(self._sizes) > 256:
                self._sizes.clear()
            known = self._sizes[head] = end + 4 + _content_length(head)
        return known

    def is_refusal(self, answer: bytes) -> bool:
        """See :class:`Framing`."""
        return not answer.startswith((b"HTTP/1.1 200", b"HTTP/1.0 200"))

    def body(self, answer: bytes) -> bytes:
        """See :class:`Framing`."""
        head, _, body = answer.partition(b"\r\n\r\n")
        status = head.split(b" ", 2)[1]
        if status != b"200":
            raise ValueError(f"status {status.decode()}: {body[:300].decode(errors='replace')}")
        return body


class LengthFraming:
    """A little-endian u32 before each answer, as frames have it, ``op`` first; the body is the whole frame."""

    def size(self, received: bytes) -> int:
        """See :class:`Framing`."""
        return 4 + int.from_bytes(received[:4], "little") if len(received) >= 4 else 0

    def is_refusal(self, answer: bytes) -> bool:
        """See :class:`Framing`."""
        return answer[5:14] == b"\xa2op\xa5error"

    def body(self, answer: bytes) -> bytes:
        """See :class:`Framing`."""
        if self.is_refusal(answer):
            raise ValueError(f"an error: {answer[:300]!r}")
        return answer


def http_request(path: str, body: bytes, *, headers: dict[str, str] | None = None) -> bytes:
    """A whole POST request."""
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def _content_length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            return int(value)
    raise ValueError(f"an answer without a Content-Length: {head[:300]!r}")
