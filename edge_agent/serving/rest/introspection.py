"""What the API tells of itself and of its models: server metadata, health, metadata, configuration, statistics."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import msgspec

from edge_agent.contract.errors import ModelUnavailable, UnknownModel
from edge_agent.contract.signature import TensorSpec
from edge_agent.runtime.slots import LoadedModel, Slots
from edge_agent.runtime.statistics import StatisticsSnapshot
from edge_agent.serving.access import App
from edge_agent.serving.http.message import HttpRequest, HttpResponse, document
from edge_agent.serving.rest.model_config import model_config
from edge_agent.serving.rest.route import Target

SERVER_NAME = "shoal-agent"
# Only what is really there, by the names that clients of Triton know; the last one is Shoal's own.
EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "model_repository(unload_dependents)",
    "parameters",
    "schedule_policy",
    "statistics",
    "system_shared_memory",
    "feedback",
)


class Introspection:
    """Answers the routes that only tell something; each method is the answer of one route.

    Args:
        max_rows: Rows that one request may hold.
        trouble: What health says is wrong, though models are served.
    """

    def __init__(self, slots: Slots, *, agent_version: str, max_rows: int, trouble: str = "") -> None:
        self._slots, self._max_rows = slots, max_rows
        self._trouble = {"trouble": trouble} if trouble else {}
        self._server = {"name": SERVER_NAME, "version": agent_version, "extensions": EXTENSIONS}

    def server(self, request: HttpRequest, target: Target, app: App) -> HttpResponse:  # noqa: ARG002 - a route's signature, here and below
        """``GET /v2``."""
        return document(self._server)

    def live(self, request: HttpRequest, target: Target, app: App) -> HttpResponse:  # noqa: ARG002
        """``GET /v2/health/live``: it answers, so it is."""
        return document({"live": True, "ready": self.is_ready()} | self._trouble)

    def ready(self, request: HttpRequest, target: Target, app: App) -> HttpResponse:  # noqa: ARG002
        """``GET /v2/health/ready``: whether it serves a model."""
        ready = self.is_ready()
        return document({"live": True, "ready": ready} | self._trouble, 200 if ready else 503)

    def is_ready(self) -> bool:
        """Whether some model answers requests, be it after waking up."""
        return any(self._slots.versions(name) for name in {entry.name for entry in self._slots.index()})

    def model(self, request: HttpRequest, target: Target, app: App) -> HttpResponse:  # noqa: ARG002
        """``GET /v2/models/M[/versions/V]``: the metadata."""
        loaded = known_model(self._slots, target.model, target.version)
        return document(
            {
                "name": loaded.name,
                "versions": self._slots.versions(loaded.name),
                "platform": loaded.backend.platform,
                "inputs": [_tensor(spec) for spec in loaded.signature.inputs],
                "outputs": [_tensor(spec) for spec in loaded.signature.outputs],
                "parameters": {
                    "default_version": self._slots.default_version(loaded.name),
                    "package": loaded.digest,
                    "runtime": loaded.runtime.name,
                    "precision": loaded.runtime.precision,
                },
            }
        )

    def model_ready(self, request: HttpRequest, target: Target, app: App) -> HttpResponse:  # noqa: ARG002
        """``GET /v2/models/M[/versions/V]/ready``; a model that the next request wakes is ready."""
        try:
            self._slots.get(target.model, target.version)
        except ModelUnavailable as error:
            if not error.asleep:
                raise
        return document({"name": target.model, "ready": True})

    def config(self, request: HttpRequest, target: Target, app: App) -> HttpResponse:  # noqa: ARG002
        """``GET /v2/models/M[/versions/V]/config``."""
        loaded = known_model(self._slots, target.model, target.version)
        others = {other.name: other.signature for other in self._slots.models()}
        versions = self._slots.versions(loaded.name)
        return document(model_config(loaded, versions, max_rows=self._max_rows, others=others))

    def statistics(self, request: HttpRequest, target: Target, app: App) -> HttpResponse:  # noqa: ARG002
        """``GET /v2/models[/M[/versions/V]]/stats``: counts since each model was loaded."""
        models = self._slots.models()
        if target.model:
            versions = [one for one in models if one.name == target.model and target.version in (None, one.version)]
            # Of a model that is not loaded the error says why.
            models = versions or [self._slots.get(target.model, target.version)]
        return document({"model_stats": [_statistics(loaded) for loaded in models if app.permits(loaded.name)]})

    def all_statistics(self, request: HttpRequest, target: Target, app: App) -> HttpResponse:
        """``GET /v2/models/stats``: the statistics of all models, unless one is called "stats": then its metadata."""
        if app.permits("stats"):
            try:
                return self.model(request, target._replace(model="stats"), app)
            except UnknownModel:
                pass
        return self.statistics(request, target, app)


def known_model(slots: Slots, model: str, version: str | None = None) -> LoadedModel:
    """The model that answers requests, or would after waking up: to tell of it, not to run it.

    Raises:
        UnknownModel, ModelUnavailable: There is none.
    """
    try:
        return slots.get(model, version)
    except ModelUnavailable as error:
        last = slots.last_served(model) if error.asleep else None
        if last is None or version not in (None, last.version):
            raise
        return last


def known_models(slots: Slots) -> list[LoadedModel]:
    """All models that answer requests, those that would after waking up included, by name and version."""
    found = slots.models()
    awake = {loaded.name for loaded in found}
    for name in sorted({entry.name for entry in slots.index()} - awake):
        with contextlib.suppress(UnknownModel, ModelUnavailable):
            found.append(known_model(slots, name))
    return sorted(found, key=lambda loaded: loaded.name)


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    """One tensor; what the protocol does not know stands in ``parameters``, where clients expect the unexpected."""
    tensor: dict[str, Any] = {
        "name": spec.name,
        "datatype": spec.datatype.value,
        "shape": [-1 if axis is None else axis for axis in spec.shape],
    }
    parameters = msgspec.to_builtins(spec.constraint)
    if spec.labels is not None:
        parameters["labels"] = spec.labels
    if parameters:
        tensor["parameters"] = parameters
    return tensor


def _statistics(loaded: LoadedModel) -> dict[str, Any]:
    """The protocol's statistics extension; durations in nanoseconds."""
    counts = loaded.statistics.snapshot()
    spent = functools.partial(_duration, counts.success_count)
    return {
        "name": loaded.name,
        "version": loaded.version,
        "last_inference": counts.last_inference_ms,
        "inference_count": counts.rows,
        "execution_count": counts.execution_count,
        "inference_stats": {
            "success": spent(counts.success_ns),
            "fail": _duration(counts.fail_count, counts.fail_ns),
            "queue": spent(counts.queue_ns),
            "compute_input": spent(counts.compute_input_ns),
            "compute_infer": spent(counts.compute_infer_ns),
            "compute_output": spent(counts.compute_output_ns),
            "cache_hit": _duration(0, 0),
            "cache_miss": _duration(0, 0),
        },
        "batch_stats": _batches(counts),
        "memory_usage": [],
        # Not of the protocol's: requests that were wrong, by the rule of the signature that they broke.
        "refused": {"count": counts.refused, "rules": counts.refused_by_rule},
    }


def _batches(counts: StatisticsSnapshot) -> list[dict[str, Any]]:
    # How long a batch took to put together and take apart is counted per request, not per size of batch: rather no
    # compute_input and compute_output than zeros that look measured.
    return [{"batch_size": rows, "compute_infer": _duration(runs, ns)} for rows, (runs, ns) in counts.batches.items()]


def _duration(count: int, ns: int) -> dict[str, int]:
    return {"count": count, "ns": ns}
