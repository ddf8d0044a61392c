"""REST of monitoring: drift, accuracy, metrics and alerts, for the console, dashboards and people."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query

from fleet_server.clock import Clock, now_ms
from fleet_server.json_answers import Answer, describe
from fleet_server.monitoring.machines import RECENT_S, MachineRecord
from fleet_server.monitoring.service import MonitoringService


def routes(service: MonitoringService, *, require_viewer: Callable[..., Any], clock: Clock = now_ms) -> APIRouter:
    """The routes of monitoring; ``require_viewer`` is a FastAPI dependency that refuses strangers."""
    router = APIRouter(prefix="/api/v1", tags=["monitoring"], dependencies=[Depends(require_viewer)])

    @router.get("/monitoring/alerts")
    def list_alerts(
        model: str | None = None,
        only_open: Annotated[bool, Query(alias="open", description="Only those not closed yet.")] = False,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> list[dict[str, Any]]:
        """List alerts of all models, the newest first; ``device`` is empty where the fleet is meant."""
        return service.alerts(model, only_open=only_open, limit=limit)

    @router.get("/monitoring/{model}/drift")
    def get_drift(model: str, history: Annotated[int, Query(ge=0, le=10_000)] = 100) -> dict[str, Any]:
        """Drift by counts alone: the fleet's verdict, each device's newest window by feature, and the last windows."""
        return service.drift(model, clock(), history=history)

    @router.get("/monitoring/{model}/accuracy")
    def get_accuracy(
        model: str,
        bucket_s: Annotated[float, Query(gt=0, le=31 * 86_400, description="Width of a time bucket.")] = 60.0,
        since_ms: Annotated[
            int | None, Query(ge=0, lt=1 << 62, description="Unix milliseconds; 240 buckets ago if absent.")
        ] = None,
    ) -> dict[str, Any]:
        """Accuracy over time: from labels with bounds, estimated without labels, and what the harm rule says now."""
        return service.accuracy(model, clock(), bucket_s=bucket_s, since_ms=since_ms)

    @router.get("/monitoring/{model}/metrics")
    def get_metrics(
        model: str, window_s: Annotated[float, Query(gt=0, le=366 * 86_400)] = 3600.0
    ) -> list[dict[str, Any]]:
        """Requests, failures, latency quantiles and the machine's state per device."""
        return service.metrics(model, since_ms=clock() - round(window_s * 1000))

    @router.get("/monitoring/{model}/alerts")
    def get_alerts(model: str, limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> list[dict[str, Any]]:
        """List the model's alerts, the newest first."""
        return service.alerts(model, limit=limit)

    @router.get("/machines", responses=describe(list[MachineRecord]))
    def list_machines(
        device: str | None = None,
        window_s: Annotated[
            float, Query(gt=0, le=366 * 86_400, description="Energy and throttling are of that long before the newest.")
        ] = RECENT_S,
    ) -> Answer:
        """List the devices' machines: GPUs, temperatures, power, throttling, energy per inference."""
        return Answer(service.machines(device, window_s=window_s))

    return router
