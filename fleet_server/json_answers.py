"""Answers of the REST API made of msgspec structs: encoded in one step, described in OpenAPI from their types."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import Response


class Answer(Response):
    """Any value that msgspec can write, as JSON."""

    media_type = "application/json"

    def __init__(self, value: Any, status_code: int = 200) -> None:
        super().__init__(msgspec.json.encode(value), status_code=status_code)


def describe(kind: Any, status: int = 200) -> dict[int | str, dict[str, Any]]:
    """The ``responses=`` of a route that answers with a ``kind``, its schema inline."""
    content = {"application/json": {"schema": inline_schema(kind)}}
    return {status: {"description": "Successful Response", "content": content}}


def inline_schema(kind: Any) -> Any:
    """The JSON schema of a type, with the types it refers to written in place."""
    (schema,), parts = msgspec.json.schema_components([kind], ref_template="#{name}")

    def resolve(node: Any) -> Any:
        if isinstance(node, dict):
            if "$ref" in node:
                return resolve(parts[str(node["$ref"]).removeprefix("#")])
            return {key: resolve(value) for key, value in node.items()}
        return [resolve(one) for one in node] if isinstance(node, list) else node

    return resolve(schema)
