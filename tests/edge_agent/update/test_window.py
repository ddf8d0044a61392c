"""When updates may happen: windows by the clock on the wall, and waits that chance draws."""

from __future__ import annotations

import datetime as dt
import time
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.config import UpdateSettings
from edge_agent.update.outcome import NotYet
from edge_agent.update.window import Waits, Window

BERLIN = ZoneInfo("Europe/Berlin")
UTC = dt.UTC


def at(text: str, zone: dt.tzinfo = BERLIN, fold: int = 0) -> dt.datetime:
    return dt.datetime.fromisoformat(text).replace(tzinfo=zone, fold=fold)


def window(text: str, zone: dt.tzinfo = BERLIN) -> Window:
    found = Window.parse(text, zone)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("text", "now", "opens_in_s"),
    [
        ("22:00-05:00", "2025-01-10T21:59:00", 60),
        ("22:00-05:00", "2025-01-10T22:00:00", 0),
        ("22:00-05:00", "2025-01-11T04:59:59", 0),
        ("22:00-05:00", "2025-01-11T05:00:00", 17 * 3600),
        ("02:00-04:00", "2025-01-10T01:00:00", 3600),
        ("02:00-04:00", "2025-01-10T04:00:00", 22 * 3600),
        ("00:00-00:00", "2025-01-10T12:00:00", 0),
    ],
)
def test_a_window_is_open_from_its_beginning_up_to_its_end_over_midnight_too(
    text: str, now: str, opens_in_s: float
) -> None:
    assert window(text).opens_in_s(at(now)) == opens_in_s
    assert window(text).opens_in_s(at(now).astimezone(UTC)) == opens_in_s


@pytest.mark.parametrize(
    ("text", "now", "opens_in_s"),
    [
        # 30 March 2025 has no time between 02:00 and 03:00.
        ("02:30-05:00", "2025-03-30T01:59:00", 60),
        ("02:30-05:00", "2025-03-30T03:00:00", 0),
        ("02:30-05:00", "2025-03-30T05:00:00", 21.5 * 3600),
        ("02:30-03:15", "2025-03-30T01:00:00", 3600),
        ("02:30-03:15", "2025-03-30T03:14:59", 0),
        ("02:30-03:15", "2025-03-30T03:15:00", 23.25 * 3600),
        ("23:00-02:30", "2025-03-30T01:59:59", 0),
        ("23:00-02:30", "2025-03-30T03:00:00", 20 * 3600),
        ("22:00-05:00", "2025-03-30T04:59:00", 0),
        ("22:00-05:00", "2025-03-30T05:00:00", 17 * 3600),
        ("02:15-02:45", "2025-03-30T01:59:00", (23 * 60 + 16) * 60),
        ("02:15-02:45", "2025-03-30T03:20:00", (22 * 60 + 55) * 60),
    ],
)
def test_where_clocks_are_put_forward_over_a_window_it_opens_or_closes_with_them(
    text: str, now: str, opens_in_s: float
) -> None:
    assert window(text).opens_in_s(at(now)) == opens_in_s


@pytest.mark.parametrize(
    ("text", "now", "fold", "opens_in_s"),
    [
        # 26 October 2025 has each time from 02:00 to 03:00 twice.
        ("02:15-02:45", "2025-10-26T02:14:00", 0, 60),
        ("02:15-02:45", "2025-10-26T02:20:00", 0, 0),
        ("02:15-02:45", "2025-10-26T02:45:00", 0, 1800),
        ("02:15-02:45", "2025-10-26T02:20:00", 1, 0),
        ("02:15-02:45", "2025-10-26T02:45:00", 1, 23.5 * 3600),
        ("02:30-05:00", "2025-10-26T02:59:00", 0, 0),
        ("02:30-05:00", "2025-10-26T02:00:00", 1, 1800),
        ("02:30-05:00", "2025-10-26T05:00:00", 0, 21.5 * 3600),
        ("23:00-02:30", "2025-10-26T02:30:00", 0, 1800),
        ("23:00-02:30", "2025-10-26T02:29:59", 1, 0),
        ("23:00-02:30", "2025-10-26T02:30:00", 1, 20.5 * 3600),
    ],
)
def test_where_clocks_are_put_back_over_a_window_it_is_open_whenever_they_stand_in_it(
    text: str, now: str, fold: int, opens_in_s: float
) -> None:
    assert window(text).opens_in_s(at(now, fold=fold)) == opens_in_s


@pytest.mark.parametrize(
    ("zone", "text", "now", "opens_in_s"),
    [
        ("Australia/Lord_Howe", "02:15-03:00", "2025-10-05T01:59:00", 60),  # half an hour is left out
        ("Pacific/Apia", "00:30-01:00", "2011-12-29T12:00:00", 12.5 * 3600),  # a whole day is left out
        ("Pacific/Chatham", "03:00-03:40", "2025-09-28T02:44:00", (23 * 60 + 16) * 60),  # at 02:45
    ],
)
def test_clocks_that_are_put_forward_oddly_are_followed_too(zone: str, text: str, now: str, opens_in_s: float) -> None:
    place = ZoneInfo(zone)
    assert window(text, place).opens_in_s(at(now, place)) == opens_in_s


def test_the_machines_own_zone_is_followed_likewise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        own = Window.parse("02:30-03:15")
        assert own is not None
        assert own.opens_in_s(at("2025-03-30T01:00:00")) == 3600
        assert own.opens_in_s(at("2025-03-30T03:15:00")) == 23.25 * 3600
        assert own.opens_in_s(at("2025-10-26T02:30:00", fold=1)) == 0
    finally:
        monkeypatch.undo()
        time.tzset()


@given(
    st.integers(0, 3 * 366 * 24 * 60),
    st.times().map(lambda time: time.replace(second=0, microsecond=0)),
    st.times().map(lambda time: time.replace(second=0, microsecond=0)),
    st.sampled_from(["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata", "Pacific/Chatham"]),
)
def test_a_window_is_open_where_the_clock_stands_in_it_and_opens_as_soon_as_it_says(
    minutes: int, begin: dt.time, end: dt.time, zone: str
) -> None:
    one, instant = Window(begin, end, ZoneInfo(zone)), at("2024-01-01T00:00:00", UTC) + dt.timedelta(minutes=minutes)
    wall = instant.astimezone(ZoneInfo(zone)).time()
    inside = begin <= wall < end if begin < end else wall >= begin or wall < end
    wait_s = one.opens_in_s(instant)
    assert (wait_s == 0) == inside
    assert 0 <= wait_s <= 50 * 3600
    if wait_s:
        assert one.opens_in_s(instant + dt.timedelta(seconds=wait_s)) == 0
        assert one.opens_in_s(instant + dt.timedelta(seconds=wait_s - 1)) == 1


class Clock:
    """Of the test: moved by hand."""

    def __init__(self) -> None:
        self.utc, self.steady = at("2025-01-10T12:00:00", UTC), 100.0

    def waits(self, settings: UpdateSettings, draw: float = 0.5) -> Waits:
        return Waits(settings, utc_now=lambda: self.utc, monotonic=lambda: self.steady, draw=lambda: draw, zone=UTC)


def test_without_settings_nothing_waits() -> None:
    waits = Clock().waits(UpdateSettings())
    waits.announce({"digits": 1})
    waits.check()


def test_a_closed_window_says_when_it_opens() -> None:
    clock = Clock()
    waits = clock.waits(UpdateSettings(window="22:30-05:00"))
    with pytest.raises(NotYet, match=r"window 22:30-05:00 .*opens in 10 h 30 min") as caught:
        waits.check()
    assert caught.value.seconds == 10.5 * 3600
    clock.utc += dt.timedelta(hours=11)
    waits.check()


def test_chance_draws_one_wait_for_what_is_new_together_and_a_clock_that_jumps_does_not_change_it() -> None:
    clock = Clock()
    waits = clock.waits(UpdateSettings(jitter_s=60.0))
    waits.announce({"digits": 1, "scaler": 4})
    with pytest.raises(NotYet, match=r"waits 30 s of the 60 s"):
        waits.check()
    clock.utc += dt.timedelta(days=4000)
    clock.steady += 29
    waits.announce({"digits": 1})
    with pytest.raises(NotYet):
        waits.check()
    clock.steady += 1
    waits.check()
    waits.announce({"digits": 2})
    with pytest.raises(NotYet):
        waits.check()
