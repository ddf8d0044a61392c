"""How the console writes numbers and times; the templates' filters."""

from __future__ import annotations

import datetime as dt

NOTHING = "\N{EN DASH}"


def percent(share: float | None) -> str:
    """0.9312 as ``93.1 %``."""
    return NOTHING if share is None else f"{share * 100:.1f}\N{NO-BREAK SPACE}%"


def digest(text: str) -> str:
    """The first digits of a digest, enough to tell packages of one fleet apart."""
    return text[:8] or NOTHING


def rate(per_s: float | None) -> str:
    """Requests per second: ``0.4``, ``12.5``, ``1,240``."""
    if per_s is None:
        return NOTHING
    return f"{per_s:.1f}" if per_s < 100 else f"{per_s:,.0f}"


def milliseconds(value: float | None) -> str:
    """A latency: ``0.42``, ``3.1``, ``240``."""
    if value is None:
        return NOTHING
    return f"{value:.2f}" if value < 1 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def ago(at_ms: int | None, now_ms: int) -> str:
    """An age in its largest unit: ``now``, ``12 s``, ``5 min``, ``3 h``, ``9 d``; ``never``."""
    if at_ms is None:
        return "never"
    seconds = max(0, now_ms - at_ms) // 1000
    if seconds < 5:
        return "now"
    for length, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= length:
            return f"{seconds // length}\N{NO-BREAK SPACE}{unit}"
    return f"{seconds}\N{NO-BREAK SPACE}s"


def utc(at_ms: int) -> str:
    """A time for people, in UTC: ``2031-05-04 13:37:00 UTC``."""
    return f"{_at(at_ms):%Y-%m-%d %H:%M:%S} UTC"


def clock(at_ms: int) -> str:
    """A time of day in UTC; the page's script rewrites it in the viewer's zone."""
    return f"{_at(at_ms):%H:%M:%S}"


def iso(at_ms: int) -> str:
    """A time for machines: RFC 3339 UTC."""
    return f"{_at(at_ms):%Y-%m-%dT%H:%M:%S}Z"


def _at(at_ms: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(at_ms / 1000, dt.UTC)
