"""Rows as the batches of one process: its share of each step, which has the same rows at any number of processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.data.streaming import Batch as Arrays
from trainer.data.streaming import RowSource
from trainer.front_end import FrontEnd

Batch = tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]
# Of a batch: inputs by name, and a generator to draw from.
Augment = Callable[[dict[str, torch.Tensor], torch.Generator], dict[str, torch.Tensor]]
# Of a batch's inputs, what the network takes.
Transform = Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]


@dataclass(frozen=True, kw_only=True)
class Steps:
    """How the rows of an epoch become steps of the optimiser, and these the batches of each process.

    A step has ``batch_size`` rows at any number of processes, so that a group that grows or shrinks learns alike: each
    takes its share, in ``pieces`` of at most ``device_rows`` whose gradients add up.
    """

    rows: RowSource
    batch_size: int
    world: int = 1
    device_rows: int = 0

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return self.rows.steps(self.batch_size)

    @property
    def pieces(self) -> int:
        """Batches of one process in a step, each of at least one row."""
        if not self.device_rows:
            return 1
        smallest = len(self.rows) // self.steps // self.world
        largest = math.ceil(math.ceil(len(self.rows) / self.steps) / self.world)
        return max(1, min(math.ceil(largest / self.device_rows), smallest))


class TrainingBatches:
    """What one process trains on; goes on in the middle of an epoch where it was told to.

    Args:
        augment: The recipe's own change of each batch.
        transform: What stands before the network on devices too; after ``augment``, which makes inputs that
            applications might send.
    """

    def __init__(
        self,
        steps: Steps,
        *,
        seed: int,
        rank: int = 0,
        augment: Augment | None = None,
        transform: Transform | None = None,
    ) -> None:
        self._steps, self._seed, self._rank, self._augment = steps, seed, rank, augment
        self._transform = transform
        self._length = steps.steps * steps.pieces
        self.epoch = 0
        self._given = self._skip = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Batch]:
        steps, at = self._steps, 0
        source = steps.rows.batches(
            size=steps.batch_size, seed=self._seed, epoch=self.epoch, rank=self._rank, world=steps.world
        )
        skip, self._skip = self._skip, 0
        for batch in source:
            for piece in range(steps.pieces):
                at += 1
                if at <= skip:
                    continue
                self._given = 0 if at == self._length else at
                yield self._prepared(_piece(batch, piece, steps.pieces), at)

    def _prepared(self, batch: Arrays, at: int) -> Batch:
        inputs, targets, weights = tensors(batch)
        if self._augment is not None:
            generator = torch.Generator().manual_seed(mixed(self._seed, self.epoch, at, self._rank))
            inputs = self._augment(inputs, generator)
        if self._transform is not None:
            inputs = self._transform(inputs)
        return inputs, targets, weights

    def state_dict(self) -> dict[str, int]:
        """Where in the epoch it is (called by Lightning for a checkpoint)."""
        return {"given": self._given, "pieces": self._steps.pieces}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from there (called by Lightning on resumption), also where steps have become other pieces since."""
        self._skip = state["given"] * self._steps.pieces // state["pieces"]


@dataclass(frozen=True)
class EncodedRows:
    """Rows whose text becomes numbers when they are asked for."""

    rows: RowSource
    front_end: FrontEnd

    def __len__(self) -> int:
        return len(self.rows)

    def steps(self, size: int) -> int:
        """As :meth:`RowSource.steps`."""
        return self.rows.steps(size)

    def batches(
        self, *, size: int, seed: int | None, epoch: int = 0, rank: int = 0, world: int = 1
    ) -> Iterator[Arrays]:
        """As :meth:`RowSource.batches`."""
        for inputs, targets, weights in self.rows.batches(size=size, seed=seed, epoch=epoch, rank=rank, world=world):
            yield self.front_end.encode(inputs), targets, weights


class ValidationBatches:
    """What stops training: every process goes through all of it, so that each comes to the same number by itself."""

    def __init__(self, rows: RowSource, *, size: int, transform: Transform | None = None) -> None:
        self._rows, self._size, self._transform = rows, size, transform

    def __len__(self) -> int:
        return self._rows.steps(self._size)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._rows.batches(size=self._size, seed=None, epoch=0):
            inputs, targets, weights = tensors(batch)
            yield inputs if self._transform is None else self._transform(inputs), targets, weights


def tensors(batch: Arrays) -> Batch:
    """The same in torch; arrays that may be written to are shared, not copied."""
    inputs, targets, weights = batch
    return {name: _tensor(array) for name, array in inputs.items()}, _tensor(targets), _tensor(weights)


def mixed(*numbers: int) -> int:
    """A 63-bit number that depends on all of them (splitmix64, Steele et al. 2014): the seed of one batch."""
    state = 0
    for number in numbers:
        state = (state ^ (number & 0xFFFFFFFFFFFFFFFF)) + 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1


def _piece(batch: Arrays, piece: int, pieces: int) -> Arrays:
    if pieces == 1:
        return batch
    inputs, targets, weights = batch
    rows = len(targets)
    at = slice(rows * piece // pieces, rows * (piece + 1) // pieces)
    return {name: array[at] for name, array in inputs.items()}, targets[at], weights[at]


def _tensor(array: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(array if array.flags.writeable else np.array(array))
