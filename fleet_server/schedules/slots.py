"""When a schedule is due: date arithmetic by APScheduler's triggers, nothing else of it. Pure.

APScheduler's own scheduler drops a run missed by a second and lets two processes run one slot twice; its triggers are
right about calendars, daylight saving included.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import zoneinfo

from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.interval import IntervalTrigger

from edge_agent.contract.errors import ManifestError
from edge_agent.contract.names import check_name
from fleet_server.schedules.graph import TRAINING, ScheduleRefused, Step, check_steps

MOST_SLOTS = 1_000  # caught up in one tick, or made by one backfill; the next tick goes on from there
_MINIMUM_INTERVAL_S = 1.0
_MOST_LABELS = 1_000_000_000
# Kinds whose slots follow from the calendar; the others come when labels or people do.
TIMED = ("cron", "interval")
LABELS = "labels"
MANUAL_ONLY = "manual"


class CatchUp(enum.StrEnum):
    """What becomes of slots that passed while no server ran."""

    SKIP = "skip"
    LATEST = "latest"  # only the newest of them runs
    ALL = "all"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """When what is to be done about a model.

    Args:
        kind: ``cron``, ``interval``, ``labels`` (whenever so many new ones have come), or ``manual``.
        expression: Five cron fields (``0 3 * * *``), the interval's seconds, or how many labels; empty for ``manual``.
        timezone: IANA name in which cron fields are read.
        steps: The graph; unless given, one step that trains.
    """

    name: str
    model: str
    kind: str
    expression: str
    timezone: str = "UTC"
    catch_up: CatchUp = CatchUp.LATEST
    enabled: bool = True
    steps: tuple[Step, ...] = TRAINING

    def __post_init__(self) -> None:
        try:
            check_name(self.name, "schedule")
            check_name(self.model, "model")
        except ManifestError as error:
            raise ScheduleRefused(str(error)) from error
        check_steps(f"schedule {self.name}", self.steps)
        if self.kind in TIMED:
            trigger_of(self, anchor_ms=0)
        elif self.kind == LABELS:
            _ = self.labels
        elif self.kind != MANUAL_ONLY:
            raise ScheduleRefused(
                f"schedule {self.name}: kind {self.kind!r} is neither 'cron' nor 'interval', nor 'labels' or 'manual'"
            )

    @property
    def timed(self) -> bool:
        """Whether its slots follow from the calendar."""
        return self.kind in TIMED

    @property
    def labels(self) -> int:
        """Of one that waits for labels: how many.

        Raises:
            ScheduleRefused: Its expression is no such number.
        """
        if self.expression.isdecimal() and 1 <= int(self.expression) <= _MOST_LABELS:
            return int(self.expression)
        raise ScheduleRefused(
            f"schedule {self.name}: {self.expression!r} is no number of new labels; write one like '500'"
        )


def trigger_of(schedule: Schedule, *, anchor_ms: int) -> BaseTrigger:
    """APScheduler's trigger of a schedule.

    Args:
        anchor_ms: Where an interval is counted from.
    Raises:
        ScheduleRefused: The kind, expression or time zone is wrong.
    """
    try:
        zone = zoneinfo.ZoneInfo(schedule.timezone)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError) as error:
        raise ScheduleRefused(
            f"schedule {schedule.name}: {schedule.timezone!r} is no time zone; use one like 'UTC' or 'Europe/Berlin'"
        ) from error
    if schedule.kind == "cron":
        try:
            return CronTrigger.from_crontab(schedule.expression, timezone=zone)
        except ValueError as error:
            raise ScheduleRefused(
                f"schedule {schedule.name}: cron expression {schedule.expression!r}: {error}; "
                "write minute, hour, day, month and weekday, like '0 3 * * *'"
            ) from error
    if schedule.kind != "interval":
        raise ScheduleRefused(f"schedule {schedule.name}: it is of kind {schedule.kind!r}, and has no slots in time")
    try:
        seconds = float(schedule.expression)
    except ValueError as error:
        wrong = f"schedule {schedule.name}: interval {schedule.expression!r} is no number of seconds"
        raise ScheduleRefused(wrong) from error
    if not _MINIMUM_INTERVAL_S <= seconds <= 366 * 86_400:
        raise ScheduleRefused(f"schedule {schedule.name}: an interval of {seconds:g} s is not within 1 s and 366 days")
    return IntervalTrigger(seconds=seconds, start_date=_moment(anchor_ms), timezone=dt.UTC)


def due_slots(
    schedule: Schedule, *, anchor_ms: int, cursor_ms: int, now_ms: int, grace_ms: int
) -> tuple[tuple[int, ...], int]:
    """The slots to run now, Unix milliseconds, ascending, and the new cursor.

    Args:
        cursor_ms: Slots up to here have been dealt with.
        grace_ms: How late a slot may be and still counts as on time: what ``skip`` does not skip.
    """
    trigger = trigger_of(schedule, anchor_ms=anchor_ms)
    if schedule.catch_up is CatchUp.ALL:
        slots: list[int] = []
        at = cursor_ms
        while (following := next_slot(trigger, at)) is not None and following <= now_ms:
            slots.append(following)
            at = following
            if len(slots) == MOST_SLOTS:
                return tuple(slots), at
        return tuple(slots), max(cursor_ms, now_ms)
    newest = _newest_slot(trigger, cursor_ms, now_ms)
    late = newest is not None and newest < now_ms - grace_ms
    if newest is None or (late and schedule.catch_up is CatchUp.SKIP):
        return (), max(cursor_ms, now_ms)
    return (newest,), max(cursor_ms, now_ms)


def slots_between(schedule: Schedule, *, anchor_ms: int, from_ms: int, until_ms: int) -> tuple[int, ...]:
    """All slots from a moment to another, both included, also those before the schedule was made.

    Raises:
        ScheduleRefused: It has no slots, or they are more than :data:`MOST_SLOTS`.
    """
    if schedule.kind == "interval":
        step_ms = round(float(schedule.expression) * 1000)
        anchor_ms -= max(0, -(-(anchor_ms - from_ms) // step_ms)) * step_ms  # the same beat, begun earlier
    trigger = trigger_of(schedule, anchor_ms=anchor_ms)
    found: list[int] = []
    at = from_ms - 1
    while (following := next_slot(trigger, at)) is not None and following <= until_ms:
        if len(found) == MOST_SLOTS:
            raise ScheduleRefused(
                f"schedule {schedule.name}: more than {MOST_SLOTS} slots from {rfc3339(from_ms)} to "
                f"{rfc3339(until_ms)}; ask for a part of that time"
            )
        found.append(following)
        at = following
    return tuple(found)


def next_slots(schedule: Schedule, *, anchor_ms: int, after_ms: int, count: int) -> tuple[int, ...]:
    """The next ``count`` slots after a moment, fewer where no more will come."""
    trigger = trigger_of(schedule, anchor_ms=anchor_ms)
    found: list[int] = []
    at: int | None = after_ms
    while len(found) < count and (at := next_slot(trigger, at or 0)) is not None:
        found.append(at)
    return tuple(found)


def moment_ms(text: str) -> int:
    """A moment that a person wrote, Unix milliseconds: RFC 3339, or a date; UTC where no zone stands with it.

    Raises:
        ScheduleRefused: It is none.
    """
    try:
        found = dt.datetime.fromisoformat(text)
        return round((found if found.tzinfo else found.replace(tzinfo=dt.UTC)).timestamp() * 1000)
    except (ValueError, OverflowError) as error:
        raise ScheduleRefused(f"{text!r} is no moment; write one like 2026-03-01 or 2026-03-01T03:00:00Z") from error


def _newest_slot(trigger: BaseTrigger, cursor_ms: int, now_ms: int) -> int | None:
    """The last slot in (cursor, now]; searched from the end, so that a long outage costs nothing."""
    reach_ms = 60_000
    while True:
        start = max(cursor_ms, now_ms - reach_ms)
        newest: int | None = None
        following = next_slot(trigger, start)
        while following is not None and following <= now_ms:
            newest = following
            following = next_slot(trigger, newest)
        if newest is not None or start == cursor_ms:
            return newest
        reach_ms *= 4


def next_slot(trigger: BaseTrigger, after_ms: int) -> int | None:
    """The first slot after a moment, Unix milliseconds; None where none will ever come."""
    # One microsecond later, with no previous slot: the trigger then gives the first slot at or after that moment.
    start = _moment(after_ms) + dt.timedelta(microseconds=1)
    found = trigger.get_next_fire_time(None, start)
    return None if found is None else round(found.timestamp() * 1000)


def rfc3339(at_ms: int) -> str:
    """Unix milliseconds as RFC 3339, UTC."""
    return _moment(at_ms).isoformat(timespec="seconds").replace("+00:00", "Z")


def _moment(at_ms: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(at_ms / 1000, tz=dt.UTC)
