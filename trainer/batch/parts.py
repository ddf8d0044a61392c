"""One part of a batch: read in chunks, answered by whoever has time, written into files of its own, marked as done."""

from __future__ import annotations

import threading
import uuid
from collections import Counter
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from edge_agent.contract.batch import KEY, LOGICAL_TIME
from edge_agent.contract.errors import ShoalError
from trainer.batch.chunks import REJECTED_SCHEMA, Answers, Chunks, with_logical_time
from trainer.batch.errors import InputUnreadable
from trainer.batch.inputs.spool import FAULT, FAULT_ROW
from trainer.batch.moments import between
from trainer.batch.plan import Part, PartDone, Piece, Plan
from trainer.batch.storage import Storage, locate, writing
from trainer.data.tensors import without_views

# Rows of a row group of answers: a single key is found by reading one.
_GROUP_ROWS = 16_384
# Of a column chunk that is read; a whole one can be hundreds of MiB.
_READ_BYTES = 1 << 20
_KEY_LIMIT = 128  # characters of a key in a table's statistics

Chunk = tuple[pa.RecordBatch, NDArray[np.int64]]


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """Where a batch is made ready, as URIs of folders; nothing of it is seen by readers of the table.

    Args:
        marks: The plan, and the marks of parts that are done.
        answers, rejected: Files of rows.
        has_time: Whether the files hold the logical time as a column.
    """

    marks: str
    answers: str
    rejected: str
    has_time: bool


class OpenPart:
    """A part that is being answered; several threads may take its chunks.

    Args:
        chunk_rows: Rows read at once.
    Raises:
        InputUnreadable: The file is not there, or is not what was planned.
    """

    def __init__(self, plan: Plan, part: Part, stage: Stage, chunks: Chunks, *, chunk_rows: int) -> None:
        self.part, self._plan, self._chunks = part, plan, chunks
        self._piece: Piece = plan.pieces[part.file]
        fs, _ = locate(plan.filesystem)
        self._file = open_piece(fs, self._piece)
        self._names = _columns(plan, chunks)
        stored = set(self._file.schema_arrow.names)
        self._without = _keys_of(fs, self._piece, chunks)
        self._batches = self._file.iter_batches(
            chunk_rows,
            row_groups=list(range(part.first_group, part.end_group)),
            columns=[name for name in [*self._names, FAULT, FAULT_ROW] if name in stored],
            use_threads=False,
        )
        self._next_row = self._piece.first_row + part.first_row
        self._reading, self._writing = threading.Lock(), threading.Lock()
        token = uuid.uuid4().hex[:12]
        name = f"part-{part.index:05d}-{token}.parquet"
        times = plan.logical_time if stage.has_time else None
        self._answers = RowFile(Storage(stage.answers), name, chunks.schema, times)
        self._rejected = RowFile(Storage(stage.rejected), name, REJECTED_SCHEMA, times)
        self._noted: Counter[str] = Counter()
        self._complaint = ""

    def next(self) -> Chunk | None:
        """The next rows and their numbers in the source, or None at the end.

        Raises:
            InputUnreadable: The file is damaged.
        """
        with self._reading:
            try:
                batch = next(self._batches, None)
            except (OSError, pa.ArrowException) as error:
                raise InputUnreadable(f"{self._piece.shown}: cannot be read: {error}") from error
            if batch is None:
                return None
            first = self._next_row
            self._next_row += len(batch)
        rows = np.arange(first, first + len(batch), dtype=np.int64)
        if FAULT_ROW in batch.schema.names:
            rows = batch.column(FAULT_ROW).to_numpy()
        return self._wanted(batch, rows)

    def answer(self, chunk: Chunk) -> int:
        """Answer a chunk and write what came of it.

        Returns:
            How many rows it had.
        """
        batch, rows = chunk
        if len(batch):
            self._write(self._chunks.answer(batch, rows, self._piece.shown))
        return len(batch)

    def finish(self) -> PartDone:
        """Close the files, once the last chunk was answered."""
        answers, rejected = self._answers.close(), self._rejected.close()
        self._file.close()
        return PartDone(
            index=self.part.index,
            rows=self._answers.rows,
            rejected=self._rejected.rows,
            file=answers,
            size_bytes=self._answers.size_bytes,
            keys=self._answers.keys,
            rejected_file=rejected,
            rejected_bytes=self._rejected.size_bytes,
            complaint=self._complaint,
            noted=dict(self._noted),
        )

    def abandon(self) -> None:
        """Close the files of a part that will not be finished."""
        for file in (self._answers, self._rejected):
            file.abandon()
        self._file.close()

    def _write(self, found: Answers) -> None:
        with self._writing:
            self._answers.write(found.answers)
            self._rejected.write(found.rejected)
            self._noted.update(found.noted)
            if len(found.rejected) and not self._complaint:
                self._complaint = str(found.rejected["reason"][0])

    def _wanted(self, batch: pa.RecordBatch, rows: NDArray[np.int64]) -> Chunk:
        """The rows that this batch is about, with the columns that the file leaves to the table's log."""
        if batch.schema != (plain := without_views(batch.schema)):
            batch = batch.cast(plain)
        for name in self._names:
            if name not in batch.schema.names:  # a partition's value, or a column that is younger than the file
                kind = self._chunks.input_schema.field(name).type
                value = self._piece.constants.get(name)
                cells = pa.nulls(len(batch), kind)
                if value is not None:
                    cells = pa.repeat(pa.scalar(value, pa.string()).cast(kind), len(batch))
                batch = batch.append_column(name, cells)
            elif pa.types.is_null(batch.schema.field(name).type):
                kind = self._chunks.input_schema.field(name).type
                kind = pa.float32() if pa.types.is_null(kind) else kind
                batch = batch.set_column(batch.schema.get_field_index(name), name, pa.nulls(len(batch), kind))
        mask = None
        if self._plan.where is not None:
            mask = between(batch.column(self._plan.where.column), self._plan.where, self._piece.shown)
        for column, value in self._plan.equal.items():
            same = pc.fill_null(pc.equal(batch.column(column), value), False)
            mask = same if mask is None else pc.and_(mask, same)
        if self._without is not None:
            new = pc.invert(pc.is_in(self._chunks.keys(batch), value_set=self._without))
            mask = new if mask is None else pc.and_(mask, new)
        if mask is None:
            return batch, rows
        return batch.filter(mask), rows[mask.to_numpy(zero_copy_only=False)]


class RowFile:
    """A Parquet file that appears with its first row, in row groups of moderate size."""

    def __init__(self, folder: Storage, name: str, schema: pa.Schema, logical_time: str | None) -> None:
        self._folder, self._name = folder, name
        self._schema = schema if logical_time is None else with_logical_time(schema)
        self._time = logical_time
        self._writer: Any = None
        self._waiting: list[pa.Table] = []
        self._waiting_rows = 0
        self.rows = self.size_bytes = 0
        self.keys: tuple[str, str] | None = None

    def write(self, table: pa.Table) -> None:
        """Add rows.

        Raises:
            StorageFull, StorageNotWritable, OutputRefused: The file cannot be written.
        """
        if not len(table):
            return
        self._note_keys(table)
        if self._time is not None:
            table = table.append_column(LOGICAL_TIME, pa.repeat(self._time, len(table)))
        self._waiting.append(table)
        self._waiting_rows += len(table)
        self.rows += len(table)
        if self._waiting_rows >= _GROUP_ROWS:
            self._flush()

    def close(self) -> str | None:
        """Finish the file, durably.

        Returns:
            Its name, or None where there was no row.
        """
        self._flush()
        if self._writer is None:
            return None
        with writing(self._folder.path(self._name)):
            self._writer.close()
            self._sink.close()
            self._folder.sync(self._name)
        self.size_bytes = self._folder.size(self._name) or 0
        return self._name

    def abandon(self) -> None:
        """Close the file as it is; nobody will read it."""
        if self._writer is None:
            return
        try:
            self._writer.close()
            self._sink.close()
        except OSError:
            return  # the disk may be full, which is why it is abandoned

    def _flush(self) -> None:
        if not self._waiting:
            return
        table = pa.concat_tables(self._waiting)
        self._waiting, self._waiting_rows = [], 0
        with writing(self._folder.path(self._name)):
            if self._writer is None:
                self._folder.make()
                self._sink = self._folder.fs.open_output_stream(self._folder.path(self._name))
                texts = [field.name for field in self._schema if field.name != KEY and pa.types.is_string(field.type)]
                self._writer = pq.ParquetWriter(
                    self._sink, self._schema, compression="zstd", compression_level=1, use_dictionary=texts or False
                )
            self._writer.write_table(table, row_group_size=_GROUP_ROWS)

    def _note_keys(self, table: pa.Table) -> None:
        found = pc.min_max(table[KEY])
        low, high = found["min"].as_py(), found["max"].as_py()
        if low is None:
            return
        if self.keys is not None:
            low, high = min(low, self.keys[0]), max(high, self.keys[1])
        self.keys = (low, high)


def open_piece(fs: Any, piece: Piece) -> pq.ParquetFile:
    """A file of the input, read in small steps.

    Raises:
        InputUnreadable: It is not there any more, has changed since it was planned, or is no Parquet file.
    """
    try:
        info = fs.get_file_info(piece.path)
        if info.size != piece.size_bytes:
            now = "is not there any more" if info.size is None else f"had {piece.size_bytes} bytes, has {info.size} now"
            raise InputUnreadable(
                f"{piece.shown}: has changed since the batch was planned: it {now}; run it again", retry=True
            )
        return pq.ParquetFile(fs.open_input_file(piece.path), buffer_size=_READ_BYTES, pre_buffer=False)
    except ShoalError:
        raise
    except (OSError, pa.ArrowException) as error:
        raise InputUnreadable(f"{piece.shown}: cannot be read: {error}") from error


def _columns(plan: Plan, chunks: Chunks) -> list[str]:
    where = [plan.where.column] if plan.where is not None else []
    return list(dict.fromkeys([*chunks.columns, *where, *plan.equal]))


def _keys_of(fs: Any, piece: Piece, chunks: Chunks) -> pa.Array | None:
    """The keys of rows that were there before the file was rewritten."""
    if not piece.without:
        return None
    found = []
    for path in piece.without:
        try:
            with pq.ParquetFile(fs.open_input_file(path)) as file:
                found += [chunks.keys(batch) for batch in file.iter_batches(columns=list(chunks.key))]
        except (OSError, pa.ArrowException) as error:
            raise InputUnreadable(
                f"{path}: cannot be read: {error}; the table's older files are needed to tell which rows are new: set "
                'rows = "all" once'
            ) from error
    return pa.chunked_array(found, pa.string()).combine_chunks() if found else None
