"""Labelled rows in memory: what a dataset is made of."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.errors import MessageError
from edge_agent.contract.signature import Signature, TensorSpec
from edge_agent.contract.tensors import Tensor
from trainer.errors import DatasetError


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows in columns of equal length N.

    Args:
        inputs: By name; axis 0 is N.
        targets: Class index, int64[N]; -1 where no label is known.
        devices, groups, packages, predictions: object[N] of ``str``; a prediction is what the device's model answered.
        at_ms: When the device was asked, int64[N].
        probability: With which the row was drawn, float64[N] in 0 < p <= 1.
        uniform: bool[N]: drawn with a probability that does not depend on what the row shows.
    """

    inputs: dict[str, NDArray[Any]]
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
        columns = {field.name: getattr(self, field.name)[mask] for field in fields(self) if field.name != "inputs"}
        return Rows(inputs={name: array[mask] for name, array in self.inputs.items()}, **columns)

    def weights(self, *, largest: float = 5.0) -> NDArray[np.float64]:
        """Inverse inclusion probabilities (Hajek 1971) of mean 1, float64[N]; clipped, so that no single row rules."""
        if not len(self):
            return np.empty(0)
        weight = 1.0 / self.probability
        weight = np.minimum(weight / weight.mean(), largest)
        return np.asarray(weight / weight.mean())


def decode_inputs(blobs: list[bytes], signature: Signature) -> dict[str, NDArray[Any]]:
    """The inputs of N sampled rows, by name; axis 0 is N.

    Args:
        blobs: msgpack of ``dict[str, Tensor]``, each one row, with or without its batch axis of 1.
    Raises:
        DatasetError: A row is not what the signature says; it names row and tensor.
    """
    columns: dict[str, list[NDArray[Any]]] = {spec.name: [] for spec in signature.inputs}
    for at, blob in enumerate(blobs):
        try:
            tensors = msgspec.msgpack.decode(blob, type=dict[str, Tensor])
            for spec in signature.inputs:
                columns[spec.name].append(_one_row(spec, tensors[spec.name].array()))
        except KeyError as error:
            raise DatasetError(f"row {at} of the lake's samples lacks the input {error}") from error
        except (msgspec.DecodeError, MessageError, DatasetError) as error:
            raise DatasetError(f"row {at} of the lake's samples: {error}") from error
    return {spec.name: np.stack(columns[spec.name]) if blobs else _empty(spec) for spec in signature.inputs}


def hash_share(text: str, salt: str) -> float:
    """A number in 0..1 that depends on the text alone: the same group falls on the same side on every machine."""
    return int.from_bytes(hashlib.sha256(f"{salt}:{text}".encode()).digest()[:8], "big") / 2**64


def concatenate(parts: list[Rows]) -> Rows:
    """All rows one after another."""
    first = parts[0]
    columns = {
        field.name: np.concatenate([getattr(part, field.name) for part in parts])
        for field in fields(first)
        if field.name != "inputs"
    }
    return Rows(
        inputs={name: np.concatenate([part.inputs[name] for part in parts]) for name in first.inputs}, **columns
    )


def encode_row(inputs: Mapping[str, NDArray[Any]], row: int) -> bytes:
    """One row as the lake's column ``inputs`` holds it, with a batch axis of 1."""
    return msgspec.msgpack.encode({name: Tensor.of(array[row : row + 1]) for name, array in inputs.items()})


def _one_row(spec: TensorSpec, array: NDArray[Any]) -> NDArray[Any]:
    if array.ndim == len(spec.shape) and len(array) == 1:
        array = array[0]
    fits = array.ndim == len(spec.shape) - 1 and all(
        want is None or want == have for want, have in zip(spec.shape[1:], array.shape, strict=True)
    )
    if not fits or array.dtype != spec.datatype.numpy:
        raise DatasetError(
            f"input '{spec.name}' is {array.dtype}{list(array.shape)}, the signature says "
            f"{spec.datatype.value}{[axis or -1 for axis in spec.shape[1:]]} a row"
        )
    return array


def _empty(spec: TensorSpec) -> NDArray[Any]:
    return np.empty((0, *(axis or 0 for axis in spec.shape[1:])), dtype=spec.datatype.numpy)
