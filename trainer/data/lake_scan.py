"""A model's samples in the lake at one version: their columns now, their inputs when they are asked for.

Inputs are by far the most of a sample. So the columns are read first, who is meant is decided on them, and the inputs
are then streamed past. Both passes go through the same files in the same order: a row is known by its place in it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError
from numpy.typing import NDArray

from trainer.data.lake import unreadable
from trainer.errors import DatasetError

PLACE = "place"
_BATCH_ROWS = 1024


class LakeScan:
    """Rows of a model in a table of the lake.

    Raises:
        DatasetError: A column is missing, or a file of the table is.
    """

    def __init__(self, table: DeltaTable, model: str) -> None:
        self._table, self._model = table, model

    def columns(self, names: list[str]) -> pa.Table:
        """Some columns of all rows, and :data:`PLACE`, int64."""
        known = {field.name for field in self._table.schema().fields}
        if missing := sorted(set(names) - known):
            raise DatasetError(f"{self._table.table_uri}: has no columns {missing}; it was not written by Shoal")
        try:
            batches = list(self._batches(names, 64 * _BATCH_ROWS))
            schema = pa.schema([self._dataset().schema.field(name) for name in names])
            found = pa.Table.from_batches(batches, schema=schema)
        except (DeltaError, OSError, pa.ArrowException) as error:
            raise unreadable(self._table, error) from error
        return found.append_column(PLACE, pa.array(np.arange(len(found), dtype=np.int64)))

    def inputs(self, places: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], list[bytes]]]:
        """The inputs of some rows, streamed.

        Args:
            places: int64[N].
        Yields:
            Which of the N, and their inputs as the lake holds them.
        """
        order = np.argsort(places, kind="stable")
        wanted, passed, done = places[order], 0, 0
        try:
            for batch in self._batches(["inputs"], _BATCH_ROWS) if len(wanted) else ():
                end = int(np.searchsorted(wanted, passed + len(batch)))
                if end > done:
                    column = batch.column(0).take(pa.array(wanted[done:end] - passed))
                    yield order[done:end], column.to_pylist()
                passed, done = passed + len(batch), end
                if done == len(wanted):
                    return
        except (DeltaError, OSError, pa.ArrowException) as error:
            raise unreadable(self._table, error) from error

    def _dataset(self) -> ds.Dataset:
        return self._table.to_pyarrow_dataset()

    def _batches(self, columns: list[str], rows: int) -> Iterator[pa.RecordBatch]:
        whose = ds.field("model") == self._model
        files = sorted(self._dataset().get_fragments(filter=whose), key=lambda found: str(found.path))
        # One row group after the other: a scan of a whole file reads ahead of who uses it, as far as memory goes.
        for group in itertools.chain.from_iterable(file.split_by_row_group(filter=whose) for file in files):
            scanner = group.scanner(columns=columns, filter=whose, batch_size=rows, use_threads=False)
            for batch in scanner.to_batches():
                if len(batch):
                    yield batch
