"""Columns of a table become tensors of a model's inputs; a cell that cannot be one sets its row aside, with the reason.

Missing cells are NaN in floats and empty in text, as the contract has them; in integers and in lists they are faults.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from edge_agent.contract.signature import TensorSpec
from edge_agent.contract.tensors import Datatype

# Position of a row in its chunk -> what is wrong with it.
Faults = dict[int, str]
_LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)


class Ragged(NamedTuple):
    """Cells of different lengths, for an open axis.

    Args:
        cells: object[N] of arrays, each the shape of one row.
    """

    cells: NDArray[Any]


def is_list(kind: pa.DataType) -> bool:
    """Whether a column's cells are lists."""
    return any(test(kind) for test in _LISTS)


def without_views(schema: pa.Schema) -> pa.Schema:
    """The schema without Arrow's view types, which Delta's writers leave in files and few functions take."""
    return pa.schema([pa.field(field.name, _plain(field.type)) for field in schema])


def _plain(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_binary_view(kind):
        return pa.binary()
    return pa.list_(_plain(kind.value_type)) if pa.types.is_list(kind) else kind


def tensor(spec: TensorSpec, columns: Sequence[pa.Array], faults: Faults) -> NDArray[Any] | Ragged:
    """One input of N rows.

    Args:
        columns: One that holds the cells, or several that make up the last axis.
        faults: Takes the rows whose cells cannot be what the signature says; their values in the tensor mean nothing.
    Returns:
        An array [N, ...] in the signature's dtype; Ragged where the signature leaves an axis open and cells are lists.
    """
    if len(columns) == 1 and is_list(columns[0].type):
        return _from_lists(spec, columns[0], faults)
    rows = len(columns[0])
    values = [_cells(spec, column, faults) for column in columns]
    shape = tuple(1 if axis is None else axis for axis in spec.shape[1:])
    if len(values) == 1:
        return values[0].reshape(rows, *shape)
    return np.stack(values, axis=1).reshape(rows, *_filled(spec, len(values)))


def columns_fault(spec: TensorSpec, types: Sequence[pa.DataType]) -> str:
    """Why columns of these types can never be the input; empty where they can."""
    tail = spec.shape[1:]
    open_axes = sum(axis is None for axis in tail)
    if len(types) == 1 and is_list(types[0]):
        return f"has {open_axes} open axes, and a list can tell the length of one" if open_axes > 1 else ""
    if any(is_list(kind) for kind in types):
        return "is made of several columns, of which one holds lists"
    fixed = math.prod(axis for axis in tail if axis is not None)
    if len(types) % fixed or (not open_axes and len(types) != fixed):
        return f"takes {fixed} values a row, the columns give {len(types)}"
    return ""


def _filled(spec: TensorSpec, values: int) -> tuple[int, ...]:
    """The shape of one row of so many values: an open axis takes what the others leave."""
    fixed = math.prod(axis for axis in spec.shape[1:] if axis is not None)
    return tuple(values // fixed if axis is None else axis for axis in spec.shape[1:])


def _from_lists(spec: TensorSpec, column: pa.Array, faults: Faults) -> NDArray[Any] | Ragged:
    rows = len(column)
    lengths = pc.list_value_length(column)
    if lengths.null_count:
        for at in np.flatnonzero(lengths.is_null().to_numpy(zero_copy_only=False)):
            faults.setdefault(int(at), f"input '{spec.name}': missing: the cell is null")
    counts = lengths.fill_null(-1).to_numpy(zero_copy_only=False)
    if None in spec.shape[1:]:
        return _ragged(spec, column, counts, faults)
    size = math.prod(axis for axis in spec.shape[1:] if axis is not None)
    fits = counts == size
    if not fits.all():
        for at in np.flatnonzero(~fits):
            faults.setdefault(int(at), f"input '{spec.name}': shape: expected {size} values, got {counts[at]}")
        column = column.filter(pa.array(fits))
    wrong: Faults = {}
    flat = _cells(spec, column.flatten(), wrong).reshape(-1, *(axis or 0 for axis in spec.shape[1:]))
    places = np.flatnonzero(fits)
    for cell, why in wrong.items():
        faults.setdefault(int(places[cell // size]), why)
    if len(flat) == rows:
        return flat
    dense = np.zeros((rows, *flat.shape[1:]), dtype=flat.dtype)
    if flat.dtype == object:
        dense.fill(b"")
    dense[fits] = flat
    return dense


def _ragged(spec: TensorSpec, column: pa.Array, counts: NDArray[Any], faults: Faults) -> Ragged:
    fixed = math.prod(axis for axis in spec.shape[1:] if axis is not None)
    wrong: Faults = {}
    flat = _cells(spec, column.flatten(), wrong)
    ends = np.cumsum(np.maximum(counts, 0))
    for at, why in wrong.items():
        faults.setdefault(int(np.searchsorted(ends, at, side="right")), why)
    cells = np.empty(len(counts), dtype=object)
    for at, (count, end) in enumerate(zip(counts.tolist(), ends.tolist(), strict=True)):
        if count < 1 or count % fixed:
            faults.setdefault(at, f"input '{spec.name}': shape: {max(count, 0)} values do not fill {_shown(spec)}")
            continue
        cells[at] = flat[end - count : end].reshape(_filled(spec, count))
    return Ragged(cells)


def _shown(spec: TensorSpec) -> str:
    return "[" + ", ".join("-1" if axis is None else str(axis) for axis in spec.shape[1:]) + "]"


def _cells(spec: TensorSpec, column: pa.Array, faults: Faults) -> NDArray[Any]:
    """Scalar cells in the dtype of the signature, [N]."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if spec.datatype is Datatype.BYTES:
        return _text(column)
    wanted = spec.datatype.numpy
    if column.null_count and wanted.kind != "f":
        for at in np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False)):
            faults.setdefault(int(at), f"input '{spec.name}': missing: the cell is null")
        column = column.fill_null(pa.scalar(0).cast(column.type)) if pa.types.is_primitive(column.type) else column
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return _read_numbers(spec, column, faults)
    if pa.types.is_decimal(column.type):
        column = column.cast(pa.float64())
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_boolean(column.type)):
        why = f"input '{spec.name}': datatype: expected {spec.datatype.value}, the column holds {column.type}"
        faults.update(dict.fromkeys(range(len(column)), why) | faults)
        return np.zeros(len(column), dtype=wanted)
    values: NDArray[Any] = column.to_numpy(zero_copy_only=False)
    return values if values.dtype == wanted else _narrowed(spec, values, faults)


def _narrowed(spec: TensorSpec, values: NDArray[Any], faults: Faults) -> NDArray[Any]:
    """The values in the signature's dtype: floats may lose digits, integers nothing."""
    wanted = spec.datatype.numpy
    with np.errstate(invalid="ignore", over="ignore"):
        found = values.astype(wanted)
        same = (found == values) if wanted.kind != "f" else np.isfinite(found) | ~np.isfinite(values)
    for at in np.flatnonzero(~same):
        faults.setdefault(int(at), f"input '{spec.name}': datatype: {values[at]} is no {spec.datatype.value}")
    return found


def _read_numbers(spec: TensorSpec, column: pa.Array, faults: Faults) -> NDArray[Any]:
    """Numbers written as text, which CSV files have; a word that is none sets its row aside."""
    wanted = pa.from_numpy_dtype(spec.datatype.numpy)
    try:
        values: NDArray[Any] = column.cast(wanted).to_numpy(zero_copy_only=False)
        return values.astype(spec.datatype.numpy, copy=False)
    except pa.ArrowInvalid:
        pass
    out = np.zeros(len(column), dtype=spec.datatype.numpy)
    for at, word in enumerate(column.to_pylist()):
        if word is None:
            if out.dtype.kind == "f":
                out[at] = np.nan
            continue
        try:
            out[at] = pa.scalar(word.strip()).cast(wanted).as_py()
        except pa.ArrowInvalid:
            faults.setdefault(at, f"input '{spec.name}': datatype: {word[:40]!r} is no {spec.datatype.value}")
    return out


def _text(column: pa.Array) -> NDArray[Any]:
    """Text or bytes as object[N] of ``bytes``; points in time as RFC 3339, numbers as they are written."""
    kind = column.type
    if pa.types.is_timestamp(kind):
        zone, mark = ("UTC", "Z") if kind.tz is not None else (None, "")
        column = pc.strftime(column.cast(pa.timestamp("s", zone), safe=False), format=f"%Y-%m-%dT%H:%M:%S{mark}")
    elif not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        column = column.cast(pa.string())
    out = np.empty(len(column), dtype=object)
    out[:] = [b"" if cell is None else cell for cell in column.cast(pa.binary()).to_pylist()]
    return out
