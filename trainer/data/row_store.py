"""Decoded rows in a file: written once for a dataset version, mapped into memory by whoever trains on it.

An Arrow IPC file, not compressed, so that a tensor's values are used where they lie; its record batches are the row
groups. Rows lie in the order of the hash of their key, whatever the order and the files they came in: each group is a
fair sample of all, and the same dataset is the same file.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from trainer.data.row_file import RowFile, RowFileWriter, TensorShapes, bytes_of, storage_refused
from trainer.errors import DatasetError

_ROWS_FILE = "rows.arrow"
_INDEX_FILE = "index.npz"
_ABOUT_FILE = "about.json"
_GROUP_ROWS = (16, 1024)
_GROUP_BYTES = 8 << 20
_GATHERED_BYTES = 64 << 20
_STORES_KEPT = 4
# A pass over a store says that it is in use.
_IN_USE_S = 86_400.0
# Folders in the making, by the names that they are given here and in :mod:`trainer.data.loading`.
_HALF = re.compile(r"\.(decoding|[0-9a-f]{40})-\w+")

# Inputs by name of some rows, by dataset row.
Gather = Callable[[NDArray[np.int64]], Mapping[str, NDArray[Any]]]


class _About(msgspec.Struct, frozen=True, kw_only=True):
    """What lies beside the rows."""

    rows: int
    group_rows: int
    tensors: TensorShapes


@dataclass(frozen=True)
class RowStore:
    """Decoded rows of a dataset version on disk. Can be pickled.

    Args:
        order: int64[N]: which dataset row lies at each place.
        targets: int64[N]: class index of the row at each place.
        group_rows: Rows of a row group, but for the last.
        file: The inputs.
    """

    folder: Path
    order: NDArray[np.int64]
    targets: NDArray[np.int64]
    group_rows: int
    file: RowFile

    @classmethod
    def open(cls, folder: Path) -> RowStore:
        """The store in a folder.

        Raises:
            DatasetError: There is none, or it is damaged.
        """
        try:
            about = msgspec.json.decode((folder / _ABOUT_FILE).read_bytes(), type=_About)
            with np.load(folder / _INDEX_FILE) as index:
                order, targets = index["order"], index["targets"]
        except (OSError, ValueError, KeyError, EOFError, msgspec.DecodeError) as error:
            raise DatasetError(f"{folder}: is no store of rows: {error}; remove it, and it is written anew") from error
        starts = np.minimum(np.arange(math.ceil(about.rows / about.group_rows) + 1) * about.group_rows, about.rows)
        file = RowFile(folder / _ROWS_FILE, about.tensors, starts.astype(np.int64))
        file.check()
        if not len(order) == len(targets) == about.rows:
            raise DatasetError(f"{folder}: its index has {len(order)} of {about.rows} rows; remove it")
        return cls(folder, order, targets, about.group_rows, file)

    def __len__(self) -> int:
        return len(self.order)

    @property
    def groups(self) -> int:
        """Number of row groups."""
        return math.ceil(len(self) / self.group_rows)

    @property
    def group_bytes(self) -> int:
        """Of a row group in memory."""
        return self.group_rows * bytes_of(self.file.tensors)

    def read(self, places: NDArray[np.int64], names: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
        """Tensors of some rows (None: all tensors) in memory, in the order of ``places``.

        Raises:
            DatasetError: The file cannot be read.
        """
        return self.file.read(places, names)

    def touch(self) -> None:
        """Say that it is in use; one that may only be read is left as it is."""
        with contextlib.suppress(OSError):
            os.utime(self.folder)

    def places(self) -> NDArray[np.int64]:
        """int64[N]: where each dataset row lies."""
        found = np.empty(len(self.order), dtype=np.int64)
        found[self.order] = np.arange(len(self.order))
        return found


def write_store(
    folder: Path, keys: Sequence[str], targets: NDArray[np.int64], tensors: TensorShapes, gather: Gather
) -> RowStore:
    """Write a store, or open the one that is there already; a half-written one is never seen.

    The stores beside it that were not used for longest are removed.

    Args:
        folder: Its own; whoever names it sees to it that another dataset gets another name.
        keys: What each row is called, N; their hashes make the order.
        targets: int64[N].
        gather: Reads rows by their number.
    Raises:
        DatasetError: The disk is full, or the folder cannot be written.
    """
    if (folder / _ABOUT_FILE).is_file():
        try:
            found = RowStore.open(folder)
        except DatasetError:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            found.touch()
            return found
    order = hash_order(keys)
    least, most = _GROUP_ROWS
    about = _About(
        rows=len(order), group_rows=max(least, min(most, _GROUP_BYTES // max(1, bytes_of(tensors)))), tensors=tensors
    )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        half = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            with RowFileWriter(half / _ROWS_FILE, tensors) as file:
                # Rows come from all over: the more at a time, the fewer times each place is visited.
                many = max(1, _GATHERED_BYTES // max(1, about.group_rows * bytes_of(tensors)))
                for at in _chunks(order, about.group_rows * many):
                    rows = gather(at)
                    for first in range(0, len(at), about.group_rows):
                        file.append({name: rows[name][first : first + about.group_rows] for name in tensors})
            np.savez(half / _INDEX_FILE, order=order, targets=targets[order])
            (half / _ABOUT_FILE).write_bytes(msgspec.json.encode(about))
            _move(half, folder)
        finally:
            shutil.rmtree(half, ignore_errors=True)
    except OSError as error:
        raise storage_refused(folder, error, len(order) * bytes_of(tensors)) from error
    prune_stores(folder.parent, keep=_STORES_KEPT)
    return RowStore.open(folder)


def prune_stores(cache: Path, *, keep: int) -> None:
    """Remove all but the stores that were used last; one that a run may be reading stays in any case.

    So does what is being written; what a run that was killed has left half-written goes.
    """
    used = {path.parent: path.parent.stat().st_mtime for path in cache.glob(f"[!.]*/{_ABOUT_FILE}")}
    for old in sorted(used, key=lambda folder: used[folder], reverse=True)[keep:]:
        if used[old] < time.time() - _IN_USE_S:
            shutil.rmtree(old, ignore_errors=True)
    for half in (path for path in cache.glob(".*") if _HALF.fullmatch(path.name)):
        with contextlib.suppress(FileNotFoundError):  # another run has just ended with it
            written = max(path.stat().st_mtime for path in (half, *half.iterdir()))
            if written < time.time() - _IN_USE_S:
                shutil.rmtree(half, ignore_errors=True)


def hash_order(keys: Sequence[str]) -> NDArray[np.int64]:
    """The rows in the order of the hash of their keys, int64[N]; of equal keys the first comes first."""
    hashes = np.fromiter(
        (int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") for key in keys), np.uint64, len(keys)
    )
    return np.argsort(hashes, kind="stable").astype(np.int64)


def _chunks(order: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    for first in range(0, len(order), size):
        yield order[first : first + size]


def _move(half: Path, folder: Path) -> None:
    try:
        half.rename(folder)
    except OSError:
        if not (folder / _ABOUT_FILE).is_file():  # another process was faster: the same dataset, the same rows
            raise
