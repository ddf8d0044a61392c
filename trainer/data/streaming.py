"""Rows in batches, shuffled anew on each pass: from memory, or from a store on disk in bounded memory.

A batch is the same whoever asks for it: any number of processes share out the same global batches, so that what is
learnt does not depend on how many there are.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from trainer.data.row_store import RowStore
from trainer.data.rows import SENT
from trainer.errors import DatasetError

# Inputs by name, class indices int64[B], weights float32[B].
Batch = tuple[dict[str, NDArray[Any]], NDArray[np.int64], NDArray[np.float32]]
# A window is shuffled in memory; two are held, one read while the other is trained on.
_WINDOW_BYTES = 48 << 20
_WINDOW_GROUPS = (4, 64)


class RowSource(Protocol):
    """N rows that can be had in batches."""

    def __len__(self) -> int:
        """N."""

    def steps(self, size: int) -> int:
        """How many batches one pass takes."""

    def batches(self, *, size: int, seed: int | None, epoch: int = 0, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """One pass.

        Args:
            size: Rows of a global batch at most; all batches are of nearly the same size, so that none is tiny.
            seed, epoch: Of the shuffle; without a seed the order is kept.
            rank, world: Which share of each global batch; all ranks get as many batches, each with a row at least.
        Yields:
            Inputs by name, targets and weights of this rank's share; the caller may write to them.
        Raises:
            DatasetError: There are fewer rows than ranks to share a batch.
        """
        ...


class MemoryRows:
    """Rows in memory.

    Args:
        inputs: By name; axis 0 is N.
        targets: int64[N].
        weights: What each row counts, [N].
    """

    def __init__(self, inputs: Mapping[str, NDArray[Any]], targets: NDArray[np.int64], weights: NDArray[Any]) -> None:
        self._inputs, self._targets, self._weights = dict(inputs), targets, weights.astype(np.float32)

    def __len__(self) -> int:
        return len(self._targets)

    def steps(self, size: int) -> int:
        """See :class:`RowSource`."""
        return math.ceil(len(self) / size)

    def batches(self, *, size: int, seed: int | None, epoch: int = 0, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """See :class:`RowSource`; the shuffle is over all rows."""
        edges = _edges(len(self), size, world)
        order = np.arange(len(self)) if seed is None else _generator(seed, epoch).permutation(len(self))
        for first, end in itertools.pairwise(edges):
            at = order[first + (end - first) * rank // world : first + (end - first) * (rank + 1) // world]
            yield {name: array[at] for name, array in self._inputs.items()}, self._targets[at], self._weights[at]


class StoredRows:
    """Rows of a store on disk. Can be pickled: another process opens the same files.

    Rows lie there in the order of the hash of their key, so that each row group is a fair sample of all; on each pass
    the groups are shuffled, and the rows inside a window of some groups.

    Args:
        store: Where the inputs lie.
        chosen: bool[M] over the store's dataset rows: which of them are meant; None for all.
        weights: What each of the M rows counts; None: all the same.
    """

    def __init__(
        self, store: RowStore, *, chosen: NDArray[np.bool_] | None = None, weights: NDArray[Any] | None = None
    ) -> None:
        self.store = store
        self._names = [name for name in store.file.tensors if not name.startswith(SENT)]
        asked = np.ones(len(store), dtype=bool) if chosen is None else chosen
        counts = np.ones(len(store), dtype=np.float32) if weights is None else weights.astype(np.float32)
        if len(asked) != len(store) or len(counts) != len(store):
            raise DatasetError(f"{store.folder}: has {len(store)} rows, {len(asked)} masked and {len(counts)} weighted")
        # By place in the store.
        self._chosen, self._weights = asked[store.order], counts[store.order]

    def __len__(self) -> int:
        return int(self._chosen.sum())

    def steps(self, size: int) -> int:
        """See :class:`RowSource`."""
        return math.ceil(len(self) / size)

    def batches(self, *, size: int, seed: int | None, epoch: int = 0, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """See :class:`RowSource`; without a seed the order is that of the store."""
        edges = _edges(len(self), size, world)
        self.store.touch()
        windows = self._own(self._windows(seed, epoch), edges, rank, world)
        pending: list[Batch] = []
        number = 0
        for rows, numbers in self._read_ahead(windows):
            cuts = np.searchsorted(numbers, np.arange(numbers[0], numbers[-1] + 2))
            for at, (first, end) in enumerate(itertools.pairwise(cuts), int(numbers[0])):
                if at > number:
                    yield _joined(pending)
                    pending, number = [], at
                pending.append(_cut(rows, int(first), int(end)))
        yield _joined(pending)

    def _windows(self, seed: int | None, epoch: int) -> Iterator[NDArray[np.int64]]:
        """Places in the store, a window at a time, in the order of this pass; the same on every rank."""
        groups = np.arange(self.store.groups)
        generator = None
        if seed is not None:
            generator = _generator(seed, epoch)
            groups = generator.permutation(groups)
        fewest, most = _WINDOW_GROUPS
        wide = max(fewest, min(most, _WINDOW_BYTES // max(1, self.store.group_bytes)))
        size = self.store.group_rows
        for first in range(0, len(groups), wide):
            spans = [
                np.arange(group * size, min((group + 1) * size, len(self.store))) for group in groups[first:][:wide]
            ]
            places = np.concatenate(spans)
            places = places[self._chosen[places]]
            yield places if generator is None else generator.permutation(places)

    @staticmethod
    def _own(
        windows: Iterable[NDArray[np.int64]], edges: NDArray[np.int64], rank: int, world: int
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Of each window the places that are this rank's, and the number of the batch that each belongs to."""
        passed = 0
        for places in windows:
            at = np.arange(passed, passed + len(places))
            passed += len(places)
            numbers = np.searchsorted(edges, at, side="right") - 1
            first, size = edges[numbers], edges[numbers + 1] - edges[numbers]
            mine = (at >= first + size * rank // world) & (at < first + size * (rank + 1) // world)
            if mine.any():
                yield places[mine], numbers[mine]

    def _read_ahead(
        self, windows: Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]
    ) -> Iterator[tuple[Batch, NDArray[np.int64]]]:
        """The rows of each window; the next one is read while this one is used."""
        with ThreadPoolExecutor(1, thread_name_prefix="rows") as pool:
            ahead: tuple[Future[Batch], NDArray[np.int64]] | None = None
            for places, numbers in windows:
                following = pool.submit(self._load, places), numbers
                if ahead is not None:
                    yield ahead[0].result(), ahead[1]
                ahead = following
            if ahead is not None:
                yield ahead[0].result(), ahead[1]

    def _load(self, places: NDArray[np.int64]) -> Batch:
        return self.store.read(places, self._names), self.store.targets[places], self._weights[places]


def _generator(seed: int, epoch: int) -> np.random.Generator:
    return np.random.default_rng([seed & 0xFFFF_FFFF_FFFF_FFFF, epoch])


def _edges(rows: int, size: int, world: int) -> NDArray[np.int64]:
    """Where the global batches begin and end, int64[steps + 1]."""
    if rows == 0:
        raise DatasetError("there are no rows to make batches of")
    steps = math.ceil(rows / size)
    if rows // steps < world:
        raise DatasetError(f"{rows} rows in batches of {size} cannot be shared out among {world} processes; use fewer")
    return np.arange(steps + 1, dtype=np.int64) * rows // steps


def _cut(rows: Batch, first: int, end: int) -> Batch:
    inputs, targets, weights = rows
    return {name: array[first:end] for name, array in inputs.items()}, targets[first:end], weights[first:end]


def _joined(parts: list[Batch]) -> Batch:
    if len(parts) == 1:
        return parts[0]
    inputs = {name: np.concatenate([part[0][name] for part in parts]) for name in parts[0][0]}
    return inputs, np.concatenate([part[1] for part in parts]), np.concatenate([part[2] for part in parts])
