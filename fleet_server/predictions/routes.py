"""REST: answers of batch jobs by key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
from fastapi import APIRouter, Depends, Query
from pydantic import Field

from fleet_server.access.guard import Guard
from fleet_server.access.roles import Role
from fleet_server.errors import NotFound
from fleet_server.json_answers import Answer, describe
from fleet_server.json_requests import RequestBody
from fleet_server.predictions.service import JobOutput, Prediction, PredictionService

_MOST_KEYS = 1000
LogicalTime = Annotated[str | None, Query(description="Of this batch alone; the newest that has the key unless given.")]


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """Answers by key, and the keys that have none."""

    found: dict[str, Prediction]
    missing: Sequence[str]


class OutputPlace(RequestBody):
    """Where the answers of a job are that was run by hand; the server must be able to read it."""

    kind: Literal["delta", "parquet"]
    path: str = Field(min_length=1, max_length=4096)


class Keys(RequestBody):
    """Keys that are looked for."""

    keys: list[str] = Field(min_length=1, max_length=_MOST_KEYS)
    logical_time: str | None = None


def routes(service: PredictionService, guard: Guard) -> APIRouter:
    """The routes of the answers of batch jobs."""
    router = APIRouter(prefix="/api/v1", tags=["predictions"])
    viewer, trainer = Depends(guard.require(Role.VIEWER)), Depends(guard.require(Role.TRAINER))

    @router.get("/predictions", dependencies=[viewer], responses=describe(list[str]))
    def list_jobs() -> Answer:
        """List the batch jobs whose answers are served by key."""
        return Answer(service.jobs())

    @router.get("/predictions/{job}", dependencies=[viewer], responses=describe(JobOutput))
    def show_job(job: str) -> Answer:
        """Show where a job's answers are, and their newest logical time."""
        return Answer(service.show(job))

    @router.put("/predictions/{job}", dependencies=[trainer], responses=describe(JobOutput))
    def register_job(job: str, body: OutputPlace) -> Answer:
        """Serve the answers of a job that was run by hand. Runs of this server are known without."""
        return Answer(service.register(job, body.kind, body.path))

    @router.post("/predictions/{job}", dependencies=[viewer], responses=describe(Found))
    def find_predictions(job: str, body: Keys) -> Answer:
        """Find the answers of up to 1,000 keys at once."""
        found = service.find(job, body.keys, logical_time=body.logical_time)
        return Answer(Found(found=found, missing=[key for key in body.keys if key not in found]))

    @router.get("/predictions/{job}/{key:path}", dependencies=[viewer], responses=describe(Prediction))
    def show_prediction(job: str, key: str, logical_time: LogicalTime = None) -> Answer:
        """Show the newest answer to one row, by its key."""
        found = service.find(job, [key], logical_time=logical_time).get(key)
        if found is None:
            when = f" at {logical_time}" if logical_time else ""
            raise NotFound(f"job {job!r} has no answer for the key {key!r}{when}")
        return Answer(found)

    return router
