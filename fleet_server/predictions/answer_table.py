"""A table of answers on disk, as it is now: its files, newest logical time first, and single rows of them."""

from __future__ import annotations

import hashlib
import os
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError

from edge_agent.contract.batch import KEY, LOGICAL_TIME, PREDICTION, BatchRecord
from edge_agent.contract.errors import CallerError
from fleet_server.errors import NotFound

_RECORD_FILE = "_record.json"
_PROTOCOL = "://"


class NoAnswers(CallerError):
    """What lies there is no table of answers, or cannot be one."""


class AnswerFile(msgspec.Struct, frozen=True, kw_only=True):
    """One Parquet file of a table of answers.

    Args:
        path: Within the table's file system.
        low, high: Smallest and largest key, where the table's log says so.
    """

    path: str
    size_bytes: int
    logical_time: str
    low: str | None = None
    high: str | None = None

    @property
    def name(self) -> str:
        """A name for what is kept of it; files of a table are never changed."""
        return hashlib.sha256(f"{self.path}\n{self.size_bytes}".encode()).hexdigest()[:32]

    def may_hold(self, key: str) -> bool:
        """Whether the key lies within what the log says of the file."""
        return (self.low is None or self.low <= key) and (self.high is None or key <= self.high)


class AnswerTable:
    """A Delta table, or a folder of Parquet batches.

    Args:
        kind: ``delta`` or ``parquet``.
    Raises:
        NoAnswers: There is no such file system here.
    """

    def __init__(self, kind: str, path: str) -> None:
        self.kind, self.path = kind, path.rstrip("/")
        try:
            local = (pafs.LocalFileSystem(), self.path)
            found: tuple[Any, str] = pafs.FileSystem.from_uri(self.path) if _PROTOCOL in path else local
        except (pa.ArrowInvalid, OSError) as error:
            raise NoAnswers(f"{path}: cannot be reached: {error}") from error
        self._fs, self._root = found
        self._delta: DeltaTable | None = None

    def files(self) -> Sequence[AnswerFile]:
        """Its files now, newest logical time first.

        Raises:
            NotFound: The table is not there, or not readable.
            NoAnswers: It is no table of answers.
        """
        try:
            found = self._of_delta() if self.kind == "delta" else self._of_parquet()
        except (TableNotFoundError, FileNotFoundError) as error:
            raise NotFound(f"there are no answers at {self.path}; was the table moved?") from error
        except (DeltaError, OSError, msgspec.DecodeError) as error:
            raise NotFound(f"the answers at {self.path} cannot be read: {error}") from error
        return sorted(found, key=lambda file: (file.logical_time, file.path), reverse=True)

    def check(self) -> None:
        """Refuse what is no table of answers.

        Raises:
            NotFound: It is not there.
            NoAnswers: It lacks the columns of one.
        """
        files = self.files()
        if not files:
            return
        names = set(self._open(files[0]).schema_arrow.names)
        if not {KEY, PREDICTION} <= names:
            raise NoAnswers(f"{self.path}: is no table of answers: it has the columns {', '.join(sorted(names))}")

    def keys(self, file: AnswerFile) -> pa.Array:
        """The key of each row of a file."""
        with self._open(file) as found:
            return found.read(columns=[KEY])[KEY].combine_chunks().cast(pa.large_string())

    def row(self, file: AnswerFile, number: int) -> dict[str, Any]:
        """One row of a file: its row group alone is read."""
        with self._open(file) as found:
            for group in range(found.metadata.num_row_groups):
                rows = found.metadata.row_group(group).num_rows
                if number < rows:
                    row: dict[str, Any] = found.read_row_group(group).slice(number, 1).to_pylist()[0]
                    return row | {LOGICAL_TIME: file.logical_time}
                number -= rows
        raise NotFound(f"{self.path}: {file.path} has no row {number}")

    def _open(self, file: AnswerFile) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(self._fs.open_input_file(file.path))
        except (OSError, pa.ArrowException) as error:
            raise NotFound(f"{self.path}: {file.path} cannot be read: {error}; ask again") from error

    def _within(self, name: str) -> str:
        """The path of a file that the table names, which is one of its own.

        Raises:
            NoAnswers: It leads out of the table's folder.
        """
        path = f"{self._root}/{name}"
        if isinstance(self._fs, pafs.LocalFileSystem):
            leaves = not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(self._root))
        else:
            leaves = ".." in name.split("/") or _PROTOCOL in name
        if leaves:
            raise NoAnswers(f"{self.path}: names a file that is none of its own: {name}")
        return path

    def _of_delta(self) -> list[AnswerFile]:
        if self._delta is None:
            self._delta = DeltaTable(self.path)
        else:
            self._delta.update_incremental()
        if self._delta.metadata().partition_columns != [LOGICAL_TIME]:
            raise NoAnswers(f"{self.path}: is no table of answers: it is not partitioned by {LOGICAL_TIME}")
        return [
            AnswerFile(
                path=self._within(urllib.parse.unquote(row["path"])),
                size_bytes=row["size_bytes"],
                logical_time=str(row[f"partition.{LOGICAL_TIME}"]),
                low=row.get(f"min.{KEY}"),
                high=row.get(f"max.{KEY}"),
            )
            for row in pa.table(self._delta.get_add_actions(flatten=True)).to_pylist()
        ]

    def _of_parquet(self) -> list[AnswerFile]:
        found = []
        for folder in sorted(Path(self._root).glob("batch-*")):
            record = msgspec.json.decode((folder / _RECORD_FILE).read_bytes(), type=BatchRecord)
            for file in folder.glob("*.parquet"):
                path = self._within(str(file.relative_to(self._root)))
                found.append(AnswerFile(path=path, size_bytes=file.stat().st_size, logical_time=record.logical_time))
        if not found and not Path(self._root).is_dir():
            raise FileNotFoundError(self._root)
        return found
