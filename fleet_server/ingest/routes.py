"""REST: how far the devices' streams have come, and what could not be taken."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter, Depends

from fleet_server.access.guard import Guard
from fleet_server.access.roles import Role
from fleet_server.ingest.service import IngestService, StreamProgress
from fleet_server.json_answers import Answer, describe


class IngestState(msgspec.Struct, frozen=True, kw_only=True):
    """The state of ingest.

    Args:
        since_start: Messages by what became of them: ``next`` (taken), ``repeated``, ``gap``, ``fork``,
            ``set-aside``, ``refused``.
        set_aside: Different messages that could not be taken; they lie in table ``ingest_set_aside`` with the reason.
    """

    streams: list[StreamProgress]
    since_start: dict[str, int]
    set_aside: int


def routes(service: IngestService, guard: Guard) -> APIRouter:
    """The routes of ingest."""
    router = APIRouter(prefix="/api/v1", tags=["ingest"])
    viewer = Depends(guard.require(Role.VIEWER))

    @router.get("/ingest", dependencies=[viewer], responses=describe(IngestState))
    def show_ingest() -> Answer:
        """Show the watermark of every stream of every device, and how much was dropped or set aside."""
        state = IngestState(
            streams=service.progress(), since_start=dict(service.counts), set_aside=service.set_aside_count()
        )
        return Answer(state)

    return router
