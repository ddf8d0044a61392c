"""Requests of one package that were noted down and are looked at together."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.latency import BUCKETS
from edge_agent.contract.signature import Signature, TensorSpec
from edge_agent.contract.tensors import Datatype
from edge_agent.monitor.ids import Ids
from edge_agent.monitor.sampler import LARGEST_BLOCK, Draw, Lot

Tensors = Mapping[str, NDArray[Any]]

# Up to so many bytes a row is copied into columns: 0.3 us, and the request's own memory serves the next request at
# once, still in the processor's cache; to hold on to hundreds of requests instead costs misses on each of them.
_COPIED_BYTES = 2048
# What the columns of one package take in memory at most; long rows make a shorter block. Also so much of what is held
# is counted at once: of 1 MB of images, joined and widened to double precision, 8 MB stayed with the process.
_COLUMNS_BYTES = 256 * 1024
#: Rows that are counted together: the fixed part of it (0.5 ms) is then a tenth of the whole, which holds others up.
COUNTED_ROWS = 1024
# A row's probabilities that are kept as they are until somebody asks for them: 10,000 rows are remembered.
_KEPT_BYTES = 128

_Columns = list[tuple[str, NDArray[Any]]]

NO_DRAWS: Mapping[int, Draw] = {}


class Block:
    """What is noted between two looks; not thread-safe.

    Args:
        inputs, outputs: Names of the tensors that are counted.
        task: Name of the output with the probabilities.
    Attributes:
        copies: Whether rows are small enough to be copied: then there is no reason not to count them all.
        lot: What its rows are drawn with.
        room: Rows that it still takes; ``ends_at``: when it ends at the latest, on the steady clock.
        counting: Whether the rows are counted.
        count: Requests that were noted.
        latency: How many of them took how long, by the buckets of :mod:`edge_agent.contract.latency`.
        sizes: Their rows; empty where the rows were copied, as those are requests of one row.
        bytes: Of the tensors that are held.
        capacity: Rows that it takes where they are counted.
    """

    def __init__(self, signature: Signature, inputs: Sequence[str], outputs: Sequence[str], task: str) -> None:
        self._inputs, self._outputs, self._task = tuple(inputs), tuple(outputs), task
        self._told = tuple({*outputs, task})
        specs = [spec for spec in signature.inputs if spec.name in inputs]
        given = [spec for spec in signature.outputs if spec.name in outputs or spec.name == task]
        answer = [spec for spec in given if spec.name == task]
        self._alike = all(None not in spec.shape[1:] for spec in (*specs, *given))
        row_bytes = _row_bytes(*specs, *given)
        self.copies = row_bytes <= _COPIED_BYTES
        self.capacity = min(COUNTED_ROWS, _rows_in_columns(row_bytes)) if self.copies else COUNTED_ROWS
        self._uncounted = min(LARGEST_BLOCK, _rows_in_columns(_row_bytes(*answer)))
        self._specs, self._answer = (specs, given), answer
        self._counted_columns: tuple[_Columns, _Columns] = [], []
        self._columns = self._counted_columns
        self._kept: NDArray[Any] | None = None
        self._held: list[tuple[Tensors | None, Tensors]] = []
        self._request_ids: list[str | Sequence[str]] = []
        self._at_s: list[float] = []  # as many
        self._draws: dict[int, Mapping[int, Draw]] = {}  # by index of the request
        self.lot = Lot.none()
        self.room, self.ends_at = 0, 0.0
        self.counting = True
        self.count = self.bytes = 0
        self.latency = [0] * BUCKETS
        self.sizes: list[int] = []

    def begin(self, lot: Lot, rows: int, *, counting: bool, copying: bool, ends_at: float) -> None:
        """Begin anew.

        Args:
            rows: So many are here already; of those to be copied no more than :attr:`capacity`.
            counting: Whether the rows are to be counted; else nothing but what the model said is kept of copied ones.
            copying: Whether :meth:`take` will be called, not :meth:`hold`.
        """
        self.clear()
        self.lot, self.ends_at, self.counting = lot, ends_at, counting
        self.room = min(lot.room, max(rows, self.capacity if counting else self._uncounted))
        if not copying:
            return
        if not counting:
            answers = _columns(self._answer, self._uncounted)
            self._columns = [], answers
            self._kept = answers[0][1]  # used once: whoever remembers the requests keeps it
            return
        if not self._counted_columns[1]:
            given, found = self._specs
            self._counted_columns = _columns(given, self.capacity), _columns(found, self.capacity)
        self._columns = self._counted_columns

    def clear(self) -> None:
        """Let go of all that was noted, and take no more."""
        self.lot = Lot.none()
        self.room, self.ends_at = 0, 0.0
        self.count = self.bytes = 0
        self.latency = [0] * BUCKETS
        self.sizes = []
        self._request_ids, self._at_s = [], []
        self._draws = {}
        self._columns, self._kept, self._held = ([], []), None, []

    @property
    def ids(self) -> Ids:
        """Those of the requests, in order, with their times on the steady clock."""
        return Ids(self._request_ids, self._at_s, self.count)

    @property
    def rows(self) -> int:
        """Rows that have been noted."""
        return sum(self.sizes) if self.sizes else self.count

    def note_passing(
        self, request_ids: Sequence[str], at_s: float, outputs: Tensors, buckets: Mapping[int, int]
    ) -> bool:
        """Note requests of one row each where nothing is to be kept but what the model said; False where there is more.

        At a fast pace nearly every request comes this way, in the fewest steps: the models that run in between leave
        nothing of them in the processor's caches.
        """
        kept, lot, answers = self._kept, self.lot, outputs.get(self._task)
        if kept is None or answers is None:
            return False
        rows = len(answers)
        if rows > self.room or rows > lot.gap or at_s >= self.ends_at:
            return False
        begin = self.count
        place = kept[begin : begin + rows]
        if answers.shape != place.shape or answers.dtype is not place.dtype:  # :meth:`take` says what is wrong
            return False
        place[:] = answers
        self.count = begin + rows
        self.room -= rows
        lot.gap -= rows
        self._request_ids.append(request_ids if rows > 1 else request_ids[0])
        self._at_s.append(at_s)
        latency = self.latency
        for bucket, requests in buckets.items():
            latency[bucket] += requests
        return True

    def take(self, request_ids: Sequence[str], rows: int, at_s: float, inputs: Tensors, outputs: Tensors) -> None:
        """Note requests of one row each by copying their rows; all of them, or none where it raises.

        Args:
            rows: As many as requests.
            inputs, outputs: Row by row theirs.
        Raises:
            ValueError, TypeError: A tensor is not what the signature says.
        """
        begin = self.count
        for tensors, columns in zip((inputs, outputs), self._columns, strict=True):
            for name, column in columns:
                array, place = tensors[name], column[begin : begin + rows]
                if array.shape != place.shape:  # an assignment would repeat what is too short
                    raise ValueError(f"tensor '{name}' is {array.shape}, not {place.shape} as declared")
                np.copyto(place, array, casting="same_kind")
        self.count += rows
        self._request_ids.append(request_ids if rows > 1 else request_ids[0])
        self._at_s.append(at_s)

    def hold(
        self,
        request_ids: str | Sequence[str],
        sizes: Sequence[int],
        at_s: float,
        inputs: Tensors | None,
        outputs: Tensors,
    ) -> None:
        """Note requests whose tensors are held.

        Args:
            request_ids: One for each of ``sizes``, their numbers of rows; or the only one itself.
            inputs, outputs: Row by row theirs; no inputs where these are not to be counted.
        """
        # A model may take and give much that nobody counts: a mask of 1 MB beside its classes.
        given = None if inputs is None else _some(inputs, self._inputs)
        found = _some(outputs, self._told)
        self._held.append((given, found))
        self.bytes += sum([array.nbytes for tensors in (given or {}, found) for array in tensors.values()])
        self.count += len(sizes)
        self.sizes += sizes
        self._request_ids.append(request_ids)
        self._at_s.append(at_s)

    def drawn(self, request: int, draws: Mapping[int, Draw]) -> None:
        """Note which rows of a request, by its index, were chosen."""
        self._draws[request] = draws

    @property
    def lasts(self) -> bool:
        """Whether :meth:`probabilities` may be kept as they are: they are small, and no part of anything larger."""
        return self._kept is not None and not self._held and bool(self._kept[0].nbytes <= _KEPT_BYTES)

    def probabilities(self) -> list[NDArray[Any]]:
        """Those of all rows, in order, in one or several float[N, classes]."""
        if self._held:
            return [outputs[self._task] for _, outputs in self._held]
        if self._kept is not None:
            kept = self._kept[: self.count]
            return [kept.copy() if 2 * self.count < len(self._kept) else kept]  # a view keeps all of it
        return [column[: self.count] for name, column in self._columns[1] if name == self._task]

    def batches(self) -> Iterator[tuple[Tensors, Tensors]]:
        """Inputs and outputs of the rows to count, those together that agree in all axes but the first."""
        if not self.counting:
            return
        if not self._held:
            rows = self.count
            given, found = ({name: column[:rows] for name, column in side} for side in self._columns)
            yield given, found
            return
        counted = [(inputs, outputs) for inputs, outputs in self._held if inputs is not None]
        for group in [counted] if self._alike else _alike(counted):
            for part in _parts(group, self._inputs):
                given_by_all = _joined([inputs for inputs, _ in part], self._inputs)
                yield from _by_rows(given_by_all, _joined([outputs for _, outputs in part], self._outputs))

    def asked(self) -> dict[int, float]:
        """By row: the probability with which each chosen row was asked for a label."""
        if not self._draws:
            return {}
        firsts = list(itertools.accumulate(self.sizes, initial=0)) if self.sizes else range(self.count)
        return {
            firsts[index] + row: draw.label_probability
            for index, draws in self._draws.items()
            for row, draw in draws.items()
        }


def _some(tensors: Tensors, names: tuple[str, ...]) -> Tensors:
    return {name: tensors[name] for name in names if name in tensors}


def _rows_in_columns(row_bytes: float) -> int:
    return int(_COLUMNS_BYTES // max(1, row_bytes))


def _row_bytes(*specs: TensorSpec) -> float:
    """Bytes of a row of these tensors; infinitely many where it is not known."""
    if any(None in spec.shape[1:] or spec.datatype is Datatype.BYTES for spec in specs):
        return math.inf
    return sum(math.prod(axis or 1 for axis in spec.shape[1:]) * spec.datatype.numpy.itemsize for spec in specs)


def _columns(specs: Sequence[TensorSpec], rows: int) -> _Columns:
    shapes = [(rows, *(axis or 1 for axis in spec.shape[1:])) for spec in specs]
    return [(spec.name, np.empty(shape, spec.datatype.numpy)) for spec, shape in zip(specs, shapes, strict=True)]


def _alike(pairs: list[tuple[Tensors, Tensors]]) -> list[list[tuple[Tensors, Tensors]]]:
    """Requests whose tensors agree in all axes but the first: only they make a batch."""
    groups: dict[object, list[tuple[Tensors, Tensors]]] = {}
    for pair in pairs:
        form = [array.shape[1:] for tensors in pair for array in tensors.values()]
        groups.setdefault(tuple(form), []).append(pair)
    return list(groups.values())


def _parts(pairs: list[tuple[Tensors, Tensors]], names: tuple[str, ...]) -> Iterator[list[tuple[Tensors, Tensors]]]:
    """The requests in order, so many together as are counted at once."""
    part: list[tuple[Tensors, Tensors]] = []
    used = 0
    for inputs, outputs in pairs:
        size = sum(inputs[name].nbytes for name in names if name in inputs)
        if part and used + size > _COLUMNS_BYTES:
            yield part
            part, used = [], 0
        part.append((inputs, outputs))
        used += size
    if part:
        yield part


def _by_rows(given: Tensors, found: Tensors) -> Iterator[tuple[Tensors, Tensors]]:
    """A batch, in pieces of its rows where it is large."""
    rows = len(next(iter(found.values())))
    size = sum(array.nbytes for array in given.values())
    step = max(1, rows * _COLUMNS_BYTES // max(1, size))
    for begin in range(0, rows, step):
        some = slice(begin, begin + step)
        yield (
            {name: array[some] for name, array in given.items()},
            {name: array[some] for name, array in found.items()},
        )


def _joined(parts: list[Tensors], names: tuple[str, ...]) -> Tensors:
    """One batch of the named tensors of all parts; without those that the parts lack."""
    if len(parts) == 1:
        return _some(parts[0], names)
    return {name: np.concatenate([part[name] for part in parts]) for name in names if name in parts[0]}
