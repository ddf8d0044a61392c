"""Bodies of the REST API that the contract describes: decoded by msgspec, documented from their types."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import msgspec
from fastapi import Depends, Request

from edge_agent.contract.errors import MalformedRequest
from fleet_server.json_answers import inline_schema

T = TypeVar("T")


async def _read(request: Request) -> bytes:
    return await request.body()


Body = Annotated[bytes, Depends(_read)]


def decode(body: bytes, kind: type[T]) -> T:
    """The body as a ``kind``.

    Raises:
        MalformedRequest: It is none; the text says where.
    """
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise MalformedRequest(f"{kind.__name__}: {error}") from error


def describe_body(kind: type[Any], *, example: Any = None) -> dict[str, Any]:
    """The ``openapi_extra=`` of a route whose body is a ``kind``, its schema inline."""
    content = {"schema": inline_schema(kind)} | ({"example": example} if example is not None else {})
    return {"requestBody": {"required": True, "content": {"application/json": content}}}
