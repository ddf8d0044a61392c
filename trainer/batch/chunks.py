"""A chunk of the input becomes rows of the table of answers, and rows of the table of those set aside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from edge_agent.contract.batch import (
    CONFIDENCE,
    KEY,
    KEY_SEPARATOR,
    LOGICAL_TIME,
    MODEL,
    PACKAGE,
    PREDICTION,
    REASON,
    ROW,
    SOURCE,
    VERSION,
    BatchJob,
    LakeInput,
)
from edge_agent.contract.tensors import Datatype
from trainer.batch.errors import InputUnreadable
from trainer.batch.inputs.spool import FAULT
from trainer.batch.model import BatchModel
from trainer.batch.sampled import by_shape, sampled_tensors
from trainer.data.tensors import Faults, Ragged, columns_fault, tensor

OUTPUT_PREFIX = "output_"
_LAKE_KEY = ("device", "request_id")
_LAKE_INPUTS = "inputs"
REJECTED_SCHEMA = pa.schema(
    [
        (KEY, pa.string()),
        (REASON, pa.string()),
        (SOURCE, pa.string()),
        (ROW, pa.int64()),
        (MODEL, pa.string()),
        (VERSION, pa.string()),
        (PACKAGE, pa.string()),
    ]
)


class Answers(NamedTuple):
    """What became of a chunk."""

    answers: pa.Table
    rejected: pa.Table
    noted: Counter[str]


class Chunks:
    """Answers chunks of one input; may be called from several threads at once.

    Args:
        schema: Of the input, partition columns too.
        where: What the schema is of, for errors.
    Raises:
        InputUnreadable: A column that the job or the model needs is missing, or can never be what is needed.
    """

    def __init__(self, job: BatchJob, model: BatchModel, schema: pa.Schema, where: str) -> None:
        self._job, self._model, self._where, self.input_schema = job, model, where, schema
        self._lake = isinstance(job.input, LakeInput)
        self.key = _LAKE_KEY if self._lake else job.key
        self._columns = {} if self._lake else _mapped(job, model)
        needed = [*self.key, *job.keep, *(name for names in self._columns.values() for name in names)]
        needed += [_LAKE_INPUTS] if self._lake else []
        self.columns = list(dict.fromkeys(needed))
        self._check(schema)
        self.schema = self._schema(schema)
        self._labels = pa.array(model.task.labels, pa.string())
        manifest = model.package.manifest
        self._constants = {MODEL: manifest.name, VERSION: manifest.version, PACKAGE: model.package.digest}

    def answer(self, chunk: pa.RecordBatch, rows: NDArray[np.int64], source: str) -> Answers:
        """Answer a chunk.

        Args:
            rows: The number of each of its rows in the source.
        """
        faults: Faults = {}
        keys = self.keys(chunk)
        if FAULT in chunk.schema.names:
            faults |= dict(enumerate(chunk.column(FAULT).to_pylist()))
        self._fault_keys(chunk, faults)
        noted: Counter[str] = Counter()
        tables = []
        for positions, inputs in self._inputs(chunk, faults):
            answered = self._model.answer(inputs)
            faults |= {int(positions[at]): why for at, why in answered.faults.items()}
            for one in answered.noted:
                noted[f"{one.tensor}: {one.rule} {one.policy}"] += one.rows
            if len(answered.rows):
                tables.append(self._table(chunk, keys, positions[answered.rows], answered.outputs))
        table = pa.concat_tables(tables) if tables else self.schema.empty_table()
        return Answers(table, self._rejected(keys, rows, source, faults), noted)

    def _inputs(self, chunk: pa.RecordBatch, faults: Faults) -> Iterator[tuple[NDArray[np.int64], dict[str, Any]]]:
        """The rows that may be asked, with their positions: all at once, but for those of different lengths."""
        found = self._tensors(chunk, faults)
        positions = np.arange(len(chunk), dtype=np.int64)
        if faults:
            positions = np.delete(positions, sorted(faults))
        if not len(positions):
            return
        ragged = {name: value.cells for name, value in found.items() if isinstance(value, Ragged)}
        dense = {name: value for name, value in found.items() if not isinstance(value, Ragged)}
        for some in by_shape(ragged, positions) if ragged else (positions,):
            every = len(some) == len(chunk)
            stacked = {name: np.stack(list(cells[some])) for name, cells in ragged.items()}
            yield some, {name: array if every else array[some] for name, array in dense.items()} | stacked

    def _tensors(self, chunk: pa.RecordBatch, faults: Faults) -> Mapping[str, NDArray[Any] | Ragged]:
        if self._lake:
            return sampled_tensors(self._model.signature, chunk.column(_LAKE_INPUTS), faults)
        return {
            spec.name: tensor(spec, [chunk.column(name) for name in self._columns[spec.name]], faults)
            for spec in self._model.signature.inputs
        }

    def keys(self, chunk: pa.RecordBatch) -> pa.Array:
        """The key of each row, as text; null where a part of it is missing."""
        parts = [_decoded(chunk.column(name)).cast(pa.string()) for name in self.key]
        return parts[0] if len(parts) == 1 else pc.binary_join_element_wise(*parts, KEY_SEPARATOR)

    def _fault_keys(self, chunk: pa.RecordBatch, faults: Faults) -> None:
        for name in self.key:
            column = chunk.column(name)
            if column.null_count:
                for at in np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False)):
                    faults.setdefault(int(at), f"key: column '{name}' is missing")

    def _table(
        self, chunk: pa.RecordBatch, keys: pa.Array, positions: NDArray[np.int64], outputs: Mapping[str, NDArray[Any]]
    ) -> pa.Table:
        every = len(positions) == len(chunk)
        chosen = None if every else pa.array(positions)
        probabilities = outputs[self._model.task.output].reshape(len(positions), -1)
        best = probabilities.argmax(axis=1)
        confidence = np.take_along_axis(probabilities, best[:, None], axis=1)[:, 0]
        kept = [_decoded(chunk.column(name)).cast(self.schema.field(name).type) for name in self._job.keep]
        columns: list[Any] = [keys if chosen is None else keys.take(chosen), self._labels.take(pa.array(best))]
        columns += [pa.array(confidence.astype(np.float32, copy=False))]
        columns += [_column(outputs[name], self.schema.field(OUTPUT_PREFIX + name).type) for name in self._job.outputs]
        columns += kept if chosen is None else [column.take(chosen) for column in kept]
        columns += [pa.repeat(value, len(positions)) for value in self._constants.values()]
        return pa.table(columns, schema=self.schema)

    def _rejected(self, keys: pa.Array, rows: NDArray[np.int64], source: str, faults: Faults) -> pa.Table:
        if not faults:
            return REJECTED_SCHEMA.empty_table()
        at = np.array(sorted(faults), dtype=np.int64)
        columns = [
            keys.take(pa.array(at)),
            pa.array([faults[int(one)] for one in at], pa.string()),
            pa.repeat(source, len(at)),
            pa.array(rows[at], pa.int64()),
            *(pa.repeat(value, len(at)) for value in self._constants.values()),
        ]
        return pa.table(columns, schema=REJECTED_SCHEMA)

    def _check(self, schema: pa.Schema) -> None:
        if missing := [name for name in self.columns if name not in schema.names]:
            raise InputUnreadable(
                f"{self._where}: has no column {', '.join(repr(name) for name in missing)}; it has: "
                f"{', '.join(schema.names)}. Say under [columns] which column holds which input of "
                f"'{self._model.package.manifest.name}'"
            )
        for spec in self._model.signature.inputs if not self._lake else ():
            names = self._columns[spec.name]
            if fault := columns_fault(spec, [schema.field(name).type for name in names]):
                raise InputUnreadable(f"{self._where}: input '{spec.name}' from {', '.join(names)}: {fault}")

    def _schema(self, schema: pa.Schema) -> pa.Schema:
        """Of the table of answers, but for the logical time, which its kind of table puts where it belongs."""
        specs = {spec.name: spec for spec in self._model.signature.outputs}
        fields = [(KEY, pa.string()), (PREDICTION, pa.string()), (CONFIDENCE, pa.float32())]
        for name in self._job.outputs:
            spec = specs[name]
            kind = storable(
                pa.string() if spec.datatype is Datatype.BYTES else pa.from_numpy_dtype(spec.datatype.numpy)
            )
            one_value = all(axis == 1 for axis in spec.shape[1:])
            fields.append((OUTPUT_PREFIX + name, kind if one_value else pa.list_(kind)))
        fields += [(name, storable(schema.field(name).type)) for name in self._job.keep]
        fields += [(MODEL, pa.string()), (VERSION, pa.string()), (PACKAGE, pa.string())]
        return pa.schema(fields)


def storable(kind: pa.DataType) -> pa.DataType:
    """The type under which a column is kept: Delta tables have no unsigned numbers, halves or dictionaries."""
    if pa.types.is_dictionary(kind):
        return storable(kind.value_type)
    if pa.types.is_unsigned_integer(kind):
        return {8: pa.int16(), 16: pa.int32(), 32: pa.int64(), 64: pa.decimal128(20, 0)}[kind.bit_width]
    if pa.types.is_float16(kind):
        return pa.float32()
    if pa.types.is_timestamp(kind):
        return pa.timestamp("us", "UTC" if kind.tz is not None else None)
    if pa.types.is_large_string(kind) or pa.types.is_time(kind):
        return pa.string()
    if pa.types.is_date64(kind):
        return pa.date32()
    return pa.binary() if pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind) else kind


def with_logical_time(schema: pa.Schema) -> pa.Schema:
    """A table's schema with the column of the logical time."""
    return schema.append(pa.field(LOGICAL_TIME, pa.string()))


def _mapped(job: BatchJob, model: BatchModel) -> dict[str, tuple[str, ...]]:
    """The columns of each input."""
    known = [spec.name for spec in model.signature.inputs]
    if unknown := sorted(set(job.columns) - set(known)):
        name = model.package.manifest.name
        raise InputUnreadable(f"columns: model '{name}' has no input {unknown}; it has: {', '.join(known)}")
    found = {name: job.columns.get(name, name) for name in known}
    return {name: (names,) if isinstance(names, str) else names for name, names in found.items()}


def _decoded(column: pa.Array) -> pa.Array:
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _column(values: NDArray[Any], kind: pa.DataType) -> pa.Array:
    """An output as a column: a value a row, or its values in row-major order."""
    inner = kind.value_type if pa.types.is_list(kind) else kind
    if values.dtype == object:
        flat = pa.array([cell.decode() for cell in values.ravel()], pa.string())
    else:
        flat = pa.array(np.ascontiguousarray(values).ravel()).cast(inner)
    if not pa.types.is_list(kind):
        return flat
    width = len(flat) // max(1, len(values))
    return pa.ListArray.from_arrays(pa.array(np.arange(len(values) + 1, dtype=np.int32) * width), flat)
