"""Tensors of rows in an Arrow file, read where they lie."""

from __future__ import annotations

import contextlib
import errno
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from trainer.errors import DatasetError

# By name: numpy dtype (``object``: text, as ``bytes``) and shape of one row.
TensorShapes = dict[str, tuple[str, tuple[int, ...]]]
# Text is as long as it is; this stands for an element where sizes are weighed.
_TEXT_BYTES = 64


@dataclass(frozen=True)
class RowFile:
    """An Arrow IPC file of rows. Can be pickled.

    Args:
        starts: int64[groups + 1]: the first row of each record batch, and the number of rows.
    """

    path: Path
    tensors: TensorShapes
    starts: NDArray[np.int64]

    def read(self, places: NDArray[np.int64], names: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
        """Tensors of some rows (None: all tensors) in memory, in the order of ``places``; a group is touched once.

        Raises:
            DatasetError: The file cannot be read.
        """
        wanted = {name: self.tensors[name] for name in names or self.tensors}
        found = {name: np.empty((len(places), *shape), np.dtype(kind)) for name, (kind, shape) in wanted.items()}
        group = np.searchsorted(self.starts, places, side="right") - 1
        by_group = np.argsort(group, kind="stable")
        numbers, firsts = np.unique(group[by_group], return_index=True)
        with self._opened() as reader:
            for number, into in zip(numbers, np.split(by_group, firsts[1:]), strict=bool(len(places))):
                batch, at = reader.get_batch(int(number)), places[into] - self.starts[number]
                for name, (kind, shape) in wanted.items():
                    found[name][into] = _array(batch.column(name), kind, shape)[at]
        return found

    def check(self) -> None:
        """See that the file is whole.

        Raises:
            DatasetError: It is not.
        """
        with self._opened() as reader:
            groups = reader.num_record_batches
        if groups != len(self.starts) - 1:
            raise DatasetError(f"{self.path}: has {groups} of {len(self.starts) - 1} groups; remove it")

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Any]:
        try:
            with pa.memory_map(str(self.path)) as file:
                yield pa.ipc.open_file(file)
        except (OSError, pa.ArrowException) as error:
            raise DatasetError(f"{self.path}: cannot be read: {error}; remove it, and it is written anew") from error


class RowFileWriter:
    """Writes a file of rows, a record batch at a time; use it in a ``with``.

    Raises:
        OSError: The disk is full, or the file cannot be written.
    """

    def __init__(self, path: Path, tensors: TensorShapes) -> None:
        self._path, self._tensors = path, tensors
        fields = [pa.field(name, _arrow_type(kind, shape)) for name, (kind, shape) in tensors.items()]
        self._schema = pa.schema(fields)
        self._starts = [0]

    def __enter__(self) -> Self:
        self._file = pa.OSFile(str(self._path), "wb")
        self._writer = pa.ipc.new_file(self._file, self._schema)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._writer.close()
        except (OSError, pa.ArrowException):
            if error is None:
                raise
        finally:
            self._file.close()

    def append(self, inputs: Mapping[str, NDArray[Any]]) -> None:
        """Write some rows as one record batch; more tensors than asked for do no harm."""
        columns = [_column(name, inputs[name], kind, shape) for name, (kind, shape) in self._tensors.items()]
        self._writer.write_batch(pa.record_batch(columns, schema=self._schema))
        self._starts.append(self._starts[-1] + len(columns[0]))

    def file(self) -> RowFile:
        """What was written, once it is closed."""
        return RowFile(self._path, self._tensors, np.array(self._starts, dtype=np.int64))


def shapes_of(tensors: Mapping[str, NDArray[Any]]) -> TensorShapes:
    """What a file of such rows holds."""
    return {
        name: ("object" if array.dtype.kind == "O" else array.dtype.str, array.shape[1:])
        for name, array in tensors.items()
    }


def bytes_of(tensors: TensorShapes) -> int:
    """Of one row in memory, roughly where there is text."""
    return sum(
        (_TEXT_BYTES if kind == "object" else np.dtype(kind).itemsize) * math.prod(shape)
        for kind, shape in tensors.values()
    )


def storage_refused(path: Path, error: OSError, size_bytes: int) -> DatasetError:
    """What to say where rows cannot be written."""
    full = error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
    cure = "free some space there, or name another folder" if full else "see that the folder can be written to"
    return DatasetError(f"{path}: {size_bytes / 1e6:.0f} MB of rows cannot be written: {error}; {cure}")


def _arrow_type(kind: str, shape: tuple[int, ...]) -> pa.DataType:
    if kind == "object":
        value = pa.large_binary()
    else:
        # Arrow packs booleans into bits.
        value = pa.uint8() if np.dtype(kind).kind == "b" else pa.from_numpy_dtype(np.dtype(kind))
    return pa.list_(value, math.prod(shape))


def _column(name: str, array: NDArray[Any], kind: str, shape: tuple[int, ...]) -> pa.Array:
    if array.shape[1:] != shape:
        raise DatasetError(f"'{name}': a row of shape {list(array.shape[1:])} among rows of shape {list(shape)}")
    flat = np.ascontiguousarray(array).reshape(-1)
    type_ = _arrow_type(kind, shape)
    values = flat.view(np.uint8) if flat.dtype.kind == "b" else flat
    return pa.FixedSizeListArray.from_arrays(pa.array(values, type_.value_type), type_.list_size)


def _array(column: pa.Array, kind: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """The values of a column, uncopied where they are numbers; [rows, *shape]."""
    flat = column.values.to_numpy(zero_copy_only=False)
    if np.dtype(kind).kind == "b":
        flat = flat.view(np.bool_)
    return np.asarray(flat).reshape(len(column), *shape)
