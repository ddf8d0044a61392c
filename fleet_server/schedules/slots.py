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

from edge_agent.contract.errors import CallerError, ManifestError
from edge_agent.contract.names import check_name

MOST_SLOTS = 1_000  # caught up in one tick; the next tick goes on from there
_MINIMUM_INTERVAL_S = 1.0


class ScheduleRefused(CallerError):
    """The schedule makes no sense; the text says what and how to write it."""


class CatchUp(enum.StrEnum):
    """What becomes of slots that passed while no server ran."""

    SKIP = "skip"
    LATEST = "latest"  # only the newest of them runs
    ALL = "all"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """When a model is to be trained.

    Args:
        kind: ``cron`` or ``interval``.
        expression: Five cron fields (``0 3 * * *``), or the interval's seconds.
        timezone: IANA name in which cron fields are read.
    """

    name: str
    model: str
    kind: str
    expression: str
    timezone: str = "UTC"
    catch_up: CatchUp = CatchUp.LATEST
    enabled: bool = True

    def __post_init__(self) -> None:
        try:
            check_name(self.name, "schedule")
            check_name(self.model, "model")
        except ManifestError as error:
            raise ScheduleRefused(str(error)) from error
        trigger_of(self, anchor_ms=0)


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
        raise ScheduleRefused(f"schedule {schedule.name}: kind {schedule.kind!r} is neither 'cron' nor 'interval'")
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
