"""Inputs of sampled rows, as the lake holds them, into arrays: checked, clipped and filled as a device would."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.checking import InputCheck
from edge_agent.contract.errors import MessageError, SignatureMismatch
from edge_agent.contract.signature import Signature, TensorSpec
from edge_agent.contract.tensors import Datatype, Tensor
from trainer.data.row_file import TensorShapes
from trainer.data.rows import SENT
from trainer.errors import DatasetError

# An input of one row as the model sees it, and as it was sent: the same array where nothing was changed.
_Cell = tuple[NDArray[Any], NDArray[Any]]
_WRONG = (msgspec.DecodeError, MessageError, DatasetError, SignatureMismatch)
Shapes = Mapping[str, tuple[int, ...]]


class _OtherShape(DatasetError):
    """A row that is as the signature says, but not of the shape of the rows before."""


@dataclass(frozen=True)
class DecodedInputs:
    """Inputs of N sampled rows.

    Args:
        inputs: By name, of the rows that fit the signature alone; axis 0 is their number. As the model sees them;
            ``sent`` as applications send them: the same arrays where nothing was filled or clipped.
        fits: bool[N]: which of the N rows those are.
        broken: bool[N]: rows that break the signature; the others that do not fit are of another shape.
        digests: SHA-256 of each fitting row as the lake holds it.
        complaint: What is wrong with the first row that does not fit; empty where all do.
    """

    inputs: dict[str, NDArray[Any]]
    sent: dict[str, NDArray[Any]]
    fits: NDArray[np.bool_]
    broken: NDArray[np.bool_]
    digests: list[bytes]
    complaint: str


class RowDecoder:
    """Decodes the rows of one model, some at a time.

    Rows of one dataset have one shape, also where the signature leaves an axis open: that of the first row that fits.

    Args:
        shapes: Of a row by input, where it is known already.
    """

    def __init__(self, signature: Signature, shapes: Shapes | None = None) -> None:
        self._signature, self._check = signature, InputCheck(signature)
        self._shapes: Shapes | None = shapes

    def tensors(self) -> TensorShapes:
        """What a file of these rows holds: inputs, and beside those that may be filled or clipped what was sent."""
        found: TensorShapes = {}
        for spec in self._signature.inputs:
            kind = "object" if spec.datatype is Datatype.BYTES else spec.datatype.numpy.str
            shape = (self._shapes or {}).get(spec.name, tuple(axis or 0 for axis in spec.shape[1:]))
            found[spec.name] = (kind, shape)
            if _may_change(spec):
                found[f"{SENT}{spec.name}"] = (kind, shape)
        return found

    def decode(self, blobs: Sequence[bytes]) -> DecodedInputs:
        """The inputs of N rows; those that break the signature are set aside.

        Args:
            blobs: msgpack of ``dict[str, Tensor]``, each one row, with or without its batch axis of 1.
        """
        try:
            cells = self._together(blobs)
        except _WRONG:
            return self._one_by_one(blobs)
        none = np.zeros(len(blobs), dtype=bool)
        return self._found(cells, blobs, ~none, none, "")

    def _together(self, blobs: Sequence[bytes]) -> dict[str, _Cell]:
        """All rows in one check: many times faster, and enough where all fit."""
        rows = [self._read(blob) for blob in blobs]
        shapes = self._shapes or ({name: array.shape[1:] for name, array in rows[0].items()} if rows else {})
        for row in rows:
            self._same_shape(row, shapes)
        if not rows:
            return {spec.name: (empty(spec), empty(spec)) for spec in self._signature.inputs}
        sent = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
        checked = self._check(sent).inputs
        self._shapes = shapes
        return {name: (array, sent[name]) for name, array in checked.items()}

    def _one_by_one(self, blobs: Sequence[bytes]) -> DecodedInputs:
        columns: dict[str, list[_Cell]] = {spec.name: [] for spec in self._signature.inputs}
        fits, broken, complaint = np.zeros(len(blobs), dtype=bool), np.zeros(len(blobs), dtype=bool), ""
        for at, blob in enumerate(blobs):
            try:
                row = self._read(blob)
                checked = self._check(row).inputs
                self._same_shape(checked, self._shapes or {})
            except _WRONG as error:
                complaint = complaint or str(error)
                broken[at] = not isinstance(error, _OtherShape)
                continue
            self._shapes = self._shapes or {name: array.shape[1:] for name, array in checked.items()}
            fits[at] = True
            for name, array in checked.items():
                columns[name].append((array, row[name]))
        cells: dict[str, _Cell] = {}
        for spec in self._signature.inputs:
            found = columns[spec.name]
            seen = np.concatenate([seen for seen, _ in found]) if found else empty(spec)
            changed = any(seen is not given for seen, given in found)
            cells[spec.name] = (seen, np.concatenate([given for _, given in found]) if changed else seen)
        return self._found(cells, blobs, fits, broken, complaint)

    @staticmethod
    def _found(
        cells: dict[str, _Cell],
        blobs: Sequence[bytes],
        fits: NDArray[np.bool_],
        broken: NDArray[np.bool_],
        complaint: str,
    ) -> DecodedInputs:
        digests = [hashlib.sha256(blob).digest() for blob, fit in zip(blobs, fits, strict=True) if fit]
        inputs = {name: seen for name, (seen, _) in cells.items()}
        sent = {name: given for name, (_, given) in cells.items()}
        return DecodedInputs(inputs, sent, fits, broken, digests, complaint)

    def _read(self, blob: bytes) -> dict[str, NDArray[Any]]:
        """One row by input name, with a batch axis of 1, as it was sent."""
        tensors = msgspec.msgpack.decode(blob, type=dict[str, Tensor])
        row = {}
        for spec in self._signature.inputs:
            if spec.name not in tensors:
                raise DatasetError(f"it lacks the input '{spec.name}'; it has: {', '.join(sorted(tensors)) or 'none'}")
            array = tensors[spec.name].array()
            row[spec.name] = _unfilled(spec, array if array.ndim == len(spec.shape) else array[None])
        return row

    @staticmethod
    def _same_shape(row: dict[str, NDArray[Any]], shapes: Shapes) -> None:
        for name, array in row.items():
            if array.ndim == 0 or len(array) != 1:
                raise DatasetError(f"input '{name}' has the shape {list(array.shape)}, which is not one row")
            if array.shape[1:] != (known := shapes.get(name, array.shape[1:])):
                raise _OtherShape(
                    f"input '{name}' is of shape {list(array.shape[1:])}, the dataset's rows are of {list(known)}: "
                    "rows of one dataset have one shape, that of the oldest; cut them to one length"
                )


def decode_inputs(blobs: Sequence[bytes], signature: Signature) -> DecodedInputs:
    """The inputs of N sampled rows; see :meth:`RowDecoder.decode`."""
    return RowDecoder(signature).decode(blobs)


def joined(parts: Sequence[DecodedInputs], signature: Signature) -> DecodedInputs:
    """Rows that were decoded some at a time, one after the other."""
    if len(parts) == 1:
        return parts[0]
    inputs: dict[str, NDArray[Any]] = {}
    sent: dict[str, NDArray[Any]] = {}
    for spec in signature.inputs:
        full = [part for part in parts if len(part.digests)]
        inputs[spec.name] = np.concatenate([part.inputs[spec.name] for part in full]) if full else empty(spec)
        changed = any(part.sent[spec.name] is not part.inputs[spec.name] for part in full)
        sent[spec.name] = np.concatenate([part.sent[spec.name] for part in full]) if changed else inputs[spec.name]
    return DecodedInputs(
        inputs,
        sent,
        np.concatenate([part.fits for part in parts]) if parts else np.zeros(0, dtype=bool),
        np.concatenate([part.broken for part in parts]) if parts else np.zeros(0, dtype=bool),
        [digest for part in parts for digest in part.digests],
        next((part.complaint for part in parts if part.complaint), ""),
    )


def empty(spec: TensorSpec) -> NDArray[Any]:
    """No rows of an input."""
    return np.empty((0, *(axis or 0 for axis in spec.shape[1:])), dtype=spec.datatype.numpy)


def _unfilled(spec: TensorSpec, array: NDArray[Any]) -> NDArray[Any]:
    """Rows may hold what a model saw: a fill that lies outside the constraint stands for a missing value again."""
    if spec.constraint.fill is None or not spec.constraint.nullable or array.dtype.kind != "f":
        return array
    return np.where(array == array.dtype.type(spec.constraint.fill), array.dtype.type(np.nan), array)


def _may_change(spec: TensorSpec) -> bool:
    constraint = spec.constraint
    return bool(
        constraint.nullable
        or constraint.policies
        or constraint.encoding
        or constraint.number is not None
        or constraint.date is not None
    )
