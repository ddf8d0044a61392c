"""Labelled rows in memory: what a dataset is made of."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.checking import InputCheck
from edge_agent.contract.errors import MessageError, SignatureMismatch
from edge_agent.contract.signature import Signature, TensorSpec
from edge_agent.contract.tensors import Tensor
from trainer.errors import DatasetError

# An input of one row as the model sees it, and as it was sent: the same array where nothing was changed.
_Cell = tuple[NDArray[Any], NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows in columns of equal length N.

    Args:
        inputs: By name, as the model sees them; axis 0 is N.
        sent: As applications send them, missing values missing; the same arrays where nothing was filled or clipped.
        targets: Class index, int64[N]; -1 where no label is known.
        devices, groups, packages, predictions: object[N] of ``str``; a prediction is what the device's model answered.
        at_ms: When the device was asked, int64[N].
        probability: With which the row was drawn, float64[N] in 0 < p <= 1.
        uniform: bool[N]: drawn with a probability that does not depend on what the row shows.
    """

    inputs: dict[str, NDArray[Any]]
    sent: dict[str, NDArray[Any]]
    targets: NDArray[np.int64]
    devices: NDArray[Any]
    groups: NDArray[Any]
    packages: NDArray[Any]
    predictions: NDArray[Any]
    at_ms: NDArray[np.int64]
    probability: NDArray[np.float64]
    uniform: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, mask: NDArray[Any]) -> Rows:
        """The rows that a boolean mask or an index array chooses."""
        plain = [field.name for field in fields(self) if field.name not in {"inputs", "sent"}]
        columns = {name: getattr(self, name)[mask] for name in plain}
        inputs = {name: array[mask] for name, array in self.inputs.items()}
        sent = {name: inputs[name] if array is self.inputs[name] else array[mask] for name, array in self.sent.items()}
        return Rows(inputs=inputs, sent=sent, **columns)

    def weights(self, *, largest: float = 5.0) -> NDArray[np.float64]:
        """Inverse inclusion probabilities (Hajek 1971) of mean 1, float64[N]; clipped, so that no single row rules."""
        if not len(self):
            return np.empty(0)
        weight = 1.0 / self.probability
        weight = np.minimum(weight / weight.mean(), largest)
        return np.asarray(weight / weight.mean())


@dataclass(frozen=True)
class DecodedInputs:
    """Inputs of sampled rows.

    Args:
        inputs: By name, of the rows that fit the signature alone; axis 0 is their number. As the model sees them;
            ``sent`` as applications send them: the same arrays where nothing was filled or clipped.
        fits: bool[N]: which of the N rows those are.
        complaint: What is wrong with the first row that does not fit; empty where all do.
    """

    inputs: dict[str, NDArray[Any]]
    sent: dict[str, NDArray[Any]]
    fits: NDArray[np.bool_]
    complaint: str


def decode_inputs(blobs: list[bytes], signature: Signature) -> DecodedInputs:
    """The inputs of N sampled rows; those that break the signature are set aside.

    Args:
        blobs: msgpack of ``dict[str, Tensor]``, each one row, with or without its batch axis of 1.
    """
    check = InputCheck(signature)
    columns: dict[str, list[_Cell]] = {spec.name: [] for spec in signature.inputs}
    fits, complaint = np.zeros(len(blobs), dtype=bool), ""
    first: dict[str, _Cell] | None = None
    for at, blob in enumerate(blobs):
        try:
            row = _decode_row(blob, signature, check, first)
        except (msgspec.DecodeError, MessageError, DatasetError, SignatureMismatch) as error:
            complaint = complaint or str(error)
            continue
        first = first or row
        fits[at] = True
        for name, cell in row.items():
            columns[name].append(cell)
    inputs: dict[str, NDArray[Any]] = {}
    sent: dict[str, NDArray[Any]] = {}
    for spec in signature.inputs:
        cells = columns[spec.name]
        inputs[spec.name] = np.concatenate([seen for seen, _ in cells]) if cells else _empty(spec)
        changed = any(seen is not given for seen, given in cells)
        sent[spec.name] = np.concatenate([given for _, given in cells]) if changed else inputs[spec.name]
    return DecodedInputs(inputs, sent, fits, complaint)


def hash_share(text: str, salt: str) -> float:
    """A number in 0..1 that depends on the text alone: the same group falls on the same side on every machine."""
    return int.from_bytes(hashlib.sha256(f"{salt}:{text}".encode()).digest()[:8], "big") / 2**64


def encode_row(inputs: Mapping[str, NDArray[Any]], row: int) -> bytes:
    """One row as the lake's column ``inputs`` holds it, with a batch axis of 1."""
    return msgspec.msgpack.encode({name: Tensor.of(array[row : row + 1]) for name, array in inputs.items()})


def _decode_row(
    blob: bytes, signature: Signature, check: InputCheck, first: dict[str, _Cell] | None
) -> dict[str, _Cell]:
    """One row by input name, with a batch axis of 1, checked, clipped and filled as a device would."""
    tensors = msgspec.msgpack.decode(blob, type=dict[str, Tensor])
    row = {}
    for spec in signature.inputs:
        if spec.name not in tensors:
            raise DatasetError(f"it lacks the input '{spec.name}'; it has: {', '.join(sorted(tensors)) or 'none'}")
        array = tensors[spec.name].array()
        row[spec.name] = _unfilled(spec, array if array.ndim == len(spec.shape) else array[None])
    checked = check(row).inputs
    for name, array in checked.items():
        if len(array) != 1 or (first is not None and array.shape != first[name][0].shape):
            raise DatasetError(f"input '{name}' has the shape {list(array.shape)}, unlike the first row's")
    return {name: (array, row[name]) for name, array in checked.items()}


def _unfilled(spec: TensorSpec, array: NDArray[Any]) -> NDArray[Any]:
    """Rows may hold what a model saw: a fill that lies outside the constraint stands for a missing value again."""
    if spec.constraint.fill is None or not spec.constraint.nullable or array.dtype.kind != "f":
        return array
    return np.where(array == array.dtype.type(spec.constraint.fill), array.dtype.type(np.nan), array)


def _empty(spec: TensorSpec) -> NDArray[Any]:
    return np.empty((0, *(axis or 0 for axis in spec.shape[1:])), dtype=spec.datatype.numpy)
