from __future__ import annotations

import datetime as dt
import re

import pytest

from fleet_server.schedules.graph import ScheduleRefused
from fleet_server.schedules.slots import MOST_SLOTS, CatchUp, Schedule, due_slots, rfc3339

MINUTE = 60_000
HOUR = 60 * MINUTE


def at(text: str) -> int:
    return round(dt.datetime.fromisoformat(text).timestamp() * 1000)


def due(schedule: Schedule, cursor: str, now: str, *, anchor: str = "2026-01-01T00:00:00+00:00") -> list[str]:
    slots, _ = due_slots(schedule, anchor_ms=at(anchor), cursor_ms=at(cursor), now_ms=at(now), grace_ms=MINUTE)
    return [rfc3339(slot) for slot in slots]


def nightly(catch_up: CatchUp, timezone: str = "UTC") -> Schedule:
    return Schedule(
        name="nightly", model="digits", kind="cron", expression="0 3 * * *", catch_up=catch_up, timezone=timezone
    )


def test_a_slot_is_due_once_it_has_come_and_not_before() -> None:
    schedule = nightly(CatchUp.LATEST)
    assert due(schedule, "2026-03-01T00:00:00Z", "2026-03-01T02:59:59Z") == []
    assert due(schedule, "2026-03-01T00:00:00Z", "2026-03-01T03:00:00Z") == ["2026-03-01T03:00:00Z"]
    assert due(schedule, "2026-03-01T03:00:00Z", "2026-03-01T03:00:01Z") == []


@pytest.mark.parametrize(
    ("catch_up", "expected"),
    [
        (CatchUp.SKIP, []),
        (CatchUp.LATEST, ["2026-03-03T03:00:00Z"]),
        (CatchUp.ALL, ["2026-03-01T03:00:00Z", "2026-03-02T03:00:00Z", "2026-03-03T03:00:00Z"]),
    ],
)
def test_missed_nights_are_caught_up_as_the_schedule_says(catch_up: CatchUp, expected: list[str]) -> None:
    assert due(nightly(catch_up), "2026-02-28T12:00:00Z", "2026-03-03T12:00:00Z") == expected


def test_skip_still_runs_the_slot_that_is_on_time() -> None:
    assert due(nightly(CatchUp.SKIP), "2026-02-28T12:00:00Z", "2026-03-03T03:00:30Z") == ["2026-03-03T03:00:00Z"]


def test_cron_fields_are_read_in_the_schedules_time_zone_across_daylight_saving() -> None:
    schedule = nightly(CatchUp.ALL, "Europe/Berlin")
    assert due(schedule, "2026-03-28T00:00:00Z", "2026-03-30T12:00:00Z") == [
        "2026-03-28T02:00:00Z",
        "2026-03-29T01:00:00Z",  # summer time began in that night
        "2026-03-30T01:00:00Z",
    ]


def test_an_interval_is_counted_from_its_anchor_however_late_it_is_looked_at() -> None:
    schedule = Schedule(name="often", model="digits", kind="interval", expression="900", catch_up=CatchUp.ALL)
    found = due(schedule, "2026-01-01T00:07:00Z", "2026-01-01T00:31:00Z")
    assert found == ["2026-01-01T00:15:00Z", "2026-01-01T00:30:00Z"]


def test_a_year_of_missed_seconds_is_passed_over_at_once() -> None:
    schedule = Schedule(name="often", model="digits", kind="interval", expression="1", catch_up=CatchUp.LATEST)
    assert due(schedule, "2026-01-01T00:00:00Z", "2027-01-01T00:00:00Z") == ["2027-01-01T00:00:00Z"]


def test_a_rare_slot_long_ago_is_still_found() -> None:
    yearly = Schedule(name="yearly", model="digits", kind="cron", expression="0 0 2 1 *")
    assert due(yearly, "2026-01-01T00:00:00Z", "2026-12-31T00:00:00Z") == ["2026-01-02T00:00:00Z"]


def test_catching_all_up_goes_on_in_the_next_tick() -> None:
    schedule = Schedule(name="often", model="digits", kind="interval", expression="1", catch_up=CatchUp.ALL)
    first, cursor = due_slots(schedule, anchor_ms=0, cursor_ms=0, now_ms=1_500_000, grace_ms=MINUTE)
    assert len(first) == MOST_SLOTS
    then, cursor = due_slots(schedule, anchor_ms=0, cursor_ms=cursor, now_ms=1_500_000, grace_ms=MINUTE)
    assert [*first, *then] == [second * 1000 for second in range(1, 1501)]
    assert cursor == 1_500_000


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"kind": "cron", "expression": "0 3 * *"}, "cron expression '0 3 * *'"),
        ({"kind": "cron", "expression": "61 3 * * *"}, "write minute, hour"),
        ({"kind": "cron", "expression": "0 3 * * *", "timezone": "Mars/Olympus"}, "no time zone"),
        ({"kind": "interval", "expression": "soon"}, "no number of seconds"),
        ({"kind": "interval", "expression": "0"}, "not within 1 s"),
        ({"kind": "moon", "expression": "full"}, "neither 'cron' nor 'interval'"),
        ({"kind": "interval", "expression": "60", "model": "No Name"}, "model 'No Name'"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused_with_what_to_write(fields: dict[str, str], says: str) -> None:
    with pytest.raises(ScheduleRefused, match=re.escape(says)):
        Schedule(**{"name": "s", "model": "digits", **fields})  # type: ignore[arg-type]
