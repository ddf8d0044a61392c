"""Points in time: a run's logical time, the window that ends at it, and the columns that are compared with them."""

from __future__ import annotations

import datetime as dt
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from edge_agent.contract.errors import ConfigurationError
from trainer.batch.errors import InputUnreadable


class Window(msgspec.Struct, frozen=True, kw_only=True):
    """Rows whose column lies in a window; RFC 3339 UTC, the beginning included, the end not."""

    column: str
    begin: str
    end: str


def parse(text: str) -> dt.datetime:
    """A point in time as RFC 3339 has it, in UTC; a date alone is its midnight.

    Raises:
        ConfigurationError: It is none.
    """
    try:
        found = dt.datetime.fromisoformat(text)
    except ValueError:
        raise ConfigurationError(f"{text!r} is no point in time; write 2026-11-23T00:00:00Z or 2026-11-23") from None
    return found.astimezone(dt.UTC) if found.tzinfo is not None else found.replace(tzinfo=dt.UTC)


def written(moment: dt.datetime) -> str:
    """A point in time as it stands in tables: ``2026-11-23T00:00:00Z``; to the second."""
    return moment.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def window_before(logical_time: str, column: str, length_s: float) -> Window:
    """The window of that length that ends at the logical time."""
    end = parse(logical_time)
    return Window(column=column, begin=written(end - dt.timedelta(seconds=length_s)), end=written(end))


def filled_in(path: str, logical_time: str) -> str:
    """A path in which ``{date}`` and ``{logical_time}`` stand for those of the run."""
    return path.replace("{date}", logical_time[:10]).replace("{logical_time}", logical_time)


def between(column: pa.Array, window: Window, shown: str) -> pa.Array:
    """Which cells lie in the window, bool[N]; a missing one does not.

    Numbers count as Unix time in milliseconds, as the lake's do.

    Raises:
        InputUnreadable: The column holds neither times, nor text, nor whole numbers.
    """
    low, high = (_bound(column.type, parse(text), text, window.column, shown) for text in (window.begin, window.end))
    inside = pc.and_(pc.greater_equal(column, low), pc.less(column, high))
    return pc.fill_null(inside, False)


def _bound(kind: pa.DataType, moment: dt.datetime, text: str, name: str, shown: str) -> Any:
    if pa.types.is_timestamp(kind):
        return pa.scalar(moment if kind.tz is not None else moment.replace(tzinfo=None)).cast(kind)
    if pa.types.is_date(kind):
        return pa.scalar(moment.date()).cast(kind)
    if pa.types.is_integer(kind):
        return pa.scalar(int(moment.timestamp() * 1000), kind)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return pa.scalar(text, kind)
    raise InputUnreadable(f"{shown}: column '{name}' holds {kind}, no points in time")
