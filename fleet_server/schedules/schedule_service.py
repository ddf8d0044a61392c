"""Schedules make runs: of slots as the calendar says, of new labels, of the past, or when a person says so."""

from __future__ import annotations

import builtins
import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any

import sqlalchemy as sa

from fleet_server.clock import Clock, now_ms
from fleet_server.database import Database
from fleet_server.errors import Conflict, NotFound
from fleet_server.schedules.creation import (
    BACKFILL,
    MANUAL,
    NEW_LABELS,
    SCHEDULE,
    Cause,
    cooling,
    insert_graph,
)
from fleet_server.schedules.graph import ENDED, TRAINING, ScheduleRefused, in_order, plain, steps_from
from fleet_server.schedules.service import RunSettings
from fleet_server.schedules.slots import (
    LABELS,
    CatchUp,
    Schedule,
    due_slots,
    next_slot,
    next_slots,
    rfc3339,
    slots_between,
    trigger_of,
)
from fleet_server.schedules.tables import runs, schedules
from fleet_server.upsert import upsert

_log = logging.getLogger(__name__)

# How many labels of a model there are.
CountLabels = Callable[[sa.Connection, str], int]
# Counting labels is the one thing here that grows with the fleet.
_LABELS_EVERY_MS = 10_000


class ScheduleService:
    """Schedules, and the runs that come of them.

    Args:
        count_labels: Those of a model that have come so far; None: there are none, and nothing waits for them.
    """

    def __init__(
        self,
        db: Database,
        *,
        count_labels: CountLabels | None = None,
        settings: RunSettings | None = None,
        clock: Clock = now_ms,
    ) -> None:
        self._db, self._clock = db, clock
        self._count_labels: CountLabels = count_labels or (lambda _connection, _model: 0)
        self._settings = settings or RunSettings()
        self._labels_looked_at_ms = 0
        self._wrong: dict[str, str] = {}  # schedules that make no sense any more, as was said of them in the log

    def put(self, schedule: Schedule) -> None:
        """Create or change a schedule. Slots before now are not caught up; a changed one keeps its cursor.

        Raises:
            ScheduleRefused: It will never come.
        """
        now = self._clock()
        if schedule.timed and next_slot(trigger_of(schedule, anchor_ms=now), now) is None:
            raise ScheduleRefused(
                f"schedule {schedule.name}: {schedule.expression!r} never comes: no year has such a day"
            )
        values = {field.name: getattr(schedule, field.name) for field in dataclasses.fields(schedule)}
        values |= {"catch_up": schedule.catch_up.value}
        values["steps"] = [] if schedule.steps == TRAINING else plain(schedule.steps)
        name = values.pop("name")
        with self._db.write() as connection:
            first = {"anchor_ms": now, "cursor_ms": now, "labels_seen": self._count_labels(connection, schedule.model)}
            upsert(connection, schedules, {"name": name}, values, first=first)

    def delete(self, name: str) -> None:
        """Delete a schedule; its runs stay.

        Raises:
            NotFound: There is none of that name.
        """
        with self._db.write() as connection:
            if not connection.execute(sa.delete(schedules).where(schedules.c.name == name)).rowcount:
                raise _unknown(name)

    def list(self) -> builtins.list[dict[str, Any]]:
        """All schedules by name, each with ``steps``, ``next_ms``, its next slot, and ``wrong``: why it has none."""
        with self._db.read() as connection:
            rows = connection.execute(sa.select(schedules).order_by(schedules.c.name)).mappings().all()
        return [_shown(row) for row in rows]

    def get(self, name: str) -> dict[str, Any]:
        """One schedule, as in the list.

        Raises:
            NotFound: There is none of that name.
        """
        with self._db.read() as connection:
            return _shown(_find(connection, name))

    # --- runs of it

    def tick(self) -> builtins.list[str]:
        """Make the runs of due slots and of new labels; returns their identifiers."""
        now = self._clock()
        made: list[str] = []
        with self._db.write() as connection:
            enabled = sa.select(schedules).where(schedules.c.enabled).with_for_update(skip_locked=True)
            rows = connection.execute(enabled.order_by(schedules.c.name)).mappings().all()
            there_are = [(row, schedule) for row in rows if (schedule := self._readable(row)) is not None]
            for row, schedule in there_are:
                if schedule.timed:
                    made += self._make_due(connection, schedule, row, now)
            if abs(now - self._labels_looked_at_ms) >= _LABELS_EVERY_MS:
                self._labels_looked_at_ms = now
                for row, schedule in there_are:
                    made += self._make_of_labels(connection, schedule, row, now)
        return made

    def start(self, name: str, reason: str, *, logical_time_ms: int | None = None) -> tuple[builtins.list[str], int]:
        """Make a schedule's runs now, whatever its calendar says.

        Returns:
            The identifiers of the runs, and their logical time.
        Raises:
            NotFound: There is none of that name.
            Conflict: That logical time has its runs already.
        """
        now = self._clock()
        slot = now // 1000 * 1000 if logical_time_ms is None else logical_time_ms
        with self._db.write() as connection:
            schedule = _schedule_of(_find(connection, name))
            made = insert_graph(connection, schedule, slot, Cause(trigger=MANUAL, reason=reason, now_ms=now))
        if not made:
            raise Conflict(
                f"schedule {name} has its runs of {rfc3339(slot)} already: shoal runs list --schedule {name}"
            )
        return made, slot

    def backfill(self, name: str, from_ms: int, until_ms: int, reason: str, *, dry_run: bool = False) -> dict[str, Any]:
        """Make the runs of past slots, both ends included; those that are there already stay as they are.

        Returns:
            ``slots``: logical times that get runs; ``there``: those that have them; ``runs``: identifiers of the new.
        Raises:
            NotFound: There is none of that name.
            ScheduleRefused: It has no slots then, too many, or its slots do not follow from the calendar.
        """
        now = self._clock()
        with self._db.write() as connection:
            row = _find(connection, name)
            schedule = _schedule_of(row)
            slots = self._past(schedule, row["anchor_ms"], from_ms, min(until_ms, now))
            lacking = _lacking(connection, schedule, slots)
            made: list[str] = []
            for slot in [] if dry_run else lacking:
                made += insert_graph(connection, schedule, slot, Cause(trigger=BACKFILL, reason=reason, now_ms=now))
        return {
            "slots": [rfc3339(slot) for slot in lacking],
            "there": [rfc3339(slot) for slot in slots if slot not in lacking],
            "runs": made,
        }

    def preview(
        self,
        name: str,
        *,
        count: int = 10,
        down_from_ms: int | None = None,
        down_until_ms: int | None = None,
        catch_up: CatchUp | None = None,
    ) -> dict[str, Any]:
        """What a schedule would do; nothing is made.

        Args:
            count: Of coming slots.
            down_from_ms, down_until_ms: A time in which no server would run: what it would miss, and what would be
                caught up at its end.
            catch_up: In place of the schedule's own.
        Raises:
            NotFound: There is none of that name.
            ScheduleRefused: Its slots do not follow from the calendar.
        """
        with self._db.read() as connection:
            row = _find(connection, name)
        schedule = _schedule_of(row)
        schedule = schedule if catch_up is None else dataclasses.replace(schedule, catch_up=catch_up)
        anchor, now = row["anchor_ms"], self._clock()
        after = now if down_until_ms is None else down_until_ms
        shown: dict[str, Any] = {
            "schedule": name,
            "catch_up": schedule.catch_up.value,
            "order": in_order(name, schedule.steps),
            "next": [rfc3339(at) for at in next_slots(schedule, anchor_ms=anchor, after_ms=after, count=count)],
        }
        if down_from_ms is None:
            return shown
        missed = self._past(schedule, anchor, down_from_ms, after)
        first = missed[0] if missed else after
        grace_ms = round(self._settings.grace_s * 1000)
        caught, _ = due_slots(
            schedule, anchor_ms=min(anchor, first), cursor_ms=first - 1, now_ms=after, grace_ms=grace_ms
        )
        return shown | {
            "missed": [rfc3339(at) for at in missed],
            "caught_up": [rfc3339(at) for at in missed if at in set(caught)],
        }

    # --- inside

    def _readable(self, row: sa.RowMapping) -> Schedule | None:
        """The schedule of a row; None of one that makes no sense any more: it must not keep the others from theirs."""
        try:
            schedule = _schedule_of(row)
        except ScheduleRefused as error:
            if self._wrong.get(row["name"]) != str(error):
                self._wrong[row["name"]] = str(error)
                _log.error("makes no runs until it is put right or deleted: %s", error)
            return None
        self._wrong.pop(row["name"], None)
        return schedule

    def _past(self, schedule: Schedule, anchor_ms: int, from_ms: int, until_ms: int) -> tuple[int, ...]:
        if not schedule.timed:
            raise ScheduleRefused(
                f"schedule {schedule.name}: it is of kind {schedule.kind!r}, and has no slots in time; "
                f"shoal schedules start {schedule.name} --logical-time TIME makes its runs"
            )
        if until_ms < from_ms:
            raise ScheduleRefused(
                f"schedule {schedule.name}: {rfc3339(from_ms)} lies behind {rfc3339(until_ms)}, the end or now"
            )
        return slots_between(schedule, anchor_ms=anchor_ms, from_ms=from_ms, until_ms=until_ms)

    def _make_due(
        self, connection: sa.Connection, schedule: Schedule, row: sa.RowMapping, now: int
    ) -> builtins.list[str]:
        slots, cursor = due_slots(
            schedule,
            anchor_ms=row["anchor_ms"],
            cursor_ms=row["cursor_ms"],
            now_ms=now,
            grace_ms=round(self._settings.grace_s * 1000),
        )
        reason = f"schedule {schedule.name} ({schedule.kind} {schedule.expression})"
        made = [
            run
            for slot in slots
            for run in insert_graph(connection, schedule, slot, Cause(trigger=SCHEDULE, reason=reason, now_ms=now))
        ]
        if cursor != row["cursor_ms"]:
            connection.execute(sa.update(schedules).where(schedules.c.name == schedule.name).values(cursor_ms=cursor))
        return made

    def _make_of_labels(
        self, connection: sa.Connection, schedule: Schedule, row: sa.RowMapping, now: int
    ) -> builtins.list[str]:
        if schedule.kind != LABELS:
            return []
        there = self._count_labels(connection, schedule.model)
        new = there - row["labels_seen"]
        cool_down_s = self._settings.cool_down_s
        if new < schedule.labels or _under_way(connection, schedule.name):
            return []
        if cooling(connection, schedule.model, now_ms=now, cool_down_s=cool_down_s):
            return []
        values = {"labels_seen": there, "cursor_ms": now}
        connection.execute(sa.update(schedules).where(schedules.c.name == schedule.name).values(values))
        reason = f"schedule {schedule.name}: {new} new labels of {schedule.model}"
        return insert_graph(
            connection, schedule, now // 1000 * 1000, Cause(trigger=NEW_LABELS, reason=reason, now_ms=now)
        )


def _lacking(connection: sa.Connection, schedule: Schedule, slots: Sequence[int]) -> list[int]:
    """Those slots that lack the run of any step."""
    columns = (runs.c.logical_time_ms, runs.c.step)
    query = sa.select(*columns).where(runs.c.schedule == schedule.name, runs.c.logical_time_ms.between(*_ends(slots)))
    there = {(row.logical_time_ms, row.step) for row in connection.execute(query)}
    return [slot for slot in slots if any((slot, step.name) not in there for step in schedule.steps)]


def _ends(slots: Sequence[int]) -> tuple[int, int]:
    return (slots[0], slots[-1]) if slots else (0, 0)


def _under_way(connection: sa.Connection, schedule: str) -> bool:
    ended = [state.value for state in ENDED]
    query = sa.select(runs.c.id).where(runs.c.schedule == schedule, runs.c.state.not_in(ended)).limit(1)
    return connection.execute(query).scalar() is not None


def _unknown(name: str) -> NotFound:
    return NotFound(
        f"schedule {name!r} does not exist; `shoal schedules list` (GET /api/v1/schedules) shows what there is"
    )


def _find(connection: sa.Connection, name: str) -> sa.RowMapping:
    row = connection.execute(sa.select(schedules).where(schedules.c.name == name)).mappings().one_or_none()
    if row is None:
        raise _unknown(name)
    return row


def _shown(row: sa.RowMapping) -> dict[str, Any]:
    try:
        schedule = _schedule_of(row)
    except ScheduleRefused as error:  # it was right when it was put: what it asks for has changed since
        return dict(row) | {"steps": [], "next_ms": None, "wrong": str(error)}
    following = None
    if row["enabled"] and schedule.timed:
        following = next_slot(trigger_of(schedule, anchor_ms=row["anchor_ms"]), row["cursor_ms"])
    return dict(row) | {"steps": plain(schedule.steps), "next_ms": following, "wrong": None}


def _schedule_of(row: sa.RowMapping) -> Schedule:
    return Schedule(
        name=row["name"],
        model=row["model"],
        kind=row["kind"],
        expression=row["expression"],
        timezone=row["timezone"],
        catch_up=CatchUp(row["catch_up"]),
        enabled=row["enabled"],
        steps=steps_from(f"schedule {row['name']}", row["steps"]) if row["steps"] else TRAINING,
    )
