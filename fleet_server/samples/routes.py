"""REST: what is in the lake."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter, Depends

from edge_agent.contract.lake import LABELS, SAMPLES
from fleet_server.access.guard import Guard
from fleet_server.access.roles import Role
from fleet_server.json_answers import Answer, describe
from fleet_server.samples.service import SampleService


class LakeTable(msgspec.Struct, frozen=True, kw_only=True):
    """One table of the lake.

    Args:
        version: Newest Delta version; None where the table does not exist yet.
        spooled: Rows that wait in the database to be appended.
    """

    version: int | None
    rows: int
    spooled: int


def routes(service: SampleService, guard: Guard) -> APIRouter:
    """The routes of the lake."""
    router = APIRouter(prefix="/api/v1", tags=["samples"])
    viewer = Depends(guard.require(Role.VIEWER))

    @router.get("/lake", dependencies=[viewer], responses=describe(dict[str, LakeTable]))
    def show_lake() -> Answer:
        """Show versions and sizes of the lake's tables, `samples` and `labels`."""
        versions, counts, spooled = service.versions(), service.counts(), service.spooled()
        return Answer(
            {
                name: LakeTable(version=versions[name], rows=counts[name], spooled=spooled[name])
                for name in (SAMPLES, LABELS)
            }
        )

    return router
