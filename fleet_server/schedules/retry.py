"""A run that failed is taken up anew, and the steps skipped because of it. Works inside the caller's transaction."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from edge_agent.contract.runs import RunState
from fleet_server.errors import Conflict
from fleet_server.schedules.graph import FAILED
from fleet_server.schedules.tables import runs


def same_slot(run: Any) -> sa.ColumnElement[bool]:
    """The condition on the runs of a run's graph at its logical time."""
    return sa.and_(runs.c.schedule == run["schedule"], runs.c.logical_time_ms == run["logical_time_ms"])


def skipped_after(connection: sa.Connection, run: sa.RowMapping) -> list[str]:
    """The skipped steps of a graph that need this run's step, whether at first or second hand."""
    if run["schedule"] is None:
        return []
    skipped = sa.and_(same_slot(run), runs.c.state == RunState.SKIPPED.value, runs.c.id != run["id"])
    rows = connection.execute(sa.select(runs.c.id, runs.c.step, runs.c.needs).where(skipped)).all()
    reached, found = {run["step"]}, list[str]()
    for _ in rows:
        for row in rows:
            if row.step not in reached and reached & set(row.needs):
                reached.add(row.step)
                found.append(row.id)
    return found


def queue_anew(connection: sa.Connection, run: sa.RowMapping) -> None:
    """Let a run that failed wait again, as if it had never begun.

    Raises:
        Conflict: It is taken up already, by somebody else at the same moment.
        sqlalchemy.exc.IntegrityError: Another run of its kind waits or is under way.
    """
    values = {
        "state": (RunState.BLOCKED if run["needs"] else RunState.QUEUED).value,
        "ended_at_ms": None,
        "fence": run["fence"] + 1,  # whoever still works on it has lost it
        "attempts": 0,
        "failures": 0,
        "not_before_ms": None,
        "reasons": [],
        "samples_version": None,
        "labels_version": None,
        "message": "asked for again",
        "fraction": 0.0,
    }
    failed = runs.c.state.in_([state.value for state in FAILED])
    if not connection.execute(sa.update(runs).where(runs.c.id == run["id"], failed).values(values)).rowcount:
        raise Conflict(f"run {run['id']} was taken up already at this very moment")
