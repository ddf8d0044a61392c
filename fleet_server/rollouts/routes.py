"""REST: rollouts."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Query, status
from pydantic import Field

from edge_agent.contract.errors import MalformedRequest
from fleet_server.access.guard import Guard
from fleet_server.access.roles import Role
from fleet_server.json_answers import Answer, describe
from fleet_server.json_requests import RequestBody
from fleet_server.rollouts.rollout import Gate
from fleet_server.rollouts.service import RolloutService
from fleet_server.rollouts.store import RolloutRecord

_YEAR_S = 366 * 86_400


class GateRequest(RequestBody):
    """When a wave counts as healthy; what is left out keeps the server's default."""

    soak_s: float | None = Field(default=None, ge=0, le=_YEAR_S, description="Time that a wave must be healthy for.")
    min_requests: int | None = Field(default=None, ge=0, description="Requests a device must answer first.")
    max_failed_rate: float | None = Field(default=None, ge=0, le=1, description="Share of its requests that may fail.")
    max_failures: int | None = Field(default=None, ge=0, description="Devices that may fail before the rollout halts.")
    device_timeout_s: float | None = Field(
        default=None, gt=0, le=_YEAR_S, description="For a connected device to commit."
    )
    offline_timeout_s: float | None = Field(
        default=None, gt=0, le=_YEAR_S, description="Until an offline one is skipped."
    )


class RolloutRequest(RequestBody):
    """A rollout to create."""

    model: str = Field(examples=["digits"])
    package: str = Field(description="Version or package digest.", examples=["20260101-0300"])
    waves: list[int | float | str] | None = Field(
        default=None,
        description="How much of the fleet has the package at the end of each wave: whole numbers count devices, "
        "fractions and percentages are shares; the last must be all.",
        examples=[[1, "50%", "100%"]],
    )
    reason: str = Field(default="", max_length=500, examples=["retrained on smudged digits"])
    gate: GateRequest = Field(default_factory=GateRequest)
    revert: bool = Field(default=False, description="On a halt, send back the devices that have committed, too.")
    start: bool = Field(default=True, description="Else it stays a draft until it is resumed.")
    supersede: bool = Field(default=False, description="End an active rollout of the model first.")


class Halt(RequestBody):
    """Why a rollout is halted."""

    reason: str = Field(min_length=1, max_length=500, examples=["complaints from line 3"])
    revert: bool | None = Field(default=None, description="Send back committed devices; null: as created.")


def routes(service: RolloutService, guard: Guard, *, waves: tuple[int | float, ...], gate: Gate) -> APIRouter:
    """The routes of rollouts.

    Args:
        waves, gate: What a request that does not say gets.
    """
    router = APIRouter(prefix="/api/v1/rollouts", tags=["rollouts"])
    viewer, admin = Depends(guard.require(Role.VIEWER)), Depends(guard.require(Role.ADMIN))
    one: dict[str, Any] = {"dependencies": [admin], "responses": describe(RolloutRecord)}

    @router.get("", dependencies=[viewer], responses=describe(list[RolloutRecord]))
    def list_rollouts(model: str | None = None, limit: Annotated[int, Query(ge=1, le=500)] = 50) -> Answer:
        """List rollouts, newest first."""
        return Answer(service.list(model, limit=limit))

    @router.get("/{rollout}", dependencies=[viewer], responses=describe(RolloutRecord))
    def get_rollout(rollout: str) -> Answer:
        """Show one rollout with all its devices."""
        return Answer(service.get(rollout))

    @router.post("", dependencies=[admin], status_code=201, responses=describe(RolloutRecord, 201))
    def create_rollout(request: RolloutRequest) -> Answer:
        """Bring a package to the fleet in waves, each behind a health gate."""
        asked = {name: value for name, value in request.gate.model_dump().items() if value is not None}
        created = service.create(
            request.model,
            request.package,
            tuple(_wave(wave) for wave in request.waves) if request.waves is not None else waves,
            request.reason,
            gate=msgspec.structs.replace(gate, **asked),
            revert=request.revert,
            start=request.start,
            supersede=request.supersede,
        )
        return Answer(service.get(created), status.HTTP_201_CREATED)

    @router.post("/{rollout}/pause", **one)
    def pause_rollout(rollout: str) -> Answer:
        """Assign no further device; those that are assigned go on."""
        service.pause(rollout)
        return Answer(service.get(rollout))

    @router.post("/{rollout}/resume", **one)
    def resume_rollout(rollout: str) -> Answer:
        """Go on with a paused rollout, or begin a draft."""
        service.resume(rollout)
        return Answer(service.get(rollout))

    @router.post("/{rollout}/halt", **one)
    def halt_rollout(rollout: str, why: Halt) -> Answer:
        """End a rollout; devices that have not committed go back to what they had."""
        service.halt(rollout, why.reason, revert=why.revert)
        return Answer(service.get(rollout))

    return router


def _wave(wave: float | str) -> int | float:
    if not isinstance(wave, str):
        return wave
    number, percent = wave.strip().removesuffix("%"), wave.strip().endswith("%")
    try:
        return float(number) / 100 if percent else int(number)
    except ValueError as error:
        raise MalformedRequest(
            f"wave {wave!r}: give a number of devices (1, 10) or a share of the fleet (50%, 0.5)"
        ) from error
