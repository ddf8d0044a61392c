"""``/openapi.json``: an OpenAPI 3.1 document of what this device serves now, made from its models' signatures.

Each model has an inference path of its own with schemas as precise as its signature, so that a generated client cannot
send a wrong tensor without being told by its compiler.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Any

import msgspec

from edge_agent.contract.errors import UnknownModel
from edge_agent.contract.signature import TensorSpec
from edge_agent.runtime.slots import LoadedModel, Slots
from edge_agent.serving.access import Access, App
from edge_agent.serving.http.message import HttpRequest, HttpResponse, document
from edge_agent.serving.request import MAX_ID_LENGTH
from edge_agent.serving.rest.examples import INLINE_ELEMENTS, elements, example_request
from edge_agent.serving.rest.introspection import known_model, known_models
from edge_agent.serving.rest.openapi_common import (
    JSON,
    SCHEMAS,
    common_paths,
    json_content,
    operation,
    reference,
    responses,
)
from edge_agent.serving.rest.route import Target
from edge_agent.serving.rest.schemas import Schema, tensor_schema

_REMEMBERED = 8
_DESCRIPTION = (
    "Models that run on this device, by the [Open Inference Protocol v2]"
    "(https://github.com/kserve/open-inference-protocol), and feedback on their answers. Paths without a version ask "
    'whichever version serves: prefer them, for updates change the version. Every error is `{"error": "..."}`.'
)


class OpenApi:
    """Describes the API as one application may use it; a description is made again when the models change.

    Args:
        threads: Where packages are read for the sizes of their samples, milliseconds that inference must not wait for.
    """

    def __init__(self, slots: Slots, access: Access, threads: Executor, *, agent_version: str) -> None:
        self._slots, self._access, self._threads, self._version = slots, access, threads, agent_version
        self._made: dict[tuple[str, ...], bytes] = {}

    async def description(self, request: HttpRequest, target: Target, app: App) -> HttpResponse:  # noqa: ARG002 - a route's
        """``GET /openapi.json``: with the models that ``app`` may ask."""
        models = [loaded for loaded in known_models(self._slots) if app.permits(loaded.name)]
        key = tuple(f"{loaded.name} {loaded.digest} {self._is_default(loaded)}" for loaded in models)
        made = self._made.get(key)
        if made is None:
            described = await asyncio.get_running_loop().run_in_executor(self._threads, self.document, models)
            if len(self._made) >= _REMEMBERED:
                self._made.clear()
            made = self._made[key] = msgspec.json.encode(described)
        return HttpResponse(200, made)

    async def example(self, request: HttpRequest, target: Target, app: App) -> HttpResponse:  # noqa: ARG002 - a route's
        """``GET /openapi/examples/M[/V]``: a request that this model answers.

        Raises:
            UnknownModel: There is no such model, or none that JSON can ask.
        """
        loaded = known_model(self._slots, target.model, target.version)
        made = await asyncio.get_running_loop().run_in_executor(self._threads, example_request, loaded)
        if made is None:
            raise UnknownModel(
                f"model '{loaded.name}' takes bytes that JSON does not carry, such as images: ask in binary"
            )
        return document(made)

    def document(self, models: Sequence[LoadedModel]) -> dict[str, Any]:
        """The OpenAPI document of these models."""
        schemas: dict[str, Schema] = dict(SCHEMAS)
        paths: dict[str, Any] = {}
        names = _type_names(models)
        for loaded, name in zip(models, names, strict=True):
            default = self._is_default(loaded)
            schemas.update(_model_schemas(loaded, name))
            path = f"/v2/models/{loaded.name}"
            if default:
                paths[f"{path}/infer"] = {"post": _infer(loaded, name)}
                paths[f"{path}/feedback"] = {"post": _feedback(loaded, name)}
            else:
                paths[f"{path}/versions/{loaded.version}/infer"] = {"post": _infer(loaded, name)}
        paths.update(common_paths(sorted({loaded.name for loaded in models})))
        described: dict[str, Any] = {
            "openapi": "3.1.0",
            "info": {
                "title": "Shoal device API",
                "version": self._version,
                "description": _DESCRIPTION,
                "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            },
            "servers": [{"url": "/", "description": "The device that this document came from"}],
            "tags": _tags(models),
            "paths": paths,
            "components": {"schemas": schemas, "responses": responses()},
        }
        if self._access.has_tokens:
            described["components"]["securitySchemes"] = {
                "token": {"type": "http", "scheme": "bearer", "description": "A token of the agent's settings"}
            }
            # An empty requirement: applications known by their user, or as local, bring none.
            described["security"] = [{"token": []}] if self._access.needs_token else [{"token": []}, {}]
        return described

    def _is_default(self, loaded: LoadedModel) -> bool:
        try:
            return self._slots.default_version(loaded.name) == loaded.version
        except UnknownModel:  # unloaded just now
            return False


def _tags(models: Sequence[LoadedModel]) -> list[dict[str, str]]:
    tags = {one.name: f"Model {one.name}, classes: {', '.join(one.manifest.task.labels[:20])}" for one in models}
    return [
        *({"name": f"model {name}", "description": text} for name, text in tags.items()),
        {"name": "device", "description": "What serves here, and whether it does"},
        {"name": "control", "description": "Loading and unloading; for applications with control = true"},
    ]


def _infer(loaded: LoadedModel, name: str) -> dict[str, Any]:
    content: dict[str, Any] = {"schema": reference(f"{name}Request")}
    example = example_request(loaded)
    if example is not None:
        shown = {"summary": "One row, as a probe: answered, but neither counted nor sampled"}
        if elements(example) <= INLINE_ELEMENTS:
            content["examples"] = {"probe": {**shown, "value": example}}
        else:
            content["examples"] = {
                "probe": {**shown, "externalValue": f"/openapi/examples/{loaded.name}/{loaded.version}"}
            }
    return operation(
        f"infer{name}",
        f"Ask {loaded.name} {loaded.version}",
        tag=f"model {loaded.name}",
        description=(
            f"Package `{loaded.digest}`. Tensors may also travel in binary after the JSON (header "
            "`Inference-Header-Content-Length`) and in shared memory; bodies may be compressed (gzip, deflate)."
        ),
        answer=reference(f"{name}Response"),
        content={JSON: content},
        errors=("400", "401", "403", "404", "413", "429", "500", "503", "504"),
    )


def _feedback(loaded: LoadedModel, name: str) -> dict[str, Any]:
    return operation(
        f"sendFeedback{name}",
        f"Say what {loaded.name} should have answered",
        tag=f"model {loaded.name}",
        description="Answered when the label is safe on the device's disk. Of a request the latest label holds.",
        answer=reference("FeedbackAccepted"),
        content=json_content(reference(f"{name}Feedback")),
        errors=("400", "401", "403", "404", "413", "429", "503"),
    )


def _model_schemas(loaded: LoadedModel, name: str) -> dict[str, Schema]:
    """Schemas of one model: its tensors, request, answer and feedback."""
    schemas: dict[str, Schema] = {}
    inputs = _tensors(schemas, loaded.signature.inputs, f"{name}Input", request=True)
    outputs = _tensors(schemas, loaded.signature.outputs, f"{name}Output", request=False)
    wanted = {**SCHEMAS["WantedOutput"], "title": f"{name}WantedOutput"}
    names = [spec.name for spec in loaded.signature.outputs]
    wanted["properties"] = {**wanted["properties"], "name": {"type": "string", "enum": names}}
    schemas[f"{name}WantedOutput"] = wanted
    schemas[f"{name}Request"] = {
        "type": "object",
        "title": f"{name}Request",
        "required": ["inputs"],
        "properties": {
            "id": {
                "type": "string",
                "maxLength": MAX_ID_LENGTH,
                "description": "Your name for the request, a different one each time; feedback refers to it",
            },
            "parameters": reference("RequestParameters"),
            "inputs": {**inputs, "minItems": len(loaded.signature.inputs), "maxItems": len(loaded.signature.inputs)},
            "outputs": {
                "type": "array",
                "description": "The outputs that you want; all where left out",
                "items": reference(f"{name}WantedOutput"),
            },
        },
    }
    schemas[f"{name}Response"] = {
        "type": "object",
        "title": f"{name}Response",
        "required": ["model_name", "model_version", "id", "parameters", "outputs"],
        "properties": {
            "model_name": {"type": "string", "enum": [loaded.name]},
            "model_version": {"type": "string"},
            "id": {"type": "string", "description": "As sent, or made for the request; keep it for feedback"},
            "parameters": reference("ResponseParameters"),
            "outputs": outputs,
        },
    }
    labels = list(loaded.manifest.task.labels)
    schemas[f"{name}Feedback"] = {
        **SCHEMAS["Feedback"],
        "title": f"{name}Feedback",
        "properties": {
            **SCHEMAS["Feedback"]["properties"],
            # An index is taken too; but of text or number some generators make a type that carries neither.
            "label": {"description": "The class by its name", "type": "string", "enum": labels},
        },
    }
    return schemas


def _tensors(schemas: dict[str, Schema], specs: Sequence[TensorSpec], prefix: str, *, request: bool) -> Schema:
    """Add the schemas of some tensors; the schema of a list of them."""
    titles = _unique([prefix + _pascal(spec.name) for spec in specs])
    for spec, title in zip(specs, titles, strict=True):
        schemas[title] = tensor_schema(spec, title, request=request)
    if len(titles) == 1:
        return {"type": "array", "items": reference(titles[0])}
    mapping = {spec.name: f"#/components/schemas/{title}" for spec, title in zip(specs, titles, strict=True)}
    items = {
        "oneOf": [reference(title) for title in titles],
        "discriminator": {"propertyName": "name", "mapping": mapping},
    }
    return {"type": "array", "items": items}


def _type_names(models: Sequence[LoadedModel]) -> list[str]:
    """A type name for each model; of several versions side by side each says which."""
    several = {one.name for one in models if sum(other.name == one.name for other in models) > 1}
    return _unique([_pascal(one.name) + (f"V{_words(one.version)}" if one.name in several else "") for one in models])


def _pascal(name: str) -> str:
    """``part-defects`` as generators like types to be called: ``PartDefects``."""
    text = _words(name) or "Tensor"
    return text if text[0].isalpha() else f"N{text}"


def _words(name: str) -> str:
    return "".join(word[0].upper() + word[1:] for word in re.findall(r"[A-Za-z0-9]+", name))


def _unique(names: Sequence[str]) -> list[str]:
    found: list[str] = []
    for name in names:
        chosen, turn = name, 2
        while chosen in found:
            chosen, turn = f"{name}{turn}", turn + 1
        found.append(chosen)
    return found
