"""Labelled rows: what a dataset is made of. Their inputs lie in memory, or on disk where they are many."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.tensors import Tensor
from trainer.data.row_store import RowStore

# Before the name of a tensor in a store: as it was sent, where that differs from what the model sees.
SENT = "sent:"
Inputs = Mapping[str, NDArray[Any]]


class StoredInputs(Mapping[str, NDArray[Any]]):
    """Inputs of N rows that lie on disk, by name. Asking for one by its name brings all N into memory.

    Args:
        at: int64[N]: places in the store.
        sent: As applications send them, instead of as the model sees them.
    """

    def __init__(self, store: RowStore, at: NDArray[np.int64], *, sent: bool = False) -> None:
        self.store, self.at, self.sent = store, at, sent
        known = store.file.tensors
        self._stored = {
            name: f"{SENT}{name}" if sent and f"{SENT}{name}" in known else name
            for name in known
            if not name.startswith(SENT)
        }

    def __getitem__(self, name: str) -> NDArray[Any]:
        stored = self._stored[name]
        return self.store.read(self.at, [stored])[stored]

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)

    def select(self, mask: NDArray[Any]) -> StoredInputs:
        """Some of the rows, still on disk."""
        return StoredInputs(self.store, self.at[mask], sent=self.sent)

    def take(self, mask: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Some of the rows, in memory."""
        found = self.store.read(self.at[mask], list(self._stored.values()))
        return {name: found[stored] for name, stored in self._stored.items()}


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows in columns of equal length N.

    Args:
        inputs: By name, as the model sees them; axis 0 is N.
        sent: As applications send them, missing values missing; the same arrays where nothing was filled or clipped.
        targets: Class index, int64[N]; -1 where no label is known.
        devices, groups, packages, predictions: object[N] of ``str``; a prediction is what the device's model answered.
        requests: object[N] of ``str``; with the device the key of a row.
        at_ms: When the device was asked, int64[N].
        probability: With which the row was drawn, float64[N] in 0 < p <= 1.
        uniform: bool[N]: drawn with a probability that does not depend on what the row shows.
    """

    inputs: Inputs
    sent: Inputs
    targets: NDArray[np.int64]
    devices: NDArray[Any]
    requests: NDArray[Any]
    groups: NDArray[Any]
    packages: NDArray[Any]
    predictions: NDArray[Any]
    at_ms: NDArray[np.int64]
    probability: NDArray[np.float64]
    uniform: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, mask: NDArray[Any]) -> Rows:
        """The rows that a boolean mask or an index array chooses, in memory."""
        inputs = _take(self.inputs, mask)
        if isinstance(self.sent, StoredInputs) or isinstance(self.inputs, StoredInputs):
            return self._with(mask, inputs, _take(self.sent, mask))
        same = {name for name, array in self.sent.items() if array is self.inputs[name]}
        sent = {name: inputs[name] if name in same else array[mask] for name, array in self.sent.items()}
        return self._with(mask, inputs, sent)

    def select(self, mask: NDArray[Any]) -> Rows:
        """As :meth:`take`; but inputs that lie on disk stay there."""
        if not isinstance(self.inputs, StoredInputs) or not isinstance(self.sent, StoredInputs):
            return self.take(mask)
        return self._with(mask, self.inputs.select(mask), self.sent.select(mask))

    @property
    def keys(self) -> list[str]:
        """``DEVICE/REQUEST`` of each row."""
        return [f"{device}/{request}" for device, request in zip(self.devices, self.requests, strict=True)]

    def weights(self, *, largest: float = 5.0) -> NDArray[np.float64]:
        """Inverse inclusion probabilities (Hajek 1971) of mean 1, float64[N]; clipped, so that no single row rules."""
        if not len(self):
            return np.empty(0)
        weight = 1.0 / self.probability
        weight = np.minimum(weight / weight.mean(), largest)
        return np.asarray(weight / weight.mean())

    def _with(self, mask: NDArray[Any], inputs: Inputs, sent: Inputs) -> Rows:
        plain = [field.name for field in fields(self) if field.name not in {"inputs", "sent"}]
        return Rows(inputs=inputs, sent=sent, **{name: getattr(self, name)[mask] for name in plain})


def _take(inputs: Inputs, mask: NDArray[Any]) -> dict[str, NDArray[Any]]:
    if isinstance(inputs, StoredInputs):
        return inputs.take(mask)
    return {name: array[mask] for name, array in inputs.items()}


def encode_row(inputs: Inputs, row: int) -> bytes:
    """One row as the lake's column ``inputs`` holds it, with a batch axis of 1."""
    return msgspec.msgpack.encode({name: Tensor.of(array[row : row + 1]) for name, array in inputs.items()})
