"""The parts of the OpenAPI document that are the same for all models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edge_agent.serving.rest.schemas import Schema

JSON = "application/json"
_ERRORS: Mapping[str, str] = {
    "400": "The request is wrong: the text names the input, the row and the rule",
    "401": "Nobody here knows this application",
    "403": "This application may not do this",
    "404": "No such path, model, version or request",
    "413": "The body is longer than this device takes",
    "429": "This application asks more often than it may: `Retry-After` says when to ask again",
    "500": "The model failed on a right request",
    "501": "A part of the protocol that is not offered here",
    "503": "Not now: too much to do, or the model is not loaded; `Retry-After`, where waiting helps, says when to ask",
    "504": "The answer would have come later than the request's `timeout`",
}
_TEXT: Schema = {"type": "string"}
_WHOLE: Schema = {"type": "integer", "format": "int64", "minimum": 0}
_ANYTHING: Schema = {"type": "object", "additionalProperties": True}


def reference(name: str) -> Schema:
    """A schema among the components."""
    return {"$ref": f"#/components/schemas/{name}"}


def json_content(schema: Schema) -> dict[str, Any]:
    """The content of a body in JSON."""
    return {JSON: {"schema": schema}}


def responses() -> dict[str, Any]:
    """What each error status means; clients read the member ``error`` of all of them."""
    return {
        f"Error{status}": {"description": text, "content": json_content(reference("Error"))}
        for status, text in _ERRORS.items()
    }


def operation(
    name: str,
    summary: str,
    *,
    tag: str,
    answer: Schema,
    description: str = "",
    content: Mapping[str, Any] | None = None,
    content_required: bool = True,
    parameters: Sequence[Mapping[str, Any]] = (),
    errors: Sequence[str] = ("401", "403", "429"),
    answer_type: str = JSON,
) -> dict[str, Any]:
    """One operation.

    Args:
        name: Its ``operationId``: the name of the method in generated clients.
        content: Of the request's body, by media type; None where it has none.
    """
    made: dict[str, Any] = {"operationId": name, "summary": summary, "tags": [tag]}
    if description:
        made["description"] = description
    if parameters:
        made["parameters"] = list(parameters)
    if content is not None:
        made["requestBody"] = {"required": content_required, "content": dict(content)}
    ok = {"description": "OK", "content": {answer_type: {"schema": answer}}}
    refused = {status: {"$ref": f"#/components/responses/Error{status}"} for status in errors}
    made["responses"] = {"200": ok, **refused}
    return made


def common_paths(models: Sequence[str]) -> dict[str, Any]:
    """The paths beside inference and feedback; ``models`` are the names that a path may have."""
    model: dict[str, Any] = {"name": "model", "in": "path", "required": True, "schema": dict(_TEXT)}
    if models:
        model["schema"]["enum"] = list(models)
    version = {"name": "version", "in": "path", "required": True, "schema": _TEXT}
    one, this = "/v2/models/{model}", "/v2/models/{model}/versions/{version}"
    known = ("401", "403", "404", "429", "503")

    def read(name: str, summary: str, answer: str, *parameters: Mapping[str, Any]) -> dict[str, Any]:
        errors = known if parameters else ("401", "429")
        schema = reference(answer)
        return {"get": operation(name, summary, tag="device", answer=schema, parameters=parameters, errors=errors)}

    return {
        "/v2": read("getServer", "Name, version and extensions", "ServerMetadata"),
        "/v2/health/live": _health("isLive", "Whether the agent runs"),
        "/v2/health/ready": _health("isReady", "Whether it serves a model; 503 where it does not"),
        one: read("getModel", "A model's inputs and outputs", "ModelMetadata", model),
        this: read("getModelVersion", "The inputs and outputs of one version", "ModelMetadata", model, version),
        f"{one}/ready": read("isModelReady", "Whether this model answers", "ModelReady", model),
        f"{this}/ready": read("isModelVersionReady", "Whether this version answers", "ModelReady", model, version),
        f"{one}/config": read("getModelConfig", "A model's configuration", "ModelConfig", model),
        f"{this}/config": read("getModelVersionConfig", "One version's configuration", "ModelConfig", model, version),
        "/v2/models/stats": read("getStatistics", "Counts of all models since they were loaded", "Statistics"),
        f"{one}/stats": read("getModelStatistics", "Counts of one model", "Statistics", model),
        f"{this}/stats": read("getModelVersionStatistics", "Counts of one version", "Statistics", model, version),
        "/v2/repository/index": {"post": _index()},
        "/v2/repository/models/{name}/load": {
            "post": _control("loadModel", "Load a model, or load it again", "LoadRequest")
        },
        "/v2/repository/models/{name}/unload": {
            "post": _control("unloadModel", "Unload a model: its memory comes back", "UnloadRequest")
        },
        "/metrics": {
            "get": operation(
                "getMetrics", "Counts and gauges for Prometheus", tag="device", answer=_TEXT, answer_type="text/plain"
            )
        },
    }


def _health(name: str, summary: str) -> dict[str, Any]:
    made = operation(name, summary, tag="device", answer=reference("Health"), errors=())
    if name == "isReady":
        made["responses"]["503"] = {"description": "No model yet", "content": json_content(reference("Health"))}
    made["security"] = []
    return {"get": made}


def _index() -> dict[str, Any]:
    return operation(
        "listModels",
        "Every package on this device, loaded or not",
        tag="device",
        answer={"type": "array", "items": reference("IndexEntry")},
        content=json_content(reference("IndexRequest")),
        content_required=False,
    )


def _control(name: str, summary: str, body: str) -> dict[str, Any]:
    return operation(
        name,
        summary,
        tag="control",
        answer=reference("RepositoryAnswer"),
        content=json_content(reference(body)),
        content_required=False,
        parameters=[{"name": "name", "in": "path", "required": True, "schema": _TEXT, "description": "Of the model"}],
        errors=("400", "401", "403", "404", "429", "501", "503"),
    )


def _object(title: str, required: Sequence[str], **properties: Schema) -> Schema:
    made: Schema = {"type": "object", "title": title, "properties": properties}
    if required:
        made["required"] = list(required)
    return made


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


_DURATION = _object("Duration", ["count", "ns"], count=_WHOLE, ns=_WHOLE)
_COUNTED = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss")

SCHEMAS: Mapping[str, Schema] = {
    "Error": _object("Error", ["error"], error={**_TEXT, "description": "What, where, what to do"}),
    "RequestParameters": {
        **_object(
            "RequestParameters",
            [],
            monitor={"type": "boolean", "default": True, "description": "false: a probe, neither counted nor sampled"},
            group={**_TEXT, "maxLength": 128, "description": "What rows of one subject share"},
            priority={**_WHOLE, "description": "1 is the most urgent"},
            timeout={**_WHOLE, "description": "Microseconds that the answer is wanted within; 0 sets no limit"},
        ),
        "additionalProperties": True,
    },
    "ResponseParameters": {
        **_object(
            "ResponseParameters",
            ["package", "label_wanted"],
            package={**_TEXT, "description": "SHA-256 of the package that answered"},
            label_wanted={"type": "boolean", "description": "Whether a label for this request would help most"},
            violations={
                **_TEXT,
                "description": "What broke the contract and was let through: tensor/rule/policy=rows;",
            },
        ),
        "additionalProperties": True,
    },
    "WantedOutput": _object(
        "WantedOutput",
        ["name"],
        name=_TEXT,
        parameters={
            **_object(
                "WantedOutputParameters",
                [],
                classification={**_WHOLE, "description": "The so many best classes in place of the values"},
                binary_data={"type": "boolean"},
            ),
            "additionalProperties": True,
        },
    ),
    "Feedback": _object(
        "Feedback",
        ["request_id", "label"],
        request_id={**_TEXT, "description": "The answer's `id`"},
        label={**_TEXT, "description": "The class by its name"},
        source={**_TEXT, "maxLength": 64, "default": "application", "description": "Who says so"},
        row={**_WHOLE, "description": "Of a request of several rows: which, from 0"},
    ),
    "FeedbackAccepted": _object(
        "FeedbackAccepted",
        ["model_name", "request_id", "accepted", "sampled"],
        model_name=_TEXT,
        request_id=_TEXT,
        accepted={"type": "boolean"},
        sampled={"type": "boolean", "description": "Whether the row goes home: else models cannot learn from it"},
    ),
    "ServerMetadata": _object(
        "ServerMetadata", ["name", "version", "extensions"], name=_TEXT, version=_TEXT, extensions=_list(_TEXT)
    ),
    "Health": _object(
        "Health",
        ["live", "ready"],
        live={"type": "boolean"},
        ready={"type": "boolean"},
        trouble={"type": "string", "description": "What is wrong with this device, though it may serve models"},
    ),
    "ModelReady": _object("ModelReady", ["name", "ready"], name=_TEXT, ready={"type": "boolean"}),
    "TensorMetadata": _object(
        "TensorMetadata",
        ["name", "datatype", "shape"],
        name=_TEXT,
        datatype=_TEXT,
        shape={**_list({"type": "integer", "format": "int64"}), "description": "-1 is an open axis"},
        parameters={**_ANYTHING, "description": "The tensor's constraints: minimum, maximum, unit, labels..."},
    ),
    "ModelMetadata": _object(
        "ModelMetadata",
        ["name", "versions", "platform", "inputs", "outputs"],
        name=_TEXT,
        versions=_list(_TEXT),
        platform=_TEXT,
        inputs=_list(reference("TensorMetadata")),
        outputs=_list(reference("TensorMetadata")),
        parameters=_ANYTHING,
    ),
    "ModelConfig": {
        **_object("ModelConfig", ["name", "max_batch_size"], name=_TEXT, max_batch_size=_WHOLE),
        "additionalProperties": True,
    },
    "Duration": _DURATION,
    "Statistics": _object("Statistics", ["model_stats"], model_stats=_list(reference("ModelStatistics"))),
    "ModelStatistics": {
        **_object(
            "ModelStatistics",
            ["name", "version", "last_inference", "inference_count", "execution_count", "inference_stats"],
            name=_TEXT,
            version=_TEXT,
            last_inference={**_WHOLE, "description": "Unix time in milliseconds"},
            inference_count={**_WHOLE, "description": "Rows"},
            execution_count=_WHOLE,
            inference_stats=_object("InferenceStatistics", [], **dict.fromkeys(_COUNTED, reference("Duration"))),
        ),
        "additionalProperties": True,
    },
    "IndexRequest": _object("IndexRequest", [], ready={"type": "boolean", "default": False}),
    "IndexEntry": _object(
        "IndexEntry",
        ["name", "version", "state", "reason"],
        name=_TEXT,
        version=_TEXT,
        state={"type": "string", "enum": ["READY", "LOADING", "UNLOADING", "UNLOADED", "UNAVAILABLE"]},
        reason=_TEXT,
    ),
    "LoadRequest": _object("LoadRequest", [], parameters=_object("LoadParameters", [], version=_TEXT)),
    "UnloadRequest": _object(
        "UnloadRequest",
        [],
        parameters=_object("UnloadParameters", [], version=_TEXT, unload_dependents={"type": "boolean"}),
    ),
    "RepositoryAnswer": _object("RepositoryAnswer", ["name", "state"], name=_TEXT, version=_TEXT, state=_TEXT),
}
