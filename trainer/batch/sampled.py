"""Samples of the lake as a batch reads them: each row's inputs are a message of their own, of whatever shape it had."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from edge_agent.contract.errors import MessageError
from edge_agent.contract.signature import Signature, TensorSpec
from edge_agent.contract.tensors import Tensor
from trainer.data.tensors import Faults, Ragged

_decode = msgspec.msgpack.Decoder(dict[str, Tensor]).decode


def sampled_tensors(signature: Signature, column: pa.Array, faults: Faults) -> dict[str, Ragged]:
    """The inputs of N sampled rows, not checked yet.

    Args:
        column: msgpack of ``dict[str, Tensor]`` a row, with or without a batch axis of 1.
        faults: Takes the rows that cannot be read.
    """
    cells = {spec.name: np.empty(len(column), dtype=object) for spec in signature.inputs}
    for at, blob in enumerate(column.to_pylist()):
        try:
            row = _decode(blob or b"")
            for spec in signature.inputs:
                cells[spec.name][at] = _cell(spec, row)
        except (msgspec.DecodeError, MessageError) as error:
            faults.setdefault(at, f"sample: {error}")
    return {name: Ragged(values) for name, values in cells.items()}


def by_shape(ragged: dict[str, NDArray[Any]], positions: NDArray[np.int64]) -> Sequence[NDArray[np.int64]]:
    """Rows that can stand in one array, together: those of the same shapes and datatypes."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for at in positions.tolist():
        groups.setdefault(tuple((cells[at].shape, cells[at].dtype) for cells in ragged.values()), []).append(at)
    return [np.array(group, dtype=np.int64) for group in groups.values()]


def _cell(spec: TensorSpec, row: dict[str, Tensor]) -> NDArray[Any]:
    if spec.name not in row:
        raise MessageError(f"it lacks the input '{spec.name}'; it has: {', '.join(sorted(row)) or 'none'}")
    array = row[spec.name].array()
    if array.ndim == len(spec.shape):
        if len(array) != 1:
            raise MessageError(f"input '{spec.name}' has {len(array)} rows, not one")
        array = array[0]
    # A sample may hold what the model saw: a fill that lies outside the constraint stands for a missing value again.
    if spec.constraint.fill is not None and spec.constraint.nullable and array.dtype.kind == "f":
        return np.where(array == array.dtype.type(spec.constraint.fill), array.dtype.type(np.nan), array)
    return array
