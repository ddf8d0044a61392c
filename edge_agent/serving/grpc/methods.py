"""The methods that stand for a route of the REST API: how a message becomes its request, and its answer a message."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

from google.protobuf import json_format
from google.protobuf.message import Message

from edge_agent.contract.errors import UnknownModel
from edge_agent.serving.grpc import oip_pb2 as oip
from edge_agent.serving.grpc.messages import parameters


class Method:
    """One method: the messages it takes and gives, and the route that stands behind it.

    Args:
        route: Method, path and document of the route's request.
        reshape: Makes of the route's document one with the response's members.
        is_open: Whether anybody may ask; its request says nothing then, and is not read.
    """

    def __init__(
        self,
        request: type[Message],
        response: type[Message],
        route: Callable[[Any], tuple[str, str, Any]],
        reshape: Callable[[Any], Any] = lambda document: document,
        *,
        is_open: bool = False,
    ) -> None:
        self.request, self.response, self.route, self._reshape = request, response, route, reshape
        self.is_open = is_open

    def read(self, document: Any) -> Message:
        """The message that a route's document stands for; members that the message lacks are left out."""
        return json_format.ParseDict(self._reshape(document), self.response(), ignore_unknown_fields=True)


def _model_path(message: Any, what: str = "") -> str:
    path = f"/v2/models/{_model(message.name)}" if message.name else "/v2/models"
    if message.version:
        if "/" in message.version:
            raise UnknownModel(f"model '{message.name:.80}' has no version '{message.version:.80}'")
        path += f"/versions/{quote(message.version, safe='')}"
    return path + what


def _model(name: str) -> str:
    """A model's name as a part of a path; with a slash in it, it would be another path.

    Raises:
        UnknownModel: No model can be called so.
    """
    if "/" in name:
        raise UnknownModel(f"model '{name:.80}' is not served here: no model can be called so")
    return quote(name, safe="")


def _region_path(kind: str, message: Any, what: str) -> str:
    region = f"/region/{quote(message.name, safe='')}" if message.name else ""
    return f"/v2/{kind}{region}/{what}"


def _control(message: Any, what: str) -> tuple[str, str, Any]:
    path = f"/v2/repository/models/{_model(message.model_name)}/{what}"
    told = {
        name: value if isinstance(value, str | int) else "binary"
        for name, value in parameters(message.parameters).items()
    }
    return "POST", path, {"parameters": told}


def _config(document: Any) -> Any:
    for step in document.get("ensemble_scheduling", {}).get("step", []):
        if not str(step.get("model_version", "")).lstrip("-").isdigit():
            step["model_version"] = -1  # the message's versions are numbers; -1 is "whichever serves"
    return {"config": document}


def _by_name(regions: Any) -> Any:
    return {"regions": {region["name"]: region for region in regions}}


def _metadata(document: Any) -> Any:
    if "model_stats" in document:  # what the path stands for where there is no model of that name
        raise UnknownModel("model 'stats' is not served here")
    return document


def _nothing(_: Any) -> Any:
    return {}


METHODS: Mapping[str, Method] = {
    "ServerLive": Method(
        oip.ServerLiveRequest, oip.ServerLiveResponse, lambda _: ("GET", "/v2/health/live", None), is_open=True
    ),
    "ServerReady": Method(
        oip.ServerReadyRequest, oip.ServerReadyResponse, lambda _: ("GET", "/v2/health/ready", None), is_open=True
    ),
    "ServerMetadata": Method(oip.ServerMetadataRequest, oip.ServerMetadataResponse, lambda _: ("GET", "/v2", None)),
    "ModelReady": Method(
        oip.ModelReadyRequest, oip.ModelReadyResponse, lambda message: ("GET", _model_path(message, "/ready"), None)
    ),
    "ModelMetadata": Method(
        oip.ModelMetadataRequest,
        oip.ModelMetadataResponse,
        lambda message: ("GET", _model_path(message), None),
        _metadata,
    ),
    "ModelConfig": Method(
        oip.ModelConfigRequest,
        oip.ModelConfigResponse,
        lambda message: ("GET", _model_path(message, "/config"), None),
        _config,
    ),
    "ModelStatistics": Method(
        oip.ModelStatisticsRequest,
        oip.ModelStatisticsResponse,
        lambda message: ("GET", _model_path(message, "/stats"), None),
    ),
    "RepositoryIndex": Method(
        oip.RepositoryIndexRequest,
        oip.RepositoryIndexResponse,
        lambda message: ("POST", "/v2/repository/index", {"ready": message.ready}),
        lambda models: {"models": models},
    ),
    "RepositoryModelLoad": Method(
        oip.RepositoryModelLoadRequest,
        oip.RepositoryModelLoadResponse,
        lambda message: _control(message, "load"),
        _nothing,
    ),
    "RepositoryModelUnload": Method(
        oip.RepositoryModelUnloadRequest,
        oip.RepositoryModelUnloadResponse,
        lambda message: _control(message, "unload"),
        _nothing,
    ),
    "SystemSharedMemoryStatus": Method(
        oip.SystemSharedMemoryStatusRequest,
        oip.SystemSharedMemoryStatusResponse,
        lambda message: ("GET", _region_path("systemsharedmemory", message, "status"), None),
        _by_name,
    ),
    "SystemSharedMemoryRegister": Method(
        oip.SystemSharedMemoryRegisterRequest,
        oip.SystemSharedMemoryRegisterResponse,
        lambda message: (
            "POST",
            _region_path("systemsharedmemory", message, "register"),
            {"key": message.key, "offset": message.offset, "byte_size": message.byte_size},
        ),
        _nothing,
    ),
    "SystemSharedMemoryUnregister": Method(
        oip.SystemSharedMemoryUnregisterRequest,
        oip.SystemSharedMemoryUnregisterResponse,
        lambda message: ("POST", _region_path("systemsharedmemory", message, "unregister"), None),
        _nothing,
    ),
    "CudaSharedMemoryStatus": Method(
        oip.CudaSharedMemoryStatusRequest,
        oip.CudaSharedMemoryStatusResponse,
        lambda message: ("GET", _region_path("cudasharedmemory", message, "status"), None),
        _by_name,
    ),
    "CudaSharedMemoryRegister": Method(
        oip.CudaSharedMemoryRegisterRequest,
        oip.CudaSharedMemoryRegisterResponse,
        lambda message: ("POST", _region_path("cudasharedmemory", message, "register"), {}),
        _nothing,
    ),
    "CudaSharedMemoryUnregister": Method(
        oip.CudaSharedMemoryUnregisterRequest,
        oip.CudaSharedMemoryUnregisterResponse,
        lambda message: ("POST", _region_path("cudasharedmemory", message, "unregister"), None),
        _nothing,
    ),
}
