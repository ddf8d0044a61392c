"""Numbers and points in time that applications write as text, and the one form in which models see them. Pure.

The same text gives the same form on every Python from 3.10 on. Names of months and days, in a pattern that has any, are
those of the process's locale: English where nobody has set one, as in the agent.
"""

from __future__ import annotations

import datetime as dt
import math
import re
from typing import TYPE_CHECKING, Protocol

from edge_agent.contract.constraint import DateFormat, NumberFormat

if TYPE_CHECKING:
    import zoneinfo

ISO_8601 = "iso8601"
# Longer than any number or date; what is longer is not even looked at.
_LONGEST = 128
_EXPONENT = "(?:[eE][+-]?[0-9]{1,4})?"
# RFC 3339, section 5.6, and what ISO 8601 allows to leave out. Python's own parser differs between 3.10 and 3.11.
_ISO = re.compile(
    r"(?P<date>[0-9]{4}-[0-9]{2}-[0-9]{2})"
    r"(?:[Tt ](?P<hour>[0-9]{2}):(?P<minute>[0-9]{2})"
    r"(?::(?P<second>[0-9]{2})(?:[.,](?P<fraction>[0-9]{1,9}))?)?"
    r"(?P<offset>[Zz]|[+-][0-9]{2}(?::?[0-9]{2})?)?)?"
)
_DIRECTIVE = re.compile("%(.?)", re.DOTALL)
# Those that mean the same on every platform, and names of days and months.
_DIRECTIVES = frozenset("YymdjHIMSfzpbBaA%")


class TextFormat(Protocol):
    """Reads what applications write."""

    def normalise(self, text: str) -> str:
        """The text in the form that the model sees; the text itself where it has that form already.

        Raises:
            ValueError: It does not say such a thing; the error's text goes on after the value.
        """


class NumberText:
    """Reads numbers. Grouping signs must stand between groups of three, so that 1.5 is never taken for 15."""

    def __init__(self, form: NumberFormat) -> None:
        self._decimal, self._grouping = form.decimal, form.grouping
        whole = "[0-9]+"
        if form.grouping is not None:
            whole = f"(?:[0-9]{{1,3}}(?:{re.escape(form.grouping)}[0-9]{{3}})+|[0-9]+)"
        self._pattern = re.compile(f"[+-]?{whole}(?:{re.escape(form.decimal)}[0-9]+)?{_EXPONENT}")
        self._example = f"1234{form.decimal}5"

    def normalise(self, text: str) -> str:
        """See :class:`TextFormat`: ``-1.234,50`` becomes ``-1234.50``."""
        if len(text) > _LONGEST or not self._pattern.fullmatch(text):
            raise ValueError(f"is no number of the form {self._example}")
        if self._grouping is not None:
            text = text.replace(self._grouping, "")
        plain = text.replace(self._decimal, ".").removeprefix("+")
        if not math.isfinite(float(plain)):
            raise ValueError("is larger than any number of 64 bits")
        return plain


class DateText:
    """Reads points in time.

    Raises:
        ValueError: On construction: the pattern cannot say a point in time, or nobody knows the zone.
    """

    def __init__(self, form: DateFormat) -> None:
        self._pattern = None if form.format == ISO_8601 else form.format
        self._zone = None if form.zone is None else _zone(form.zone)
        if self._pattern is not None:
            _check_pattern(self._pattern, has_zone=form.zone is not None)

    def normalise(self, text: str) -> str:
        """See :class:`TextFormat`: ``2026-03-29 03:30`` in ``Europe/Berlin`` becomes ``2026-03-29T01:30:00Z``."""
        if len(text) > _LONGEST:
            raise ValueError(f"is longer than the {_LONGEST} characters of any date")
        moment = _read_iso(text) if self._pattern is None else self._read_pattern(text, self._pattern)
        if moment.tzinfo is None:
            moment = self._placed(moment)
        try:
            moment = moment.astimezone(dt.timezone.utc)
        except OverflowError:
            raise ValueError("lies outside the years 1 to 9999 in UTC") from None
        precision = "microseconds" if moment.microsecond else "seconds"
        return moment.replace(tzinfo=None).isoformat(timespec=precision) + "Z"

    def _read_pattern(self, text: str, pattern: str) -> dt.datetime:
        try:
            return dt.datetime.strptime(text, pattern)  # noqa: DTZ007  # the zone is seen to by the caller
        except (ValueError, OverflowError):
            raise ValueError(f"is no date of the form {pattern}") from None

    def _placed(self, naive: dt.datetime) -> dt.datetime:
        """In the assumed zone; of an hour that comes twice, as clocks go back, the first."""
        if self._zone is None:
            raise ValueError("has no offset from UTC, and the contract assumes no time zone")
        moment = naive.replace(tzinfo=self._zone)
        try:
            back = moment.astimezone(dt.timezone.utc).astimezone(self._zone)
        except OverflowError:
            raise ValueError("lies outside the years 1 to 9999 in UTC") from None
        if back.replace(tzinfo=None) != naive:
            raise ValueError(f"does not exist in {self._zone.key}: the clocks were put forward over it")
        return moment


def _read_iso(text: str) -> dt.datetime:
    found = _ISO.fullmatch(text)
    if found is None:
        raise ValueError("is no date of the form 2026-03-29T01:30:00Z (ISO 8601)")
    parts = found.groupdict()
    try:
        day = dt.date.fromisoformat(parts["date"])
        clock = dt.time(
            int(parts["hour"] or 0),
            int(parts["minute"] or 0),
            int(parts["second"] or 0),
            int((parts["fraction"] or "").ljust(6, "0")[:6]),
            tzinfo=_offset(parts["offset"]),
        )
    except ValueError as error:
        raise ValueError(f"is no date: {error}") from None
    return dt.datetime.combine(day, clock)


def _offset(text: str | None) -> dt.timezone | None:
    if text is None:
        return None
    if text in "Zz":
        return dt.timezone.utc
    digits = text[1:].replace(":", "").ljust(4, "0")
    hours, minutes = int(digits[:2]), int(digits[2:])
    if minutes > 59:
        raise ValueError("minutes of the offset must be in 0..59")
    delta = dt.timedelta(hours=hours, minutes=minutes)
    return dt.timezone(-delta if text[0] == "-" else delta)


def _zone(key: str) -> zoneinfo.ZoneInfo:
    import zoneinfo  # late: few models read dates, and all devices start

    try:
        return zoneinfo.ZoneInfo(key)
    except (KeyError, ValueError, OSError):
        pass  # told below, and better
    try:
        zoneinfo.ZoneInfo("Etc/UTC")
    except (KeyError, ValueError, OSError):
        raise ValueError(
            f"time zone {key!r:.60} cannot be looked up: this machine has no time zone data; install the package "
            "'tzdata'"
        ) from None
    raise ValueError(
        f"nobody knows the time zone {key!r:.60}; write it as 'Europe/Berlin', or update the package 'tzdata' for "
        "newer ones"
    )


def _check_pattern(pattern: str, *, has_zone: bool) -> None:
    if len(pattern) > _LONGEST:
        raise ValueError(f"a pattern has at most {_LONGEST} characters")
    used = [letter for letter in _DIRECTIVE.findall(pattern) if letter != "%"]
    for letter in used:
        if letter not in _DIRECTIVES:
            raise ValueError(
                f"{pattern!r}: %{letter} means nothing here; known are iso8601 and %{' %'.join(sorted(_DIRECTIVES))}"
            )
        if used.count(letter) > 1:
            raise ValueError(f"{pattern!r}: %{letter} stands twice")
    have = set(used)
    if not have & set("Yy") or not ("j" in have or ("d" in have and have & set("mbB"))):
        raise ValueError(f"{pattern!r}: a date needs year (%Y), month (%m) and day (%d)")
    if ("I" in have) != ("p" in have):
        raise ValueError(f"{pattern!r}: hours up to 12 need both %I and %p; use %H for hours up to 24")
    if "z" not in have and not has_zone:
        raise ValueError(f"{pattern!r}: has no offset (%z): give the zone that the dates are meant in")
