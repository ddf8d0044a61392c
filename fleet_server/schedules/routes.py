"""REST of schedules and runs: people look and ask, the trainer's worker claims and reports."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Response, status
from pydantic import BaseModel, Field

from edge_agent.contract.errors import ManifestError
from edge_agent.contract.names import check_name
from edge_agent.contract.runs import RunFile, RunProgress, RunResult
from fleet_server.errors import Conflict
from fleet_server.json_answers import Answer, describe
from fleet_server.json_requests import Body, RequestBody, decode, describe_body
from fleet_server.schedules.service import MANUAL, RunService
from fleet_server.schedules.slots import CatchUp, Schedule, ScheduleRefused


class ScheduleBody(RequestBody):
    """When a model is to be trained."""

    model: str = Field(examples=["digits"])
    kind: str = Field("cron", pattern="^(cron|interval)$")
    expression: str = Field(description="Five cron fields, or seconds.", examples=["0 3 * * *", "3600"])
    timezone: str = Field("UTC", examples=["Europe/Berlin"])
    catch_up: CatchUp = Field(CatchUp.LATEST, description="What becomes of slots missed while no server ran.")
    enabled: bool = True


class ClaimBody(RequestBody):
    """A worker that is free."""

    worker: str = Field(min_length=1, max_length=200, examples=["trainer-1:4711"])
    models: list[str] = Field([], description="Models it can train; empty: any.")


class RunBody(RequestBody):
    """A run that a person asks for."""

    model: str = Field(examples=["digits"])
    reason: str = Field("asked for", min_length=1, max_length=500)


class Cancellation(RequestBody):
    """Why a run is cancelled."""

    reason: str = Field("asked for", min_length=1, max_length=500, examples=["the labels of line 3 are wrong"])


class RunAsked(BaseModel):
    """The run that was made, or the one of the model that is active already."""

    run: str


def routes(
    service: RunService,
    *,
    require_trainer: Callable[..., Any],
    require_viewer: Callable[..., Any],
    require_admin: Callable[..., Any],
) -> APIRouter:
    """The routes of schedules and runs; each ``require_...`` is a FastAPI dependency that refuses a lower role."""
    router = APIRouter()
    _schedules(router, service, Depends(require_viewer), Depends(require_admin))
    _runs(router, service, Depends(require_viewer), Depends(require_admin))
    _work(router, service, Depends(require_trainer))
    return router


def _schedules(router: APIRouter, service: RunService, viewer: Any, admin: Any) -> None:
    @router.get("/api/v1/schedules", tags=["schedules"], dependencies=[viewer])
    def list_schedules() -> list[dict[str, Any]]:
        """List the schedules, each with its next slot (``next_ms``, Unix milliseconds)."""
        return service.schedules()

    @router.put(
        "/api/v1/schedules/{name}", tags=["schedules"], status_code=status.HTTP_204_NO_CONTENT, dependencies=[admin]
    )
    def put_schedule(name: str, body: ScheduleBody) -> None:
        """Create or change a schedule."""
        service.put_schedule(Schedule(name=name, **body.model_dump()))

    @router.delete(
        "/api/v1/schedules/{name}", tags=["schedules"], status_code=status.HTTP_204_NO_CONTENT, dependencies=[admin]
    )
    def delete_schedule(name: str) -> None:
        """Delete a schedule; its runs stay."""
        service.delete_schedule(name)


def _runs(router: APIRouter, service: RunService, viewer: Any, admin: Any) -> None:
    @router.get("/api/v1/runs", tags=["runs"], dependencies=[viewer])
    def list_runs(model: str | None = None, limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> list[dict[str, Any]]:
        """List runs, the newest first."""
        return service.list(model, limit=limit)

    @router.get("/api/v1/runs/{run}", tags=["runs"], dependencies=[viewer])
    def get_run(run: str) -> dict[str, Any]:
        """One run: where it is, what it was made from, how it ended and why."""
        return service.get(run)

    @router.post("/api/v1/runs", tags=["runs"], status_code=status.HTTP_201_CREATED, dependencies=[admin])
    def request_run(body: RunBody) -> RunAsked:
        """Ask for a run now."""
        try:
            check_name(body.model, "model")
        except ManifestError as error:
            raise ScheduleRefused(str(error)) from error
        service.check_model(body.model)
        run = service.request(body.model, MANUAL, body.reason)
        if run is None:
            raise Conflict(f"{body.model}: another run began and ended at this very moment; ask again")
        return RunAsked(run=run)

    @router.post("/api/v1/runs/{run}/cancel", tags=["runs"], dependencies=[admin])
    def cancel_run(run: str, body: Cancellation) -> dict[str, Any]:
        """End a run that waits or is under way; its worker stops at its next heartbeat."""
        service.cancel(run, body.reason)
        return service.get(run)


def _work(router: APIRouter, service: RunService, trainer: Any) -> None:
    @router.post(
        "/api/v1/runs/claim",
        tags=["runs"],
        dependencies=[trainer],
        responses={**describe(RunFile), 204: {"description": "No run waits."}},
    )
    def claim(body: ClaimBody) -> Response:
        """Claim a run under a lease: the run file, or 204 where none waits."""
        found = service.claim(body.worker, body.models)
        if found is None:
            return Response(status_code=status.HTTP_204_NO_CONTENT)
        return Answer(found)

    @router.post(
        "/api/v1/runs/{run}/progress",
        tags=["runs"],
        status_code=status.HTTP_204_NO_CONTENT,
        dependencies=[trainer],
        openapi_extra=describe_body(RunProgress),
        responses={409: {"description": "The lease was lost: stop the run."}},
    )
    def progress(run: str, body: Body) -> None:
        """Report progress, which renews the lease."""
        service.progress(run, decode(body, RunProgress))

    @router.post(
        "/api/v1/runs/{run}/result",
        tags=["runs"],
        status_code=status.HTTP_204_NO_CONTENT,
        dependencies=[trainer],
        openapi_extra=describe_body(RunResult),
        responses={409: {"description": "The lease was lost, or the result contradicts itself."}},
    )
    def result(run: str, body: Body) -> None:
        """Report how a run ended; the same report twice is taken once."""
        service.finish(run, decode(body, RunResult))
