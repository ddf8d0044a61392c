"""Bodies of the REST API: the API's own by pydantic; those that the contract describes by msgspec, documented alike."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import msgspec
from fastapi import Depends, Request
from pydantic import BaseModel, ConfigDict

from edge_agent.contract.errors import MalformedRequest
from fleet_server.json_answers import inline_schema

T = TypeVar("T")


class RequestBody(BaseModel):
    """A body of the API's own. Unknown members are refused: a typing mistake must not become a default."""

    model_config = ConfigDict(extra="forbid")


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
