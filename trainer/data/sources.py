"""Where rows may be imported from: an SQL query, Parquet, CSV or Delta, read as Arrow batches in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs as pafs
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from trainer.data.csv_rows import csv_rows
from trainer.data.sql_rows import database_url, shown_url, sql_rows
from trainer.errors import DatasetError

KINDS = ("sql", "parquet", "csv", "delta")
_ROWS = 2048


@dataclass(frozen=True)
class RowsFrom:
    """A place to import from.

    Args:
        kind: One of :data:`KINDS`.
        where: A database's URL, or the path or URI of a file, folder or table; of a table ``@VERSION`` may follow.
        query: Of SQL.
        timeout_s: Of SQL.
        complaints: Filled while it is read: lines of a CSV file that cannot be rows.
    """

    kind: str
    where: str
    query: str = ""
    timeout_s: float = 300.0
    complaints: list[str] = field(default_factory=list)

    @classmethod
    def parse(cls, text: str, *, query: str = "", timeout_s: float = 300.0) -> RowsFrom:
        """Of ``KIND:WHERE``, as the command line has it; SQL may carry its query after a ``?`` alone.

        Raises:
            DatasetError: It is none of the kinds, or SQL has no query.
        """
        kind, _, where = text.partition(":")
        if kind not in KINDS or not where:
            suffix = Path(text).suffix[1:]
            such = f", as {suffix}:{text}" if suffix in KINDS else ""
            raise DatasetError(f"{text!r}: write KIND:WHERE{such}; KIND is one of {', '.join(sorted(KINDS))}")
        if kind == "sql" and not query:
            where, _, query = where.partition("?")
            if " " not in query.strip():  # options of the URL, then
                raise DatasetError(
                    "an import from SQL needs a query: --query 'SELECT ...', or sql:URL?SELECT ... in one piece"
                )
        return cls(kind, where, query, timeout_s)

    @property
    def shown(self) -> str:
        """What a person is told: without a password."""
        return f"{self.kind}:{shown_url(database_url(self.where)) if self.kind == 'sql' else self.where}"

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """The rows, some of their columns alone.

        Raises:
            DatasetError: It cannot be read, or lacks a column.
            ConfigurationError: A database's URL is wrong, or its driver is not installed.
        """
        for batch in self._all(list(columns)):
            if missing := [name for name in columns if name not in batch.schema.names]:
                raise DatasetError(
                    f"{self.shown}: has no column {', '.join(missing)}; it has: {', '.join(batch.schema.names)}"
                )
            yield batch.select(list(columns))

    def head(self, rows: int) -> pa.Table:
        """The first rows, at most so many, with every column.

        Raises:
            DatasetError, ConfigurationError: As :meth:`batches`.
        """
        try:
            if self.kind == "parquet":
                fs, path = _located(self.where)
                return ds.dataset(path, filesystem=fs, format="parquet").head(rows)
            if self.kind == "delta":
                return self._delta().to_pyarrow_dataset().head(rows)
        except (DeltaError, OSError, pa.ArrowException, ValueError) as error:
            raise DatasetError(f"{self.shown}: cannot be read: {' '.join(str(error).split())[:300]}") from error
        found: list[pa.RecordBatch] = []
        for batch in self._all([]):
            found.append(batch)
            if sum(map(len, found)) >= rows:
                break
        if not found:
            raise DatasetError(f"{self.shown}: has no rows")
        return pa.Table.from_batches(found).slice(0, rows)

    def _all(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        if self.kind == "sql":
            yield from sql_rows(database_url(self.where), self.query, {}, timeout_s=self.timeout_s, rows=_ROWS)
            return
        try:
            if self.kind == "csv":
                yield from self._csv()
            elif self.kind == "parquet":
                fs, path = _located(self.where)
                yield from _scanned(ds.dataset(path, filesystem=fs, format="parquet"), columns)
            else:
                yield from _scanned(self._delta().to_pyarrow_dataset(), columns)
        except (DeltaError, OSError, pa.ArrowException, ValueError) as error:
            raise DatasetError(f"{self.shown}: cannot be read: {' '.join(str(error).split())[:300]}") from error

    def _csv(self) -> Iterator[pa.RecordBatch]:
        fs, path = _located(self.where)

        def bad(row: int, why: str) -> None:
            self.complaints.append(f"row {row}: {why}" if row >= 0 else why)

        for batch in csv_rows(fs, path, on_bad_line=bad):
            for first in range(0, len(batch), _ROWS):
                yield batch.slice(first, _ROWS)

    def _delta(self) -> DeltaTable:
        uri, at, version = self.where.rpartition("@")
        if at and version.isdecimal():
            return DeltaTable(uri, version=int(version))
        return DeltaTable(self.where)


def _located(where: str) -> tuple[Any, str]:
    if "://" in where:
        found: tuple[Any, str] = pafs.FileSystem.from_uri(where)
        return found
    return pafs.LocalFileSystem(), str(Path(where).absolute())


def _scanned(dataset: ds.Dataset, columns: list[str]) -> Iterator[pa.RecordBatch]:
    known = [name for name in columns if name in dataset.schema.names]
    if len(known) < len(columns):  # the caller says which are missing, and what there is
        yield pa.RecordBatch.from_pylist([], schema=dataset.schema)
        return
    scanner = dataset.scanner(
        columns=known, batch_size=_ROWS, use_threads=False, batch_readahead=1, fragment_readahead=1
    )
    for batch in scanner.to_batches():
        if len(batch):
            yield batch
