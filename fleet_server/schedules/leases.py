"""Runs under leases: claiming, renewing, expiring, ending. Every function works inside the caller's transaction.

A claim raises the run's fencing token; whoever reports with an older one has lost the run, however slowly it noticed.
SQLite takes the one write lock first (``BEGIN IMMEDIATE``); PostgreSQL locks rows, and skips those another has locked.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import sqlalchemy as sa

from edge_agent.contract.runs import RunProgress, RunResult, RunState
from fleet_server.errors import Conflict, NotFound
from fleet_server.schedules.tables import runs

ENDED = (RunState.RELEASED, RunState.REFUSED, RunState.UNCHANGED, RunState.FAILED)


class LeaseLost(Conflict):
    """The run is no longer this worker's: its lease ran out, or it has ended. Stop, and claim anew."""


def expire(connection: sa.Connection, *, now_ms: int, max_attempts: int) -> list[str]:
    """Queue again the runs whose lease ran out, or give them up after ``max_attempts``; returns their identifiers."""
    expired = connection.execute(
        sa.select(runs.c.id, runs.c.attempts, runs.c.worker, runs.c.stage)
        .where(runs.c.state == RunState.RUNNING.value, runs.c.lease_until_ms < now_ms)
        .with_for_update(skip_locked=True)
    ).all()
    for run in expired:
        lost = f"worker {run.worker} was not heard of any more (stage '{run.stage or 'claimed'}')"
        values: dict[str, Any] = {"fence": runs.c.fence + 1, "lease_until_ms": None}
        if run.attempts >= max_attempts:
            reason = f"{lost}; given up after {run.attempts} attempts"
            values |= {"state": RunState.FAILED.value, "ended_at_ms": now_ms, "reasons": [reason]}
        else:
            values |= {"state": RunState.QUEUED.value, "message": f"{lost}; queued again", "fraction": 0.0}
        connection.execute(sa.update(runs).where(runs.c.id == run.id).values(values))
    return [run.id for run in expired]


def claim(
    connection: sa.Connection, *, worker: str, models: Collection[str], now_ms: int, lease_ms: int
) -> sa.RowMapping | None:
    """The oldest waiting run of ``models`` (empty: of any) of which no other run is under way, now ``worker``'s.

    Raises:
        sqlalchemy.exc.IntegrityError: Another server claimed a run of the same model at the same time.
    """
    other = runs.alias()
    busy = sa.exists().where(other.c.model == runs.c.model, other.c.state == RunState.RUNNING.value)
    waiting = sa.select(runs.c.id).where(runs.c.state == RunState.QUEUED.value, ~busy)
    if models:
        waiting = waiting.where(runs.c.model.in_(list(models)))
    ordered = waiting.order_by(runs.c.created_at_ms, runs.c.logical_time_ms, runs.c.id).limit(1)
    run_id = connection.execute(ordered.with_for_update(skip_locked=True, of=runs)).scalar()
    if run_id is None:
        return None
    values = {
        "state": RunState.RUNNING.value,
        "worker": worker,
        "lease_until_ms": now_ms + lease_ms,
        "started_at_ms": now_ms,
        "fence": runs.c.fence + 1,
        "attempts": runs.c.attempts + 1,
        "stage": "claimed",
        "message": "",
        "fraction": 0.0,
    }
    connection.execute(sa.update(runs).where(runs.c.id == run_id).values(values))
    return find(connection, run_id)


def find(connection: sa.Connection, run_id: str) -> sa.RowMapping:
    """The run's row.

    Raises:
        NotFound: There is none.
    """
    run = connection.execute(sa.select(runs).where(runs.c.id == run_id)).mappings().one_or_none()
    if run is None:
        raise NotFound(f"run {run_id!r} does not exist; see GET /api/v1/runs")
    return run


def renew(connection: sa.Connection, run_id: str, progress: RunProgress, *, now_ms: int, lease_ms: int) -> None:
    """Write down the progress and renew the lease.

    Raises:
        NotFound: No such run.
        LeaseLost: It is not the reporter's any more.
    """
    values = {
        "stage": progress.stage,
        "fraction": min(1.0, max(0.0, progress.fraction)),
        "message": progress.message,
        "lease_until_ms": now_ms + lease_ms,
    }
    _report(connection, run_id, progress.fence, values)


def end(connection: sa.Connection, run_id: str, result: RunResult, *, now_ms: int) -> bool:
    """Write down how the run ended; False where exactly this was reported before (the worker missed the answer).

    Raises:
        NotFound: No such run.
        LeaseLost: It is not the reporter's any more.
        Conflict: The result is no end, or a release without a package.
    """
    if result.state not in ENDED:
        known = [state.value for state in ENDED]
        raise Conflict(f"run {run_id}: {result.state.value} is no result; use one of {known}")
    if result.state is RunState.RELEASED and not (result.package and result.version):
        raise Conflict(f"run {run_id}: a release names its package digest and its version")
    run = find(connection, run_id)
    if (run["state"], run["fence"], run["package"]) == (result.state.value, result.fence, result.package):
        return False
    values = {
        "state": result.state.value,
        "ended_at_ms": now_ms,
        "lease_until_ms": None,
        "fraction": 1.0,
        "reasons": list(result.reasons),
        "evaluation": result.evaluation,
        "package": result.package,
        "version": result.version,
    }
    _report(connection, run_id, result.fence, values)
    return True


def cancel(connection: sa.Connection, run_id: str, reason: str, *, now_ms: int) -> None:
    """End a run that waits or is under way; whoever works on it has lost it.

    Raises:
        NotFound: No such run.
        Conflict: It has ended already.
    """
    values = {
        "state": RunState.FAILED.value,
        "ended_at_ms": now_ms,
        "lease_until_ms": None,
        "reasons": [f"cancelled: {reason}"],
    }
    active = runs.c.state.in_([RunState.QUEUED.value, RunState.RUNNING.value])
    if not connection.execute(sa.update(runs).where(runs.c.id == run_id, active).values(values)).rowcount:
        raise Conflict(f"run {run_id} is {find(connection, run_id)['state']}: there is nothing to cancel")


def _report(connection: sa.Connection, run_id: str, fence: int, values: dict[str, Any]) -> None:
    held = sa.and_(runs.c.id == run_id, runs.c.fence == fence, runs.c.state == RunState.RUNNING.value)
    if connection.execute(sa.update(runs).where(held).values(values)).rowcount:
        return
    run = find(connection, run_id)
    if run["fence"] != fence:
        raise LeaseLost(
            f"run {run_id}: the lease was lost (fence {fence}, the newest is {run['fence']}); stop this run"
        )
    why = f" ({'; '.join(run['reasons'])})" if run["reasons"] else ""
    raise LeaseLost(f"run {run_id} is {run['state']}, not running{why}; stop this run")
