"""Bodies of the REST of schedules and runs, and what they stand for."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from edge_agent.contract.runs import RunKind
from fleet_server.json_requests import RequestBody
from fleet_server.schedules.graph import TRAINING, Step, steps_from
from fleet_server.schedules.leases import Claimant
from fleet_server.schedules.slots import CatchUp, Schedule

_Reason = Field("asked for", min_length=1, max_length=500)


class ResourcesBody(RequestBody):
    """What a run takes of its worker."""

    cpus: float = Field(0.0, ge=0, description="Processors; 0: it is not counted.")
    gpus: int = Field(0, ge=0)


class WorkBody(RequestBody):
    """What is to be done, and how."""

    kind: RunKind = RunKind.TRAIN
    options: dict[str, Any] = Field({}, description="What the kind takes: a batch's `job`, a training's `seed`.")
    retries: int = Field(0, ge=0, le=100, description="After failures that another try may mend.")
    backoff_s: float = Field(60.0, ge=0, description="Before the first retry; doubles with each.")
    timeout_s: float | None = Field(None, gt=0, description="Of one attempt.")
    priority: int = Field(0, ge=-1000, le=1000, description="The higher goes first.")
    resources: ResourcesBody = Field(default_factory=lambda: ResourcesBody(cpus=0.0, gpus=0))


class StepBody(WorkBody):
    """One step of a schedule's graph."""

    name: str = Field("", max_length=63, examples=["train"])
    model: str = Field("", max_length=63, description="The schedule's unless given.")
    needs: list[str] = Field([], description="Steps that must have come to a verdict before.", examples=[["import"]])


class ScheduleBody(RequestBody):
    """When what is to be done about a model."""

    model: str = Field(examples=["digits"])
    kind: str = Field("cron", pattern="^(cron|interval|labels|manual)$")
    expression: str = Field(
        "", description="Five cron fields, seconds, or a number of new labels.", examples=["0 3 * * *", "3600", "500"]
    )
    timezone: str = Field("UTC", examples=["Europe/Berlin"])
    catch_up: CatchUp = Field(CatchUp.LATEST, description="What becomes of slots missed while no server ran.")
    enabled: bool = True
    steps: list[StepBody] = Field([], description="The graph; unless given, one step that trains.")

    def schedule(self, name: str) -> Schedule:
        """What it stands for.

        Raises:
            ScheduleRefused: It makes no sense.
        """
        given = self.model_dump(exclude={"steps"})
        steps = steps_from(f"schedule {name}", [step.model_dump(mode="json") for step in self.steps])
        return Schedule(name=name, steps=steps or TRAINING, **given)


class RunBody(WorkBody):
    """A run that a person asks for."""

    model: str = Field(examples=["digits"])
    reason: str = _Reason

    def step(self) -> Step:
        """What it stands for.

        Raises:
            ScheduleRefused: It makes no sense.
        """
        given = self.model_dump(mode="json", exclude={"model", "reason"})
        return steps_from(f"run of {self.model}", [given])[0]


class StartBody(RequestBody):
    """The runs of a schedule, made by a person."""

    reason: str = _Reason
    logical_time: str | None = Field(None, description="Now unless given.", examples=["2026-03-01T03:00:00Z"])


class Backfill(RequestBody):
    """The past slots that are to have runs."""

    from_: str = Field(alias="from", examples=["2026-03-01"])
    until: str = Field(examples=["2026-03-08T00:00:00Z"])
    reason: str = Field("backfill", min_length=1, max_length=500)
    dry_run: bool = Field(False, description="Say which slots, and make nothing.")


class Cancellation(RequestBody):
    """Why a run is cancelled."""

    reason: str = Field("asked for", min_length=1, max_length=500, examples=["the labels of line 3 are wrong"])


class ClaimBody(RequestBody):
    """A worker that is free."""

    worker: str = Field(min_length=1, max_length=200, examples=["trainer-1:4711"])
    models: list[str] = Field([], description="Models it can train; empty: any.")
    kinds: list[RunKind] = Field([RunKind.TRAIN], description="Of runs that it can carry out.")
    cpus: float | None = Field(None, ge=0, description="What it has free; it counts none unless given.")
    gpus: int | None = Field(None, ge=0)
    holding: list[str] | None = Field(
        None, max_length=1000, description="Runs that it works on; what else is under its name is queued again."
    )

    def claimant(self) -> Claimant:
        """What it stands for."""
        return Claimant(
            worker=self.worker,
            models=tuple(self.models),
            kinds=tuple(self.kinds),
            cpus=self.cpus,
            gpus=self.gpus,
            holding=None if self.holding is None else tuple(self.holding),
        )


class HandBack(RequestBody):
    """A run that its worker cannot go on with."""

    fence: int
    reason: str = Field("the worker stops", min_length=1, max_length=500)
