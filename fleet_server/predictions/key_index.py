"""Where in a file each key stands: its keys in order, mapped from disk, so that one is found in about 20 comparisons.

A file of answers is never changed, so that its index is made once, when it is first asked for: 0.2 s for 262,144 keys.
Nothing is held in memory but what the system caches of the files.
"""

from __future__ import annotations

import contextlib
import os
import threading
import uuid
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from fleet_server.predictions.answer_table import AnswerFile, AnswerTable

_SUFFIX = ".keys"


class KeyIndex:
    """The indices of one table's files; may be used from several threads.

    Args:
        folder: Where they are kept.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[str, tuple[pa.Array, pa.Array]] = {}
        self._lock = threading.Lock()

    def find(self, table: AnswerTable, file: AnswerFile, key: str) -> int | None:
        """The row of a key in a file, the last where there are several; None where there is none."""
        keys, rows = self._indexed(table, file)
        low, high = 0, len(keys)
        while low < high:  # the end of the run of keys that are at most this one
            middle = (low + high) // 2
            if keys[middle].as_py() <= key:
                low = middle + 1
            else:
                high = middle
        if not low or keys[low - 1].as_py() != key:
            return None
        return int(rows[low - 1].as_py())

    def forget_all_but(self, files: Iterable[AnswerFile]) -> None:
        """Remove what is kept of files that the table has no more."""
        names = {file.name for file in files}
        with self._lock:
            self._open = {name: found for name, found in self._open.items() if name in names}
        for path in self._folder.glob(f"*{_SUFFIX}"):
            if path.name.removesuffix(_SUFFIX) not in names:
                path.unlink(missing_ok=True)

    def _indexed(self, table: AnswerTable, file: AnswerFile) -> tuple[pa.Array, pa.Array]:
        with self._lock:
            found = self._open.get(file.name)
            if found is None:
                path = self._folder / f"{file.name}{_SUFFIX}"
                found = _mapped(path) or self._made(table, file, path)
                self._open[file.name] = found
            return found

    def _made(self, table: AnswerTable, file: AnswerFile, path: Path) -> tuple[pa.Array, pa.Array]:
        keys = table.keys(file)
        # Stable, as the last of equal keys is the one that counts; by bytes, as Python compares text by code points
        # and UTF-8 keeps their order.
        order = pc.sort_indices(keys).cast(pa.uint32())
        index = pa.record_batch([keys.take(order), order], names=["key", "row"])
        self._folder.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
        try:
            with pa.OSFile(str(beside), "wb") as sink, pa.ipc.new_file(sink, index.schema) as writer:
                writer.write_batch(index)
            os.replace(beside, path)  # noqa: PTH105 - the same in one step
        except OSError:
            with contextlib.suppress(OSError):
                beside.unlink()
            return index.column("key"), index.column("row")  # the disk is full: kept in memory, made again next time
        return _mapped(path) or (index.column("key"), index.column("row"))


def _mapped(path: Path) -> tuple[pa.Array, pa.Array] | None:
    try:
        batch = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
    except (OSError, pa.ArrowException):
        return None
    return batch.column("key"), batch.column("row")
