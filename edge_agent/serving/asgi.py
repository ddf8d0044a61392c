"""The little of ASGI that the local API needs: types, a bounded body, an answer in one go."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

import msgspec

from edge_agent.contract.errors import CallerError, MalformedRequest

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = Iterable[tuple[bytes, bytes]]

INFERENCE_LENGTH = b"inference-header-content-length"


class BodyTooLarge(CallerError):
    """The body is longer than this device takes."""

    http_status = 413


class UploadTooSlow(CallerError):
    """The body did not arrive in time."""

    http_status = 408


class Disconnected(Exception):
    """The application closed the connection before its request was whole."""


def header(headers: Headers, name: bytes) -> bytes | None:
    """The value of a header (its name in lowercase), or None."""
    for key, value in headers:
        if key == name:
            return value
    return None


def header_length(headers: Headers, name: bytes) -> int | None:
    """The value of a header that is a length in bytes, or None where it is absent.

    Raises:
        MalformedRequest: It is no length.
    """
    value = header(headers, name)
    if value is None:
        return None
    if not value.isdigit() or len(value) > 18:
        raise MalformedRequest(
            f"header {name.decode()}: must be a length in bytes, got {value[:40].decode('latin-1')!r}"
        )
    return int(value)


def announced_length(headers: Headers, limit_bytes: int) -> int:
    """How long a body will be at most, before any of it is read: the limit where it comes in chunks.

    Raises:
        BodyTooLarge: It says that it is longer than the limit.
        MalformedRequest: Its length is no length.
    """
    length = header_length(headers, b"content-length")
    if length is None:
        return 0 if header(headers, b"transfer-encoding") is None else limit_bytes
    if length > limit_bytes:
        raise _too_large(limit_bytes)
    return length


async def read_body(headers: Headers, receive: Receive, limit_bytes: int) -> bytes:
    """The request's whole body.

    Raises:
        BodyTooLarge: It is, or says it is, longer than the limit.
        MalformedRequest: It is compressed.
        Disconnected: The application went away.
    """
    encoding = header(headers, b"content-encoding")
    if encoding not in (None, b"", b"identity"):
        raise MalformedRequest(
            f"content-encoding {encoding.decode('latin-1')!r} is not supported: send the body as it is"
        )
    announced_length(headers, limit_bytes)
    message = await receive()
    if message["type"] == "http.disconnect":
        raise Disconnected
    if not message.get("more_body", False):  # nearly every request comes in one piece
        return bytes(message.get("body", b""))
    parts = [message.get("body", b"")]
    size = len(parts[0])
    while message.get("more_body", False):
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limit_bytes:
            raise _too_large(limit_bytes)
    return b"".join(parts)


def _too_large(limit_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(
        f"the body is larger than the limit of {limit_bytes} bytes: send fewer rows per request, or in binary "
        "(for inference: max_body_mib under [api] in the agent's settings)"
    )


async def respond(
    send: Send,
    status: int,
    body: bytes,
    *,
    json_length: int | None = None,
    allow: str = "",
    retry_after_s: int | None = None,
) -> None:
    """Send an answer.

    Args:
        json_length: Length of the JSON part where raw tensors follow it; None where all of the body is JSON.
        allow: The methods that the path takes, for a 405.
        retry_after_s: When to ask again, for a 503 that will pass.
    """
    kind = b"application/json" if json_length is None else b"application/octet-stream"
    headers = [(b"content-type", kind), (b"content-length", b"%d" % len(body))]
    if json_length is not None:
        headers.append((INFERENCE_LENGTH, b"%d" % json_length))
    if allow:
        headers.append((b"allow", allow.encode()))
    if retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % retry_after_s))
    # uvloop writes both messages to the socket in one system call, at the end of the loop's turn.
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def error_body(error: object) -> bytes:
    """An error as all routes give it: clients of the protocol read exactly this member."""
    return msgspec.json.encode({"error": str(error)})
