"""The rows of an SQL query as Arrow batches: streamed, with a limit on how long they may take."""

from __future__ import annotations

import datetime as dt
import decimal
import json
import os
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

import pyarrow as pa
import sqlalchemy as sa

from edge_agent.contract.errors import ConfigurationError
from trainer.errors import DatasetError

_FROM_ENVIRONMENT = "env:"
_ROWS = 8_192


class SqlFailed(DatasetError):
    """The database refuses the query, or does not answer.

    Args:
        retry: Whether it may answer another time.
    """

    def __init__(self, text: str, *, retry: bool) -> None:
        super().__init__(text)
        self.retry = retry


def database_url(text: str) -> sa.URL:
    """The URL of a database; ``env:NAME`` takes it from the environment, so that no secret stands in a file.

    Raises:
        ConfigurationError: It is none, or the environment has no such variable.
    """
    if text.startswith(_FROM_ENVIRONMENT):
        name = text.removeprefix(_FROM_ENVIRONMENT)
        if not os.environ.get(name):
            raise ConfigurationError(f"the database's URL is to be in the environment, in {name}, which is not set")
        text = os.environ[name]
    try:
        return sa.make_url(text)
    except sa.exc.ArgumentError:
        raise ConfigurationError(
            "the database's URL cannot be read; write it as SQLAlchemy does: postgresql+psycopg://USER@HOST/DATABASE, "
            "sqlite:///FILE"
        ) from None


def shown_url(url: sa.URL) -> str:
    """The URL without its password."""
    return url.render_as_string(hide_password=True)


def sql_rows(
    url: sa.URL, query: str, parameters: Mapping[str, Any], *, timeout_s: float, rows: int = _ROWS
) -> Iterator[pa.RecordBatch]:
    """The rows of a query, in the order in which the database gives them; at most ``rows`` in memory.

    Column types are Arrow's for the values of each batch, so that they may differ between batches (an empty column has
    none). Structured values (JSON) become text.

    Args:
        parameters: For those names after a colon that the query has; others are left out.
        timeout_s: After which the query is broken off.
    Raises:
        SqlFailed: The database refuses, is away, or takes too long.
        ConfigurationError: Its driver is not installed.
    """
    try:
        engine = sa.create_engine(url, poolclass=sa.NullPool)
    except (sa.exc.NoSuchModuleError, ModuleNotFoundError) as error:
        raise ConfigurationError(f"{shown_url(url)}: its driver is not installed: {error}") from error
    statement = sa.text(query.strip().rstrip(";"))
    wanted = {name: value for name, value in parameters.items() if name in statement.compile().params}
    try:
        with engine.connect() as connection, time_limit(connection, timeout_s) as limit:
            try:
                found = connection.execution_options(stream_results=True, max_row_buffer=rows).execute(
                    statement, wanted
                )
                names = _unique_names(list(found.keys()), url)
                while some := found.fetchmany(rows):
                    yield _batch(names, some)
            except sa.exc.DBAPIError as error:
                if limit.is_over:
                    raise SqlFailed(
                        f"{shown_url(url)}: the query took longer than timeout_s = {timeout_s:g} and was broken off; "
                        "ask for fewer rows, add an index, or raise timeout_s",
                        retry=True,
                    ) from error
                raise
    except sa.exc.DBAPIError as error:
        retry = isinstance(error, (sa.exc.OperationalError, sa.exc.InterfaceError)) or error.connection_invalidated
        raise SqlFailed(f"{shown_url(url)}: {str(error.orig).strip()}", retry=retry) from error
    except sa.exc.SQLAlchemyError as error:
        raise SqlFailed(f"{shown_url(url)}: {error}", retry=False) from error
    finally:
        engine.dispose()


class TimeLimit:
    """Breaks a connection's query off after a while; a ``with`` block."""

    def __init__(self, stop: Callable[[], None], seconds: float) -> None:
        self.is_over = False
        self._stop = stop
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def _end(self) -> None:
        self.is_over = True
        self._stop()


def time_limit(connection: sa.Connection, seconds: float) -> TimeLimit:
    """A limit on what a connection does within a ``with`` block: then its query is broken off."""
    raw = connection.connection.driver_connection
    # sqlite3 calls it interrupt, psycopg and psycopg2 cancel; where a driver has neither, closing must do.
    stop = getattr(raw, "interrupt", None) or getattr(raw, "cancel", None) or getattr(raw, "close", None)
    return TimeLimit(stop or (lambda: None), seconds)


def _unique_names(names: list[str], url: sa.URL) -> list[str]:
    if len(set(names)) != len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise SqlFailed(f"{shown_url(url)}: the query gives columns of one name: {', '.join(twice)}", retry=False)
    return names


def _batch(names: Sequence[str], rows: Sequence[Any]) -> pa.RecordBatch:
    columns = [_column([_plain(value) for value in values]) for values in zip(*rows, strict=True)]
    return pa.record_batch(columns, names=list(names))


def _column(values: list[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):  # SQLite lets a column hold whatever it likes
        if all(value is None or isinstance(value, (int, float)) for value in values):
            return pa.array([None if value is None else float(value) for value in values])
        return pa.array([None if value is None else str(value) for value in values])


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (str, int, float, bytes, list, dt.date, decimal.Decimal)):
        return value
    if isinstance(value, (dict, tuple)):
        return json.dumps(value, default=str)
    if isinstance(value, (memoryview, bytearray)):
        return bytes(value)
    return str(value) if isinstance(value, (uuid.UUID, dt.time)) else value
