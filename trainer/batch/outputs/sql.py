"""Answers in an SQL table: staged as files, then inserted in one transaction with the batch's record."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import sqlalchemy as sa

from edge_agent.contract.batch import KEY, LOGICAL_TIME, REJECTED_SUFFIX, BatchRecord, SqlOutput
from edge_agent.contract.errors import ConfigurationError
from trainer.batch.chunks import REJECTED_SCHEMA, with_logical_time
from trainer.batch.errors import BatchOvertaken, OutputRefused
from trainer.batch.outputs.ledger import Ledger
from trainer.batch.outputs.table import Ready
from trainer.batch.parts import Stage
from trainer.batch.plan import Plan
from trainer.batch.storage import Storage
from trainer.data.sql_rows import database_url, shown_url, time_limit

LEDGER_TABLE = "shoal_batches"
_ROWS = 2_000
# MySQL indexes no text without a length.
_TEXT = sa.Text().with_variant(sa.String(255), "mysql", "mariadb")


class SqlAnswers:
    """An SQL table of answers, one beside it of rows set aside, and the ledger of all jobs of the database.

    Args:
        work: Folder for what is not committed yet; the same for the next attempt.
    Raises:
        ConfigurationError: The URL cannot be used.
    """

    def __init__(self, output: SqlOutput, job: str, work: Path) -> None:
        self._job, self._output = job, output
        url = database_url(output.url)
        try:
            self._engine = sa.create_engine(url, poolclass=sa.NullPool)
        except (sa.exc.NoSuchModuleError, ModuleNotFoundError) as error:
            raise ConfigurationError(f"{shown_url(url)}: its driver is not installed: {error}") from error
        self._ledger = Ledger(Storage(str(work)), job)
        self._work = Storage(str(work))
        self._schema, _, self._name = output.table.rpartition(".")
        self.shown = f"{shown_url(url)} table {output.table}"
        self._batches = sa.Table(
            LEDGER_TABLE,
            sa.MetaData(schema=self._schema or None),
            sa.Column("job", _TEXT, primary_key=True),
            sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
            sa.Column("target", sa.Text, nullable=False),
            sa.Column(LOGICAL_TIME, sa.Text, nullable=False),
            sa.Column("record", sa.Text, nullable=False),
        )

    def records(self) -> Sequence[BatchRecord]:
        """What was committed, the oldest first; see :class:`trainer.batch.outputs.table.Table`."""
        with self._telling(), self._engine.connect() as connection:
            if not sa.inspect(connection).has_table(LEDGER_TABLE, schema=self._schema or None):
                return []
            columns = self._batches.c
            other = sa.select(columns.job).where(columns.target == self._output.table, columns.job != self._job)
            if found := connection.scalar(other.limit(1)):
                raise OutputRefused(
                    f"{self.shown}: holds the answers of job '{found}'; give each job a table of its own"
                )
            query = sa.select(columns.record).where(columns.job == self._job).order_by(columns.number)
            return [msgspec.json.decode(text, type=BatchRecord) for text in connection.scalars(query)]

    def stage(self, plan_id: str) -> Stage:
        """Where a batch is made ready."""
        folder = f"{self._work.uri}/{self._ledger.staged_folder(plan_id)}"
        return Stage(marks=folder, answers=f"{folder}/answers", rejected=f"{folder}/rejected", has_time=True)

    def staged(self) -> Sequence[Plan]:
        """Plans that were begun and not committed."""
        return self._ledger.plans()

    def check(self, schema: pa.Schema) -> None:
        """Refuse answers that do not fit the table's columns; make the tables that are not there."""
        with self._telling(), self._engine.begin() as connection:
            inspector = sa.inspect(connection)
            if inspector.has_table(self._name, schema=self._schema or None):
                known = {column["name"] for column in inspector.get_columns(self._name, schema=self._schema or None)}
                if differs := known ^ set(with_logical_time(schema).names):
                    raise OutputRefused(
                        f"{self.shown}: has other columns than the answers ({', '.join(sorted(differs))}): the model "
                        "or the job has changed, or it is another's; name another table"
                    )
            for table in (self._table(schema), self._table(REJECTED_SCHEMA, REJECTED_SUFFIX), self._batches):
                table.create(connection, checkfirst=True)

    def commit(self, ready: Ready) -> None:
        """Make the batch a part of the table; see :class:`trainer.batch.outputs.table.Table`."""
        record = ready.record
        sides = (
            (self._table(ready.schema), Storage(ready.stage.answers), [done.file for done in ready.done]),
            (
                self._table(REJECTED_SCHEMA, REJECTED_SUFFIX),
                Storage(ready.stage.rejected),
                [done.rejected_file for done in ready.done],
            ),
        )
        row = {"job": record.job, "number": record.number, "target": self._output.table}
        row |= {LOGICAL_TIME: record.logical_time, "record": msgspec.json.encode(record).decode()}
        try:
            with self._telling(), self._engine.begin() as connection, time_limit(connection, self._output.timeout_s):
                connection.execute(self._batches.insert(), row)  # first: of two runs at once one waits, or is refused
                for table, folder, files in sides:
                    if record.replaces is not None:
                        connection.execute(table.delete().where(table.c[LOGICAL_TIME] == record.logical_time))
                    for rows in _rows(folder, files):
                        connection.execute(table.insert(), rows)
                if record.replaces is not None:
                    columns = self._batches.c
                    old = self._batches.delete().where(columns.job == record.job, columns.number == record.replaces)
                    connection.execute(old)
        except sa.exc.IntegrityError as error:
            raise BatchOvertaken(f"{self.shown}: batch {record.number} was committed meanwhile; run again") from error

    def discard(self, plan_id: str) -> None:
        """Remove what was staged."""
        self._ledger.discard(plan_id)

    def spool(self) -> Storage:
        """A new folder for rows that come as a stream."""
        return self._ledger.spool()

    def _table(self, schema: pa.Schema, suffix: str = "") -> sa.Table:
        columns = [
            sa.Column(field.name, _sql_type(field), index=field.name == KEY) for field in with_logical_time(schema)
        ]
        return sa.Table(self._name + suffix, sa.MetaData(schema=self._schema or None), *columns)

    def _telling(self) -> _Telling:
        return _Telling(self.shown)


class _Telling:
    """What a database refuses within the block becomes an error of ours; broken uniqueness passes through."""

    def __init__(self, shown: str) -> None:
        self._shown = shown

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, sa.exc.DBAPIError) and not isinstance(error, sa.exc.IntegrityError):
            retry = isinstance(error, (sa.exc.OperationalError, sa.exc.InterfaceError))
            raise OutputRefused(f"{self._shown}: {str(error.orig).strip()}", retry=retry) from error
        if isinstance(error, sa.exc.SQLAlchemyError) and not isinstance(error, sa.exc.DBAPIError):
            raise OutputRefused(f"{self._shown}: {error}") from error


def _rows(folder: Storage, files: Sequence[str | None]) -> Iterator[list[dict[str, Any]]]:
    for name in files:
        if name is None:
            continue
        with pq.ParquetFile(folder.fs.open_input_file(folder.path(name))) as file:
            for batch in file.iter_batches(_ROWS):
                yield [
                    {name: json.dumps(value) if isinstance(value, list) else value for name, value in row.items()}
                    for row in batch.to_pylist()
                ]


def _sql_type(field: pa.Field) -> Any:
    kind = field.type
    if field.name in {KEY, LOGICAL_TIME}:
        return _TEXT
    if pa.types.is_boolean(kind):
        return sa.Boolean()
    if pa.types.is_integer(kind):
        return sa.BigInteger()
    if pa.types.is_floating(kind):
        return sa.Double()
    if pa.types.is_decimal(kind):
        return sa.Numeric(kind.precision, kind.scale)
    if pa.types.is_timestamp(kind):
        return sa.DateTime(timezone=kind.tz is not None)
    if pa.types.is_date(kind):
        return sa.Date()
    return sa.LargeBinary() if pa.types.is_binary(kind) else sa.Text()
