"""An SQL query as input: its rows are read once into Parquet, those above the last batch's watermark alone."""

from __future__ import annotations

import datetime as dt
import decimal
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa

from edge_agent.contract.batch import RowChoice, SqlInput
from trainer.batch.errors import InputUnreadable
from trainer.batch.inputs.parquet import window_of
from trainer.batch.inputs.pinned import Pinned
from trainer.batch.inputs.spool import Spool
from trainer.batch.storage import Storage
from trainer.data.sql_rows import SqlFailed, database_url, shown_url, sql_rows

_SINCE = "since"
_MARK = "shoal_since"


def pin_sql(source: SqlInput, logical_time: str, since: dict[str, Any], folder: Storage) -> Pinned:
    """The rows of the query now.

    Args:
        folder: Where they are put down.
    Raises:
        InputUnreadable: The database refuses, is away or takes too long; or the watermark's column is not there.
    """
    url = database_url(source.url)
    window = window_of(source, logical_time)
    last = _restored(since) if source.rows is RowChoice.NEW else None
    parameters = {
        "logical_time": logical_time,
        "window_start": window.begin if window is not None else None,
        _SINCE: last,
        _MARK: last,
    }
    query = source.query if last is None else _above(source, url)
    spool, highest = Spool(folder), _Highest(source.watermark, last)
    try:
        spool.take(highest.over(sql_rows(url, query, parameters, timeout_s=source.timeout_s)), shown_url(url))
    except SqlFailed as error:
        raise InputUnreadable(str(error), retry=error.retry) from error
    return Pinned(
        shown=shown_url(url),
        filesystem=folder.uri,
        pieces=tuple(spool.pieces),
        schema=spool.schema,
        watermark=_kept(highest.value),
        where=window,
        spool=folder.uri,
    )


class _Highest:
    """The largest value of a column among rows that pass by."""

    def __init__(self, column: str | None, value: Any) -> None:
        self._column, self.value = column, value

    def over(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            if self._column is not None:
                self._look(batch, self._column)
            yield batch

    def _look(self, batch: pa.RecordBatch, column: str) -> None:
        if column not in batch.schema.names:
            raise InputUnreadable(f"watermark: the query gives no column '{column}'; it gives: {batch.schema.names}")
        if batch.column(column).null_count:
            raise InputUnreadable(
                f"watermark: column '{column}' is empty in some rows, which no later run would find; "
                "give them a value, or leave them out of the query"
            )
        most = pc.max(batch.column(column)).as_py()
        try:
            self.value = most if self.value is None else max(self.value, most)
        except TypeError as error:
            raise InputUnreadable(
                f"watermark: column '{column}' has {most!r}, and {self.value!r} before, which cannot be compared; let "
                'the query give values of one type, and set rows = "all" once'
            ) from error


def _above(source: SqlInput, url: sa.URL) -> str:
    assert source.watermark is not None  # noqa: S101 - the job's own check
    column = url.get_dialect()().identifier_preparer.quote(source.watermark)
    inner = source.query.strip().rstrip(";")
    return f"SELECT * FROM ({inner}) AS shoal_rows WHERE {column} > :{_MARK} OR {column} IS NULL"  # noqa: S608


def _kept(value: Any) -> dict[str, Any]:
    """A watermark as JSON holds it; its kind beside it, as the database compares by type."""
    if value is None:
        return {}
    if isinstance(value, dt.datetime):
        return {"kind": "datetime", "value": value.isoformat()}
    if isinstance(value, dt.date):
        return {"kind": "date", "value": value.isoformat()}
    if isinstance(value, decimal.Decimal):
        return {"kind": "decimal", "value": str(value)}
    return {"kind": "plain", "value": value}


def _restored(watermark: dict[str, Any]) -> Any:
    kinds: dict[str, Any] = {
        "datetime": dt.datetime.fromisoformat,
        "date": dt.date.fromisoformat,
        "decimal": decimal.Decimal,
        "plain": lambda value: value,
    }
    return kinds[watermark["kind"]](watermark["value"]) if watermark else None
