"""Which path of the REST API is which route."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

from edge_agent.serving.access import App
from edge_agent.serving.http.message import HttpRequest, HttpResponse
from edge_agent.serving.rest import page, shared_memory_routes
from edge_agent.serving.rest.feedback import FeedbackRoute
from edge_agent.serving.rest.introspection import Introspection
from edge_agent.serving.rest.metrics import Metrics
from edge_agent.serving.rest.openapi import OpenApi
from edge_agent.serving.rest.repository_routes import RepositoryRoutes
from edge_agent.serving.rest.route import Needs, NoSuchPath, Route, Target
from edge_agent.serving.shared_memory import Regions

_V1 = re.compile(r"v1(?:/models(?:/([\w.-]{1,100})(?::[a-z]+)?)?)?")
RegionAnswer = Callable[[HttpRequest, Regions, "str | None"], HttpResponse]


@dataclasses.dataclass
class Paths:
    """Every route of the API, and the paths that lead to each.

    Args:
        infer: The route of inference.
        shared_memory: Makes a route's answer of a function of :mod:`edge_agent.serving.rest.shared_memory_routes`.
        body_limit_bytes: Longest body of a load request.
    """

    tell: Introspection
    repository: RepositoryRoutes
    feedback: FeedbackRoute
    openapi: OpenApi
    metrics: Metrics
    infer: Route
    shared_memory: Callable[[RegionAnswer], Callable[[HttpRequest, Target, App], HttpResponse]]
    body_limit_bytes: int

    def __post_init__(self) -> None:
        tell, control = self.tell, Needs.CONTROL
        self._fixed = {
            "": Route("GET", Needs.NOTHING, page.index),
            "docs": Route("GET", Needs.NOTHING, page.docs),
            "openapi.json": Route("GET", Needs.APP, self.openapi.description),
            "metrics": Route("GET", Needs.APP, self.metrics.scrape),
            "v2": Route("GET", Needs.APP, tell.server),
            "v2/health/live": Route("GET", Needs.NOTHING, tell.live),
            "v2/health/ready": Route("GET", Needs.NOTHING, tell.ready),
            "v2/models/stats": Route("GET", Needs.APP, tell.all_statistics),
            "v2/repository/index": Route("POST", Needs.APP, self.repository.index),
        }
        self._of_model = {
            "": Route("GET", Needs.MODEL, tell.model),
            "ready": Route("GET", Needs.MODEL, tell.model_ready),
            "config": Route("GET", Needs.MODEL, tell.config),
            "stats": Route("GET", Needs.MODEL, tell.statistics),
            "infer": self.infer,
        }
        self._feedback = Route("POST", Needs.MODEL, self.feedback)
        self._example = Route("GET", Needs.MODEL, self.openapi.example)
        self._control = {
            "load": Route("POST", control, self.repository.load, self.body_limit_bytes),
            "unload": Route("POST", control, self.repository.unload),
        }
        routes, memory = shared_memory_routes, self.shared_memory
        self._memory = {
            ("systemsharedmemory", "status"): Route("GET", Needs.APP, memory(routes.system_status)),
            ("systemsharedmemory", "register"): Route("POST", control, memory(routes.system_register)),
            ("systemsharedmemory", "unregister"): Route("POST", control, memory(routes.system_unregister)),
            ("cudasharedmemory", "status"): Route("GET", Needs.APP, memory(routes.cuda_status)),
            ("cudasharedmemory", "register"): Route("POST", control, memory(routes.cuda_register)),
            ("cudasharedmemory", "unregister"): Route("POST", control, memory(routes.cuda_unregister)),
        }

    def resolve(self, path: str) -> Target:
        """What a path stands for.

        Raises:
            NoSuchPath: Nothing.
        """
        plain = path.strip("/")
        if plain in self._fixed:
            return Target(self._fixed[plain])
        parts = plain.split("/")
        target = self._of_models(parts) or self._of_others(parts)
        if target is None and (v1 := _V1.fullmatch(plain)) is not None:
            raise NoSuchPath(
                f"{path:.200}: the V1 protocol is not spoken here, V2 is: POST /v2/models/{v1[1] or 'MODEL'}/infer"
            )
        if target is None:
            raise NoSuchPath(f"no such path: {path:.200}; the API begins at /v2, and /docs shows it")
        return target

    def _of_models(self, parts: list[str]) -> Target | None:
        match parts:
            case ["v2", "models", model]:
                return Target(self._of_model[""], model)
            case ["v2", "models", model, "feedback"]:
                return Target(self._feedback, model)
            case ["v2", "models", model, what] if what and what in self._of_model:
                return Target(self._of_model[what], model)
            case ["v2", "models", model, "versions", version]:
                return Target(self._of_model[""], model, version)
            case ["v2", "models", model, "versions", version, what] if what and what in self._of_model:
                return Target(self._of_model[what], model, version)
            case _:
                return None

    def _of_others(self, parts: list[str]) -> Target | None:
        match parts:
            case ["v2", "repository", "models", model, ("load" | "unload") as what]:
                return Target(self._control[what], model)
            case ["v2", ("systemsharedmemory" | "cudasharedmemory") as kind, ("status" | "unregister") as what]:
                return Target(self._memory[kind, what])
            case ["v2", kind, "region", region, what] if (kind, what) in self._memory:
                return Target(self._memory[kind, what], region=region)
            case ["openapi", "examples", model]:
                return Target(self._example, model)
            case ["openapi", "examples", model, version]:
                return Target(self._example, model, version)
            case _:
                return None
