"""Imports rows of a table into the lake: every row is checked as a device would, then all are written or none.

Rows stream through: they are read, checked and put down in a file of their own, and from there go into the lake in one
commit for the samples and one for the labels. An import that was cut short is simply run again: a row is known by its
key, and what is there already is left alone.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from edge_agent.contract.checking import InputCheck
from edge_agent.contract.errors import SignatureMismatch
from edge_agent.contract.lake import IMPORTED, LABELS, SAMPLES
from trainer.data.lake import append_batches, imported
from trainer.data.row_file import storage_refused
from trainer.data.rows import encode_row
from trainer.data.sources import RowsFrom
from trainer.data.tensors import Faults, Ragged, columns_fault, tensor
from trainer.errors import DatasetError
from trainer.recipe import Recipe

_SHOWN = 20
_SPOOL = pa.schema([
    ("request_id", pa.string()), ("group", pa.string()), ("label", pa.string()), ("inputs", pa.binary()),
])  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which column is what.

    Args:
        tensors: By input: one column, of numbers, text or lists, or several that make up the last axis.
        label: The class, by its name.
        group: Rows of one subject; left out, each row is its own.
        key: What names a row; left out, its content does, so that the same row is not imported twice.
    """

    tensors: dict[str, tuple[str, ...]]
    label: str
    group: str | None = None
    key: str | None = None

    def names(self) -> list[str]:
        """Every column that is needed, once."""
        named = [name for names in self.tensors.values() for name in names]
        return list(dict.fromkeys([*named, self.label, *filter(None, (self.group, self.key))]))


@dataclass
class ImportedTable:
    """What an import did.

    Args:
        rows: That were read.
        new: Samples that are new in the lake; ``labelled``: labels that are new, corrected ones among them.
        bad: How many rows were left out; ``complaints``: what is wrong with the first of them.
    """

    rows: int = 0
    new: int = 0
    labelled: int = 0
    bad: int = 0
    complaints: list[str] = field(default_factory=list)

    def refuse(self, row: int, why: str) -> None:
        """Note a row that cannot be imported."""
        self.bad += 1
        if len(self.complaints) < _SHOWN:
            self.complaints.append(f"row {row}: {why}")


def import_table(
    recipe: Recipe,
    lake: str,
    source: RowsFrom,
    columns: Columns,
    *,
    now: dt.datetime,
    skip_bad: bool = False,
    progress: Callable[[int], None] = lambda _rows: None,
) -> ImportedTable:
    """Write a table's rows into the lake, with their labels; memory holds a few thousand of them, and the keys of all.

    Args:
        now: When they are said to have been seen, UTC.
        skip_bad: Leave rows that break the signature out; else nothing is written where there is one.
        progress: Told now and then how many rows were read.
    Raises:
        DatasetError: The source cannot be read or lacks a column, a row is bad, or the lake cannot be written.
    """
    reader = _Reader(recipe, columns)
    try:
        with tempfile.TemporaryDirectory(prefix="shoal-import-") as folder:
            spool = Path(folder) / "rows.parquet"
            with pq.ParquetWriter(spool, _SPOOL) as writer:
                for batch in source.batches(columns.names()):
                    writer.write_batch(reader.read(batch), row_group_size=1024)
                    progress(reader.done.rows)
            done = reader.done
            for complaint in source.complaints:
                done.bad += 1
                done.complaints[_SHOWN - 1 :] = []
                done.complaints.append(complaint)
            if done.bad and not skip_bad:
                shown = "\n  ".join(done.complaints)
                raise DatasetError(
                    f"{source.shown}: {done.bad} of {done.rows + len(source.complaints)} rows cannot be imported; "
                    f"nothing was written (--skip-bad leaves them out):\n  {shown}"
                )
            if not reader.keys:
                raise DatasetError(f"{source.shown}: has no rows to import")
            _commit(recipe, lake, spool, done, now)
            return done
    except OSError as error:
        raise storage_refused(Path(tempfile.gettempdir()), error, 0) from error


class _Reader:
    """Checks the rows of one table and encodes them as the lake holds them."""

    def __init__(self, recipe: Recipe, columns: Columns) -> None:
        specs = {spec.name: spec for spec in recipe.signature.inputs}
        if unknown := sorted(columns.tensors.keys() - specs.keys()):
            raise DatasetError(f"--map: '{recipe.name}' has no input {', '.join(unknown)}; it has: {', '.join(specs)}")
        # An input whose column has its own name needs no mention.
        named = {name: columns.tensors.get(name, (name,)) for name in specs}
        columns.tensors.update(named)
        self._recipe, self._columns, self._specs = recipe, columns, specs
        self._check = InputCheck(recipe.signature)
        self._contents: Counter[str] = Counter()
        self.keys: set[str] = set()
        self.done = ImportedTable()

    def read(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The good rows of a batch, encoded."""
        faults: Faults = {}
        tensors = {}
        for name, spec in self._specs.items():
            own = [batch.column(column) for column in self._columns.tensors[name]]
            if why := columns_fault(spec, [column.type for column in own]):
                raise DatasetError(f"input '{name}' {why} (columns {', '.join(self._columns.tensors[name])})")
            tensors[name] = tensor(spec, own, faults)
        labels = self._labels(batch, faults)
        self._refuse_breaking(tensors, len(batch), faults)
        rows: list[dict[str, Any]] = []
        for at in range(len(batch)):
            if at not in faults:
                row = self._row(batch, tensors, labels[at], at, faults)
                rows += [row] if row else []
        for at in sorted(faults):
            self.done.refuse(self.done.rows + at, faults[at])
        self.done.rows += len(batch)
        return pa.RecordBatch.from_pylist(rows, schema=_SPOOL)

    def _labels(self, batch: pa.RecordBatch, faults: Faults) -> list[str]:
        classes, found = set(self._recipe.file.labels), []
        for at, value in enumerate(batch.column(self._columns.label).to_pylist()):
            label = _words(value)
            found.append(label)
            if label not in classes:
                shown = "is missing" if value is None else f"{label!r} is no class"
                faults.setdefault(at, f"label {shown}; model.toml has: {', '.join(self._recipe.file.labels)}")
        return found

    def _refuse_breaking(self, tensors: dict[str, NDArray[Any] | Ragged], rows: int, faults: Faults) -> None:
        """All rows in one check where all fit; else one by one, to name those that do not."""
        if not faults and not any(isinstance(found, Ragged) for found in tensors.values()):
            try:
                self._check({name: found for name, found in tensors.items() if not isinstance(found, Ragged)})
            except SignatureMismatch:
                pass
            else:
                return
        for at in range(rows):
            if at not in faults:
                try:
                    self._check(_one(tensors, at))
                except SignatureMismatch as error:
                    faults[at] = str(error)

    def _row(
        self,
        batch: pa.RecordBatch,
        tensors: dict[str, NDArray[Any] | Ragged],
        label: str,
        at: int,
        faults: Faults,
    ) -> dict[str, Any] | None:
        inputs = encode_row(_one(tensors, at), 0)
        columns, key = self._columns, ""
        if columns.key is None:
            content = hashlib.sha256(inputs + label.encode()).hexdigest()[:24]
            self._contents[content] += 1
            key = content if self._contents[content] == 1 else f"{content}-{self._contents[content]}"
        else:
            key = _words(batch.column(columns.key)[at].as_py())
            if not key or key in self.keys:
                faults[at] = f"key {key!r} {'was there before' if key else 'is missing'}; a key names one row"
                return None
        self.keys.add(key)
        group = _words(batch.column(columns.group)[at].as_py()) if columns.group else ""
        request = f"{self._recipe.name}-row-{key}"
        return {"request_id": request, "group": group or request, "label": label, "inputs": inputs}


def _one(tensors: dict[str, NDArray[Any] | Ragged], at: int) -> dict[str, NDArray[Any]]:
    """One row with a batch axis of 1."""
    return {
        name: np.asarray(found.cells[at])[None] if isinstance(found, Ragged) else found[at : at + 1]
        for name, found in tensors.items()
    }


def _words(value: Any) -> str:
    """A cell as text: a class or key that a database holds as 3.0 is written 3."""
    if value is None:
        return ""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def _commit(recipe: Recipe, lake: str, spool: Path, done: ImportedTable, now: dt.datetime) -> None:
    """Samples first: a label without its sample would be of no use."""
    there, labels = set(imported(lake, SAMPLES, recipe.name, "group")), imported(lake, LABELS, recipe.name, "label")
    at_ms = int(now.timestamp() * 1000)
    common: dict[str, Any] = {
        "device": IMPORTED, "model": recipe.name, "package": "", "at_ms": at_ms, "day": now.strftime("%Y-%m-%d"),
        "reason": "import", "inclusion_probability": 1.0, "prediction": "", "confidence": 0.0, "margin": 0.0,
        "outputs": b"\x80", "source": IMPORTED, "labelled_at_ms": at_ms,
    }  # fmt: skip

    def spooled() -> Iterator[list[dict[str, Any]]]:
        with pq.ParquetFile(spool) as file:
            for batch in file.iter_batches(batch_size=1024):
                yield [common | row for row in batch.to_pylist()]

    done.new = append_batches(
        lake, SAMPLES, ([row for row in rows if row["request_id"] not in there] for rows in spooled())
    )
    done.labelled = append_batches(
        lake, LABELS, ([row for row in rows if labels.get(row["request_id"]) != row["label"]] for rows in spooled())
    )
