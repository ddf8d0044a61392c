"""Runs come into being: one that was asked for, or a graph for a slot. Works inside the caller's transaction."""

from __future__ import annotations

import dataclasses
import hashlib
import uuid
from typing import Any

import msgspec
import sqlalchemy as sa

from edge_agent.contract.runs import RunKind, RunState
from fleet_server.schedules import graph
from fleet_server.schedules.graph import SEED_OPTION, Step
from fleet_server.schedules.slots import Schedule
from fleet_server.schedules.tables import runs

MANUAL = "manual"
HARM = "harm"
SCHEDULE = "schedule"
NEW_LABELS = "labels"
BACKFILL = "backfill"
# Added to a step's own: who waits for it goes first, what makes up for the past goes last.
_PRIORITIES = {MANUAL: 10, HARM: 5, NEW_LABELS: 0, SCHEDULE: 0, BACKFILL: -10}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """Why runs come into being: a trigger, a reason in words, and when."""

    trigger: str
    reason: str
    now_ms: int


def insert_run(
    connection: sa.Connection,
    model: str,
    step: Step,
    cause: Cause,
    *,
    schedule: str | None = None,
    slot_ms: int | None = None,
) -> str | None:
    """A new run's identifier; None where the slot has its run already, or another request came first."""
    run_id = uuid.uuid4().hex
    model = step.model or model
    values = {
        "id": run_id,
        "schedule": schedule,
        "logical_time_ms": cause.now_ms if slot_ms is None else slot_ms,
        "model": model,
        "trigger": cause.trigger,
        "reason": cause.reason,
        "seed": step.options.get(SEED_OPTION, stable_seed(model)),
        "state": (RunState.BLOCKED if step.needs else RunState.QUEUED).value,
        "created_at_ms": cause.now_ms,
        "step": step.name,
        "kind": step.kind.value,
        "lane": step.lane(model),
        "needs": list(step.needs),
        "options": msgspec.to_builtins(step.options),
        "priority": step.priority + _PRIORITIES.get(cause.trigger, 0),
        "cpus": step.resources.cpus,
        "gpus": step.resources.gpus,
        "timeout_s": step.timeout_s,
        "retries": step.retries,
        "backoff_s": step.backoff_s,
    }
    try:
        with connection.begin_nested():
            connection.execute(sa.insert(runs).values(values))
    except sa.exc.IntegrityError:
        return None  # the unique index has spoken
    return run_id


def stable_seed(model: str) -> int:
    """A model's seed: always the same, so that the same data give the same weights."""
    return int.from_bytes(hashlib.sha256(model.encode()).digest()[:4], "big") >> 1


def insert_graph(connection: sa.Connection, schedule: Schedule, slot_ms: int, cause: Cause) -> list[str]:
    """The runs of one slot, one a step; those that are there already stay. Returns the identifiers of the new ones."""
    made = [
        insert_run(connection, schedule.model, step, cause, schedule=schedule.name, slot_ms=slot_ms)
        for step in schedule.steps
    ]
    new = [run for run in made if run is not None]
    if new and len(new) < len(made):  # what they need may have ended long ago
        settle_graphs(connection, now_ms=cause.now_ms)
    return new


def settle_graphs(connection: sa.Connection, *, now_ms: int) -> list[str]:
    """Let go on what waits for nothing any more; returns the identifiers of runs that were queued or skipped.

    It looks at what is committed and may be done by several servers at once, again and again: whoever ends the last
    run that a step needs sees all of them, and should its server be killed before it gets here, another's tick comes.
    """
    blocked = runs.alias()
    waits = sa.exists().where(
        blocked.c.schedule == runs.c.schedule,
        blocked.c.logical_time_ms == runs.c.logical_time_ms,
        blocked.c.state == RunState.BLOCKED.value,
    )
    columns = (runs.c.id, runs.c.schedule, runs.c.logical_time_ms, runs.c.step, runs.c.state, runs.c.needs)
    graphs: dict[tuple[str, int], list[Any]] = {}
    for row in connection.execute(sa.select(*columns).where(waits)):
        graphs.setdefault((row.schedule, row.logical_time_ms), []).append(row)
    changed: list[str] = []
    for rows in graphs.values():
        ids = {row.step: row.id for row in rows}
        for step, (state, reason) in graph.settle({row.step: (RunState(row.state), row.needs) for row in rows}).items():
            values: dict[str, Any] = {"state": state.value}
            if state is RunState.SKIPPED:
                values |= {"ended_at_ms": now_ms, "reasons": [reason]}
            still = sa.and_(runs.c.id == ids[step], runs.c.state == RunState.BLOCKED.value)
            if connection.execute(sa.update(runs).where(still).values(values)).rowcount:
                changed.append(ids[step])
    return changed


def active(connection: sa.Connection, lane: str) -> str | None:
    """The run of a lane that is under way, or waits and is not there to make up for the past."""
    waits = sa.and_(runs.c.state == RunState.QUEUED.value, runs.c.trigger != BACKFILL)
    which = sa.or_(runs.c.state == RunState.RUNNING.value, waits)
    query = sa.select(runs.c.id).where(runs.c.lane == lane, which)
    return connection.execute(query.order_by(runs.c.state.desc(), runs.c.created_at_ms).limit(1)).scalar()


def cooling(connection: sa.Connection, model: str, *, now_ms: int, cool_down_s: float) -> bool:
    """Whether the model's last training ended so lately that none begins by itself."""
    trained = sa.and_(runs.c.model == model, runs.c.kind == RunKind.TRAIN.value)
    last = connection.execute(
        sa.select(sa.func.max(runs.c.ended_at_ms)).where(trained, runs.c.state != RunState.SKIPPED.value)
    ).scalar()
    return last is not None and now_ms - last < cool_down_s * 1000
