"""REST: what the labels say."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query

from fleet_server.access.guard import Guard
from fleet_server.access.roles import Role
from fleet_server.json_answers import Answer, describe
from fleet_server.labels.service import LabelledAccuracy, LabelService

Time = Annotated[int, Query(ge=0, lt=1 << 63, description="Unix milliseconds.")]


def routes(service: LabelService, guard: Guard) -> APIRouter:
    """The routes of labels."""
    router = APIRouter(prefix="/api/v1", tags=["labels"])
    viewer = Depends(guard.require(Role.VIEWER))

    @router.get("/models/{model}/accuracy", dependencies=[viewer], responses=describe(list[LabelledAccuracy]))
    def show_accuracy(model: str, since_ms: Time = 0, until_ms: Time | None = None) -> Answer:
        """Show how often each device was right with each package, by the labels of its requests in the period."""
        return Answer(service.accuracy(model, since_ms=since_ms, until_ms=until_ms))

    return router
