"""REST: devices, their twins and events, and the sampling policy of a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Query, status
from pydantic import Field

from edge_agent.contract.names import is_name
from edge_agent.contract.sampling import SamplingPolicy
from fleet_server.access.guard import Guard
from fleet_server.access.roles import Role
from fleet_server.devices.records import DeviceRecord, EventRecord
from fleet_server.devices.service import DeviceService
from fleet_server.errors import NotFound
from fleet_server.json_answers import Answer, describe
from fleet_server.json_requests import RequestBody

# Identifiers are 64-bit numbers.
Before = Annotated[int | None, Query(ge=0, lt=1 << 63, description="Only events with a smaller id.")]


class Sampling(RequestBody):
    """How many requests devices send home, and for how many they ask a label."""

    samples_per_minute: float = Field(60.0, ge=0, le=1e6, description="Per device.")
    labels_per_minute: float = Field(0.0, ge=0, le=1e6, description="Per device; 0 asks for none.", examples=[12])
    uniform_share: float = Field(
        0.3, gt=0, le=1, description="Drawn uniformly; the rest goes to the narrowest margins."
    )
    label_lifetime_s: float = Field(86_400.0, gt=0, le=366 * 86_400)


class ReportInterval(RequestBody):
    """How often devices report."""

    seconds: float = Field(gt=0, le=86_400)


def routes(service: DeviceService, guard: Guard, *, disconnect: Callable[[str], None]) -> APIRouter:
    """The routes of devices.

    Args:
        disconnect: Ends a device's connection to the broker, where that is in our hands.
    """
    router = APIRouter(prefix="/api/v1", tags=["devices"])
    viewer, admin = Depends(guard.require(Role.VIEWER)), Depends(guard.require(Role.ADMIN))

    @router.get("/devices", dependencies=[viewer], responses=describe(list[DeviceRecord]))
    def list_devices() -> Answer:
        """List all devices with what they should be and what they are."""
        return Answer(service.list())

    @router.get("/devices/{device}", dependencies=[viewer], responses=describe(DeviceRecord))
    def get_device(device: str) -> Answer:
        """Show one device."""
        return Answer(service.get(device))

    @router.get("/devices/{device}/events", dependencies=[viewer], responses=describe(list[EventRecord]))
    def list_device_events(
        device: str, limit: Annotated[int, Query(ge=1, le=1000)] = 100, before: Before = None
    ) -> Answer:
        """List a device's events, newest first."""
        service.get(device)
        return Answer(service.events(device, limit=limit, before=before))

    @router.get("/events", dependencies=[viewer], responses=describe(list[EventRecord]))
    def list_events(limit: Annotated[int, Query(ge=1, le=1000)] = 100, before: Before = None) -> Answer:
        """List the events of all devices, newest first."""
        return Answer(service.events(limit=limit, before=before))

    @router.post("/devices/{device}/revoke", dependencies=[admin], status_code=status.HTTP_204_NO_CONTENT)
    def revoke_device(device: str) -> None:
        """Ignore a device from now on; a claim bound to its name lets it come back."""
        guard.service.revoke_device(device)
        disconnect(device)
        service.revoked(device)

    @router.put("/models/{model}/sampling", dependencies=[admin])
    def set_sampling(model: str, policy: Sampling) -> Sampling:
        """Set how much every device of a model sends home."""
        if not is_name(model):
            raise NotFound(f"{model[:80]!r} is no model's name")
        service.desire_sampling(model, msgspec.convert(policy.model_dump(), SamplingPolicy))
        return policy

    @router.put("/report-interval", dependencies=[admin])
    def set_report_interval(interval: ReportInterval) -> dict[str, Any]:
        """Set how often every device reports."""
        service.desire_report_interval(interval.seconds)
        return {"seconds": interval.seconds}

    return router
