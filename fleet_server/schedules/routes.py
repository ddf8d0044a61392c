"""REST of schedules and runs: people look and ask, the trainer's worker claims and reports."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Response, status
from pydantic import BaseModel

from edge_agent.contract.errors import ManifestError
from edge_agent.contract.names import check_name
from edge_agent.contract.runs import RunFile, RunKind, RunProgress, RunResult, RunState
from fleet_server.errors import Conflict
from fleet_server.json_answers import Answer, describe
from fleet_server.json_requests import Body, decode, describe_body
from fleet_server.schedules.bodies import (
    Backfill,
    Cancellation,
    ClaimBody,
    HandBack,
    RunBody,
    ScheduleBody,
    StartBody,
)
from fleet_server.schedules.creation import MANUAL
from fleet_server.schedules.graph import ScheduleRefused, models_of
from fleet_server.schedules.schedule_service import ScheduleService
from fleet_server.schedules.service import RunService
from fleet_server.schedules.slots import CatchUp, moment_ms, rfc3339


class RunAsked(BaseModel):
    """The run that was made, or the one of the model that is active already: ``is_new`` says which."""

    run: str
    is_new: bool
    state: str
    reason: str


class RunsMade(BaseModel):
    """The runs of a slot."""

    runs: list[str]
    logical_time: str


def routes(
    service: RunService,
    schedules: ScheduleService,
    *,
    require_trainer: Callable[..., Any],
    require_viewer: Callable[..., Any],
    require_admin: Callable[..., Any],
) -> APIRouter:
    """The routes of schedules and runs; each ``require_...`` is a FastAPI dependency that refuses a lower role."""
    router = APIRouter()
    _schedules(router, schedules, service, Depends(require_viewer), Depends(require_admin))
    _runs_of_schedules(router, schedules, Depends(require_viewer), Depends(require_admin))
    _runs(router, service, Depends(require_viewer))
    _requests(router, service, Depends(require_admin))
    _work(router, service, Depends(require_trainer))
    return router


def _schedules(router: APIRouter, service: ScheduleService, runs: RunService, viewer: Any, admin: Any) -> None:
    @router.get("/api/v1/schedules", tags=["schedules"], dependencies=[viewer])
    def list_schedules() -> list[dict[str, Any]]:
        """List the schedules, each with its next slot (``next_ms``, Unix milliseconds)."""
        return service.list()

    @router.get("/api/v1/schedules/{name}", tags=["schedules"], dependencies=[viewer])
    def get_schedule(name: str) -> dict[str, Any]:
        """One schedule with its graph of steps, and those of its models that are not known (yet)."""
        one = service.get(name)
        return one | {"unknown_models": runs.unknown_models(models_of(one["model"], one["steps"]))}

    @router.put(
        "/api/v1/schedules/{name}", tags=["schedules"], status_code=status.HTTP_204_NO_CONTENT, dependencies=[admin]
    )
    def put_schedule(name: str, body: ScheduleBody) -> None:
        """Create or change a schedule."""
        service.put(body.schedule(name))

    @router.delete(
        "/api/v1/schedules/{name}", tags=["schedules"], status_code=status.HTTP_204_NO_CONTENT, dependencies=[admin]
    )
    def delete_schedule(name: str) -> None:
        """Delete a schedule; its runs stay."""
        service.delete(name)


def _runs_of_schedules(router: APIRouter, service: ScheduleService, viewer: Any, admin: Any) -> None:
    @router.get("/api/v1/schedules/{name}/preview", tags=["schedules"], dependencies=[viewer])
    def preview(
        name: str,
        count: Annotated[int, Query(ge=0, le=1000)] = 10,
        down_from: Annotated[str | None, Query(description="From when on no server would run.")] = None,
        down_until: Annotated[str | None, Query(description="Until when; now unless given.")] = None,
        catch_up: CatchUp | None = None,
    ) -> dict[str, Any]:
        """What a schedule would do: its next slots, and what it would catch up after a time without a server."""
        return service.preview(
            name,
            count=count,
            down_from_ms=None if down_from is None else moment_ms(down_from),
            down_until_ms=None if down_until is None else moment_ms(down_until),
            catch_up=catch_up,
        )

    @router.post(
        "/api/v1/schedules/{name}/backfill",
        tags=["schedules"],
        status_code=status.HTTP_201_CREATED,
        dependencies=[admin],
    )
    def backfill(name: str, body: Backfill) -> dict[str, Any]:
        """Make the runs of past slots; those that are there already stay as they are."""
        start, end = moment_ms(body.from_), moment_ms(body.until)
        return service.backfill(name, start, end, body.reason, dry_run=body.dry_run)

    @router.post(
        "/api/v1/schedules/{name}/runs", tags=["schedules"], status_code=status.HTTP_201_CREATED, dependencies=[admin]
    )
    def start(name: str, body: StartBody) -> RunsMade:
        """Make a schedule's runs now, whatever its calendar says."""
        at_ms = None if body.logical_time is None else moment_ms(body.logical_time)
        made, slot = service.start(name, body.reason, logical_time_ms=at_ms)
        return RunsMade(runs=made, logical_time=rfc3339(slot))


def _runs(router: APIRouter, service: RunService, viewer: Any) -> None:
    @router.get("/api/v1/runs", tags=["runs"], dependencies=[viewer])
    def list_runs(
        model: str | None = None,
        schedule: str | None = None,
        state: RunState | None = None,
        kind: RunKind | None = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> list[dict[str, Any]]:
        """List runs, the newest first."""
        return service.list(model, limit=limit, schedule=schedule, state=state, kind=kind)

    @router.get("/api/v1/runs/{run}", tags=["runs"], dependencies=[viewer])
    def get_run(run: str) -> dict[str, Any]:
        """One run: where it is, what it was made from, how it ended and why, and the graph that it belongs to.

        Wherever a person names a run, a beginning of its identifier that is of no other run does too.
        """
        return service.get(service.identify(run))

    @router.get("/api/v1/runs/{run}/log", tags=["runs"], dependencies=[viewer])
    def get_log(run: str, after: Annotated[int, Query(ge=0, le=2**63 - 1)] = 0) -> dict[str, Any]:
        """What a run has written since (``text``); ask with ``next`` for what comes after."""
        return service.log(service.identify(run), after)

    @router.get("/api/v1/runs/{run}/metrics", tags=["runs"], dependencies=[viewer])
    def get_metrics(run: str) -> list[dict[str, Any]]:
        """A run's metrics over time."""
        return service.metrics(service.identify(run))


def _requests(router: APIRouter, service: RunService, admin: Any) -> None:
    @router.post("/api/v1/runs", tags=["runs"], status_code=status.HTTP_201_CREATED, dependencies=[admin])
    def request_run(body: RunBody) -> RunAsked:
        """Ask for a run now: a training, unless another kind is given."""
        try:
            check_name(body.model, "model")
        except ManifestError as error:
            raise ScheduleRefused(str(error)) from error
        service.check_model(body.model)
        run, is_new = service.ask(body.model, MANUAL, body.reason, body.step())
        if run is None:
            raise Conflict(f"{body.model}: another run began and ended at this very moment; ask again")
        one = service.get(run)
        return RunAsked(run=run, is_new=is_new, state=one["state"], reason=one["reason"])

    @router.post("/api/v1/runs/{run}/cancel", tags=["runs"], dependencies=[admin])
    def cancel_run(run: str, body: Cancellation) -> dict[str, Any]:
        """End a run that waits or is under way; its worker stops at its next heartbeat."""
        run = service.identify(run)
        service.cancel(run, body.reason)
        return service.get(run)

    @router.post("/api/v1/runs/{run}/retry", tags=["runs"], dependencies=[admin])
    def retry_run(run: str) -> dict[str, Any]:
        """Queue a run anew that failed, was cancelled or skipped, with the steps skipped because of it."""
        run = service.identify(run)
        service.retry(run)
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
        found = service.claim(body.claimant())
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
        """Report progress, newest metrics and new lines of the log, which renews the lease."""
        service.progress(run, decode(body, RunProgress))

    @router.post(
        "/api/v1/runs/{run}/hand-back",
        tags=["runs"],
        status_code=status.HTTP_204_NO_CONTENT,
        dependencies=[trainer],
        responses={409: {"description": "The lease was lost already."}},
    )
    def hand_back(run: str, body: HandBack) -> None:
        """Give a run back that the worker cannot go on with, because it is told to stop; another takes it."""
        service.hand_back(run, body.fence, body.reason)

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
