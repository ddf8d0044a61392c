from __future__ import annotations

import datetime as dt
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.contract.constraint import DateFormat, NumberFormat
from edge_agent.contract.text_formats import DateText, NumberText
from tests.edge_agent.contract.strategies import fast

GERMAN = NumberText(NumberFormat(decimal=",", grouping="."))


@pytest.mark.parametrize(
    ("sent", "seen"),
    [("0", "0"), ("+7", "7"), ("-1.234.567,89", "-1234567.89"), ("1234,5", "1234.5"), ("1,5e-3", "1.5e-3")],
)
def test_numbers_get_a_dot_and_lose_their_grouping(sent: str, seen: str) -> None:
    assert GERMAN.normalise(sent) == seen


@pytest.mark.parametrize(
    "sent", ["", " 1", "1.5", "1.23.456", "12.34,5", ",5", "5,", "--1", "nan", "inf", "0x10", "1_000", "\u0661", "1\n"]
)
def test_what_could_be_misread_is_no_number(sent: str) -> None:
    with pytest.raises(ValueError, match="is no number of the form 1234,5"):
        GERMAN.normalise(sent)


def test_numbers_that_are_too_large_or_too_long_are_refused() -> None:
    with pytest.raises(ValueError, match="larger than any number"):
        GERMAN.normalise("1e999")
    with pytest.raises(ValueError, match="is no number"):
        GERMAN.normalise("1" * 1_000_000)


def test_a_thin_space_or_an_apostrophe_groups_where_the_format_says_so() -> None:
    assert NumberText(NumberFormat(grouping="\u202f")).normalise("12\u202f345.5") == "12345.5"
    assert NumberText(NumberFormat(grouping="'")).normalise("12'345") == "12345"


@fast
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_number_written_in_german_is_the_same_number(number: float) -> None:
    whole = f"{number:,.6f}" if abs(number) < 1e15 else repr(number)
    assert float(GERMAN.normalise(whole.translate(str.maketrans(",.", ".,")))) == float(whole.replace(",", ""))


@pytest.mark.parametrize(
    ("sent", "seen"),
    [
        ("2026-03-29T01:30:00Z", "2026-03-29T01:30:00Z"),
        ("2026-03-29t01:30:00z", "2026-03-29T01:30:00Z"),
        ("2026-03-29 01:30:00+02:00", "2026-03-28T23:30:00Z"),
        ("2026-03-29T01:30-0330", "2026-03-29T05:00:00Z"),
        ("2026-03-29T01:30:00.25+01", "2026-03-29T00:30:00.250000Z"),
        ("2026-03-29T01:30:00,123456789Z", "2026-03-29T01:30:00.123456Z"),
    ],
)
def test_iso_dates_with_an_offset_become_utc(sent: str, seen: str) -> None:
    assert DateText(DateFormat()).normalise(sent) == seen


def test_dates_without_an_offset_are_read_in_the_zone_or_refused() -> None:
    berlin = DateText(DateFormat(zone="Europe/Berlin"))
    assert berlin.normalise("2026-07-01") == "2026-06-30T22:00:00Z"
    assert berlin.normalise("2026-07-01T12:00:00Z") == "2026-07-01T12:00:00Z"
    with pytest.raises(ValueError, match="has no offset from UTC"):
        DateText(DateFormat()).normalise("2026-07-01T12:00:00")


def test_of_an_hour_that_comes_twice_the_first_is_meant_and_one_that_never_comes_is_refused() -> None:
    berlin = DateText(DateFormat(zone="Europe/Berlin"))
    assert berlin.normalise("2026-10-25T02:30") == "2026-10-25T00:30:00Z"
    with pytest.raises(ValueError, match="does not exist in Europe/Berlin"):
        berlin.normalise("2026-03-29T02:30")


@pytest.mark.parametrize(
    "sent",
    [
        "", "now", "2026-02-30T00:00:00Z", "2026-03-29T24:00:00Z", "2026-03-29T00:00:60Z", "26-03-29T00:00:00Z",
        "2026-03-29T00:00:00+24:00", "2026-03-29T00:00:00+01:60", "2026-03-29T00:00:00 Z", "2026-03-29T00:00:00Z\n",
        "0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59-01:00", "2" * 1_000_000,
    ],
)  # fmt: skip
def test_what_is_no_date_is_refused(sent: str) -> None:
    with pytest.raises(ValueError, match=r"is no date|lies outside the years|is longer than"):
        DateText(DateFormat()).normalise(sent)


def test_patterns_are_read_as_strptime_does() -> None:
    us = DateText(DateFormat(format="%m/%d/%Y %I:%M %p", zone="America/New_York"))
    assert us.normalise("07/04/2026 01:05 PM") == "2026-07-04T17:05:00Z"
    with pytest.raises(ValueError, match="is no date of the form %m/%d/%Y"):
        us.normalise("2026-07-04")
    offset = DateText(DateFormat(format="%Y%m%dT%H%M%S%z"))
    assert offset.normalise("20260704T130500+0200") == "2026-07-04T11:05:00Z"
    assert DateText(DateFormat(format="%Y-%j", zone="UTC")).normalise("2026-032") == "2026-02-01T00:00:00Z"


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("%d.%m.", "needs year"),
        ("%Y-%m", "needs year"),
        ("rfc3339", "needs year"),
        ("%Y-%m-%d %Z", "%Z means nothing here"),
        ("%c", "%c means nothing here"),
        ("%Y-%m-%d %", "% means nothing here"),
        ("%Y-%m-%d %d", "%d stands twice"),
        ("%Y-%m-%d %I", "need both %I and %p"),
        ("%Y-%m-%d", "give the zone"),
        ("%Y-%m-%d%%" + "x" * 200, "at most 128 characters"),
    ],
)
def test_a_pattern_that_cannot_say_a_point_in_time_is_refused(pattern: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        DateText(DateFormat(format=pattern))


@pytest.mark.parametrize("zone", ["Mars/Olympus", "", "../../etc/passwd", "/etc/passwd", "Europe", "a\x00b", "x" * 999])
def test_a_zone_that_nobody_knows_is_refused(zone: str) -> None:
    with pytest.raises(ValueError, match="nobody knows the time zone"):
        DateText(DateFormat(zone=zone))


def test_a_machine_without_zone_data_is_told_which_package_brings_them(tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['tzdata'] = None\n"
        "from edge_agent.contract.constraint import DateFormat\n"
        "from edge_agent.contract.text_formats import DateText\n"
        "DateText(DateFormat(zone='Europe/Vienna'))\n"
    )
    environment = {**os.environ, "PYTHONTZPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == (
        "ValueError: time zone 'Europe/Vienna' cannot be looked up: this machine has no time zone data; "
        "install the package 'tzdata'"
    )


@fast
@given(st.datetimes(timezones=st.timezones(), min_value=dt.datetime(1900, 1, 2)))  # noqa: DTZ001
def test_every_moment_in_every_zone_is_the_same_moment(moment: dt.datetime) -> None:
    utc = moment.astimezone(dt.timezone.utc)  # noqa: UP017 - Python 3.10 runs this too
    if (moment.utcoffset() or dt.timedelta()).seconds % 60 or utc.year > 9998:
        return  # ISO 8601 has no offsets in seconds
    seen = DateText(DateFormat()).normalise(moment.isoformat())
    assert dt.datetime.fromisoformat(seen.replace("Z", "+00:00")) == utc  # noqa: FURB162 - Python 3.10
