"""Runs under leases: claiming, renewing, expiring, ending. Every function works inside the caller's transaction.

A claim raises the run's fencing token; whoever reports with an older one has lost the run, however slowly it noticed.
SQLite takes the one write lock first (``BEGIN IMMEDIATE``); PostgreSQL locks rows, and skips those another has locked.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import msgspec
import sqlalchemy as sa

from edge_agent.contract.runs import RunKind, RunProgress, RunResult, RunState
from fleet_server.errors import Conflict, NotFound
from fleet_server.schedules.graph import RESULTS, Step
from fleet_server.schedules.tables import runs

# Of what a worker says of a run; its log, which is longer, is bounded where it is kept.
_MOST_TEXT, _MOST_METRICS, _MOST_METRIC_NAME = 2_000, 64, 100
# Runs that are named where a beginning is that of several.
_MOST_ALIKE = 5
_FREE = {"lease_until_ms": None, "state": RunState.QUEUED.value, "fraction": 0.0}


class LeaseLost(Conflict):
    """The run is no longer this worker's: its lease ran out, or it has ended. Stop, and claim anew."""


class Claimant(msgspec.Struct, frozen=True, kw_only=True):
    """A worker that is free.

    Args:
        models: Those that it can train; empty: any. A batch needs no recipe.
        kinds: Of runs that it can carry out.
        cpus, gpus: What it has free; None: it does not count them.
        holding: Runs that it works on; None: it does not tell. What else is under its name, it has lost.
    """

    worker: str
    models: tuple[str, ...] = ()
    kinds: tuple[RunKind, ...] = (RunKind.TRAIN,)
    cpus: float | None = None
    gpus: int | None = None
    holding: tuple[str, ...] | None = None

    def claimable(self, now_ms: int) -> sa.ColumnElement[bool]:
        """The condition on runs that it could carry out now."""
        conditions: list[sa.ColumnElement[bool]] = [
            runs.c.state == RunState.QUEUED.value,
            runs.c.kind.in_([kind.value for kind in self.kinds]),
            sa.or_(runs.c.not_before_ms.is_(None), runs.c.not_before_ms <= now_ms),
        ]
        if self.models:
            conditions.append(sa.or_(runs.c.kind == RunKind.BATCH.value, runs.c.model.in_(self.models)))
        if self.cpus is not None:
            conditions.append(runs.c.cpus <= self.cpus)
        if self.gpus is not None:
            conditions.append(runs.c.gpus <= self.gpus)
        return sa.and_(*conditions)


def expire(connection: sa.Connection, *, now_ms: int, max_attempts: int) -> list[str]:
    """Queue again the runs whose lease ran out, or give them up after ``max_attempts``; returns their identifiers."""
    ran_out = runs.c.lease_until_ms < now_ms
    return _take_back(connection, ran_out, "was not heard of any more", now_ms=now_ms, max_attempts=max_attempts)


def take_back(connection: sa.Connection, claimant: Claimant, *, now_ms: int, max_attempts: int) -> list[str]:
    """Queue again what is under a worker's name though it does not hold it: it has begun anew since."""
    if claimant.holding is None:
        return []
    lost = sa.and_(runs.c.worker == claimant.worker, runs.c.id.not_in(claimant.holding))
    return _take_back(connection, lost, "has begun anew", now_ms=now_ms, max_attempts=max_attempts)


def _take_back(
    connection: sa.Connection, which: sa.ColumnElement[bool], how: str, *, now_ms: int, max_attempts: int
) -> list[str]:
    columns = (runs.c.id, runs.c.attempts, runs.c.failures, runs.c.worker, runs.c.stage)
    found = connection.execute(
        sa.select(*columns).where(runs.c.state == RunState.RUNNING.value, which).with_for_update(skip_locked=True)
    ).all()
    for run in found:
        lost = f"worker {run.worker} {how} (stage '{run.stage or 'claimed'}')"
        values: dict[str, Any] = {"fence": runs.c.fence + 1, "lease_until_ms": None}
        if run.attempts - run.failures >= max_attempts:
            reason = f"{lost}; given up after {run.attempts} attempts"
            values |= {"state": RunState.FAILED.value, "ended_at_ms": now_ms, "reasons": [reason]}
        else:
            values |= _FREE | {"message": f"{lost}; queued again"}
        connection.execute(sa.update(runs).where(runs.c.id == run.id).values(values))
    return [run.id for run in found]


def claim(
    connection: sa.Connection, claimant: Claimant, *, models: Collection[str], now_ms: int, lease_ms: int
) -> sa.RowMapping | None:
    """The waiting run of the highest priority, of these the oldest, in whose lane none is under way; now the worker's.

    Args:
        models: Those that the run may be of.
    Raises:
        sqlalchemy.exc.IntegrityError: Another server claimed a run of the same lane at the same time.
    """
    other = runs.alias()
    busy = sa.exists().where(other.c.lane == runs.c.lane, other.c.state == RunState.RUNNING.value)
    waiting = sa.select(runs.c.id).where(claimant.claimable(now_ms), ~busy, runs.c.model.in_(list(models)))
    order = (runs.c.priority.desc(), runs.c.created_at_ms, runs.c.logical_time_ms, runs.c.id)
    run_id = connection.execute(waiting.order_by(*order).limit(1).with_for_update(skip_locked=True, of=runs)).scalar()
    if run_id is None:
        return None
    values = {
        "state": RunState.RUNNING.value,
        "worker": claimant.worker,
        "lease_until_ms": now_ms + lease_ms,
        "started_at_ms": now_ms,
        "not_before_ms": None,
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
        raise NotFound(f"run {run_id!r} does not exist; `shoal runs list` (GET /api/v1/runs) lists them")
    return run


def identify(connection: sa.Connection, text: str) -> str:
    """The identifier of the one run that is named so, or whose identifier alone begins so.

    Raises:
        NotFound: There is none.
        Conflict: There are several.
    """
    alike = sa.select(runs.c.id).where(runs.c.id.startswith(text, autoescape=True)).order_by(runs.c.id)
    found = list(connection.execute(alike.limit(_MOST_ALIKE + 1)).scalars())
    if text in found or not found:
        return str(find(connection, text)["id"])
    if len(found) > 1:
        more = " and more" if len(found) > _MOST_ALIKE else ""
        raise Conflict(f"several runs begin with {text!r}: {', '.join(found[:_MOST_ALIKE])}{more}; write more of it")
    return str(found[0])


def renew(connection: sa.Connection, run_id: str, progress: RunProgress, *, now_ms: int, lease_ms: int) -> None:
    """Write down the progress and renew the lease.

    Raises:
        NotFound: No such run.
        LeaseLost: It is not the reporter's any more.
    """
    values: dict[str, Any] = {
        "stage": _text(progress.stage),
        "fraction": min(1.0, max(0.0, progress.fraction)),
        "message": _text(progress.message),
        "lease_until_ms": now_ms + lease_ms,
    }
    # JSON has no NaN.
    finite = {
        _text(name)[:_MOST_METRIC_NAME]: value for name, value in progress.metrics.items() if math.isfinite(value)
    }
    if finite:
        known = {name: value for name, value in find(connection, run_id)["metrics"].items() if name not in finite}
        values["metrics"] = dict([*known.items(), *finite.items()][-_MOST_METRICS:])  # the newest stay
    _report(connection, run_id, progress.fence, values)


def hand_back(connection: sa.Connection, run_id: str, fence: int, reason: str) -> None:
    """Queue again a run whose worker stops: another goes on with it at once, and it counts as no attempt.

    Raises:
        NotFound: No such run.
        LeaseLost: It is not the reporter's any more.
    """
    attempts = sa.case((runs.c.attempts > 0, runs.c.attempts - 1), else_=0)
    _report(connection, run_id, fence, _FREE | {"attempts": attempts, "message": _text(f"{reason}; queued again")})


def end(connection: sa.Connection, run_id: str, result: RunResult, *, now_ms: int) -> bool:
    """Write down how the run ended; False where exactly this was reported before (the worker missed the answer).

    A failure that another try may mend is tried again, while retries are left.

    Raises:
        NotFound: No such run.
        LeaseLost: It is not the reporter's any more.
        Conflict: The result is no end, or a release without a package.
    """
    if result.state not in RESULTS:
        known = sorted(state.value for state in RESULTS)
        raise Conflict(f"run {run_id}: {result.state.value} is no result; use one of {known}")
    if result.state is RunState.RELEASED and not (result.package and result.version):
        raise Conflict(f"run {run_id}: a release names its package digest and its version")
    run = find(connection, run_id)
    if (run["state"], run["fence"], run["package"]) == (result.state.value, result.fence, result.package):
        return False
    retried = result.state is RunState.FAILED and result.retry
    if retried and run["failures"] and (run["state"], run["fence"]) == (RunState.QUEUED.value, result.fence):
        return False
    if retried and run["failures"] < run["retries"]:
        _report(connection, run_id, result.fence, _again(run, result, now_ms))
        return True
    values = {
        "state": result.state.value,
        "ended_at_ms": now_ms,
        "lease_until_ms": None,
        "fraction": 1.0,
        "reasons": list(result.reasons),
        "evaluation": result.evaluation,
        "package": result.package,
        "version": result.version,
        "inputs": result.inputs,
    }
    _report(connection, run_id, result.fence, values)
    return True


def _again(run: sa.RowMapping, result: RunResult, now_ms: int) -> dict[str, Any]:
    step = Step(backoff_s=run["backoff_s"])
    pause_ms, failures = step.pause_ms(run["failures"]), run["failures"] + 1
    why = result.reasons[0] if result.reasons else "it failed"
    message = (
        f"try {failures} of {run['retries'] + 1} failed: {_text(why)[:500]}; tried again after {pause_ms / 1000:g} s"
    )
    return _FREE | {"failures": failures, "not_before_ms": now_ms + pause_ms, "message": message}


def cancel(connection: sa.Connection, run_id: str, reason: str, *, now_ms: int) -> None:
    """End a run that waits or is under way; whoever works on it has lost it.

    Raises:
        NotFound: No such run.
        Conflict: It has ended already.
    """
    values = {
        "state": RunState.CANCELLED.value,
        "ended_at_ms": now_ms,
        "lease_until_ms": None,
        "reasons": [f"cancelled: {reason}"],
    }
    active = runs.c.state.in_([state.value for state in (RunState.BLOCKED, RunState.QUEUED, RunState.RUNNING)])
    if not connection.execute(sa.update(runs).where(runs.c.id == run_id, active).values(values)).rowcount:
        raise Conflict(f"run {run_id} is {find(connection, run_id)['state']}: there is nothing to cancel")


def _text(said: str) -> str:
    """What a worker says, as a database takes it: PostgreSQL stores no NUL."""
    return said.replace("\0", "")[:_MOST_TEXT]


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
