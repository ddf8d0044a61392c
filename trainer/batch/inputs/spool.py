"""Rows that come as a stream, put down as Parquet: read once, then answered by as many as like, and again after a kill.

A database's cursor is open for no longer than reading takes, and who resumes answers what was read then.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from trainer.batch.errors import InputUnreadable
from trainer.batch.inputs.parquet import joined
from trainer.batch.plan import Piece
from trainer.batch.storage import Storage, writing

# A column that tells why a row cannot even be read; where a file has it, all its rows are set aside.
FAULT = "__shoal_fault__"
# Beside it: their numbers in the source, which do not follow on each other.
FAULT_ROW = "__shoal_row__"
_FILE_ROWS = 262_144
_GROUP_ROWS = 16_384


class Spool:
    """Files of rows in a folder.

    Args:
        folder: Where they go; made with the first.
    """

    def __init__(self, folder: Storage) -> None:
        self._folder = folder
        self.pieces: list[Piece] = []
        self.schema: pa.Schema | None = None

    def take(self, batches: Iterable[pa.RecordBatch], shown: str) -> None:
        """Put rows down, in files of moderate size.

        Raises:
            StorageFull, StorageNotWritable, OutputRefused: They cannot be written.
            InputUnreadable: A column changes its type midway.
        """
        first_row = 0
        for table in _tables(batches, shown):
            self._write(table, shown, first_row)
            first_row += len(table)

    def take_faults(self, faults: list[tuple[int, str]], shown: str) -> None:
        """Put down rows that cannot be read, with the reason and their number in the source."""
        for first in range(0, len(faults), _FILE_ROWS):
            some = faults[first : first + _FILE_ROWS]
            rows = pa.array([max(number, 0) for number, _ in some], pa.int64())
            self._write(pa.table({FAULT: [why for _, why in some], FAULT_ROW: rows}), shown, 0)

    def _write(self, table: pa.Table, shown: str, first_row: int) -> None:
        name = f"rows-{len(self.pieces):05d}.parquet"
        with writing(self._folder.path(name)):
            self._folder.make()
            with self._folder.fs.open_output_stream(self._folder.path(name)) as sink:
                pq.write_table(table, sink, row_group_size=_GROUP_ROWS, compression="zstd", compression_level=1)
            self._folder.sync(name)
        groups = tuple(min(_GROUP_ROWS, len(table) - at) for at in range(0, len(table), _GROUP_ROWS))
        path, size = self._folder.path(name), self._folder.size(name) or 0
        self.pieces.append(Piece(path=path, shown=shown, groups=groups, size_bytes=size, first_row=first_row))
        if FAULT not in table.schema.names:
            self.schema = table.schema if self.schema is None else joined(self.schema, table.schema, shown)


def _tables(batches: Iterable[pa.RecordBatch], shown: str) -> Iterator[pa.Table]:
    """Batches together, as many as make a file; columns whose types differ take the wider one."""
    waiting: list[pa.Table] = []
    rows = 0
    for batch in batches:
        waiting.append(pa.Table.from_batches([batch]))
        rows += len(batch)
        if rows >= _FILE_ROWS:
            yield _together(waiting, shown)
            waiting, rows = [], 0
    if rows:
        yield _together(waiting, shown)


def _together(tables: list[pa.Table], shown: str) -> pa.Table:
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise InputUnreadable(f"{shown}: a column changes its type from row to row: {error}") from error
