"""How much a request may bring: a body is read into memory before anybody has asked who sends it."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import HTTPException
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fleet_server import http_errors

BODY_LIMIT_BYTES = 8 << 20  # a training run's evaluation is the largest: packages keep theirs under 4 MiB
# These ask for the token first, take the body in pieces, and have limits of their own.
STREAMED = "/api/v1/repository/"


class BodyLimit:
    """Refuses larger bodies with 413: those that say so at once, the others when they have grown too large."""

    def __init__(self, app: ASGIApp, limit_bytes: int = BODY_LIMIT_BYTES) -> None:
        self._app, self._limit_bytes = app, limit_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or scope["path"].startswith(STREAMED):
            await self._app(scope, receive, send)
            return
        said = Headers(scope=scope).get("content-length", "")
        if said.isdigit() and int(said) > self._limit_bytes:
            await http_errors.answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, self._text)(scope, receive, send)
            return
        taken = 0

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self._limit_bytes:
                raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, self._text)
            return message

        await self._app(scope, counted, send)

    @property
    def _text(self) -> str:
        return f"the body is larger than {self._limit_bytes} bytes"
