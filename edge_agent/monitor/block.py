"""Requests of one package that were noted down and are looked at together."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.signature import Signature, TensorSpec
from edge_agent.contract.tensors import Datatype
from edge_agent.monitor.ids import Ids
from edge_agent.monitor.sampler import LARGEST_BLOCK, Draw

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


class Noted(NamedTuple):
    """One answered request, without its tensors.

    Args:
        at_s: When, on the steady clock.
        draws: Of the rows that were chosen.
    """

    request_id: str
    rows: int
    latency_us: float
    at_s: float
    draws: Mapping[int, Draw]


class Held(NamedTuple):
    """Answered requests of one row each, noted when there are more of them; made by position where time is short.

    Args:
        rows: As many as requests.
        inputs, outputs: Row by row theirs; no inputs where nobody will look at them.
        counted: Whether the inputs are to be counted, where not all are.
        took: Microseconds of the only one, or how many fell into which of :mod:`edge_agent.contract.latency`'s buckets.
        draws: By row, of those that were chosen.
        chances: Rows that are still to be drawn among, each with its random number.
    """

    request_ids: Sequence[str]
    rows: int
    at_s: float
    inputs: Tensors
    outputs: Tensors
    took: float | Mapping[int, int]
    counted: bool = True
    draws: Mapping[int, Draw] = NO_DRAWS
    chances: Sequence[tuple[int, float]] = ()


class Block:
    """What is noted between two looks; not thread-safe.

    Args:
        inputs, outputs: Names of the tensors that are counted.
        task: Name of the output with the probabilities.
    Attributes:
        counting: Whether the rows are counted; to be said before the first one.
        ids: Of the requests, in order; ``at_s``, on the steady clock, likewise.
        latencies_us: Of those that were noted by themselves.
        sizes: Their rows; empty where the rows were copied, as those are requests of one row.
        bytes: Of the tensors that are held, counted ones alone.
        capacity: Requests of one row that it takes where they are counted; ``uncounted_capacity``: where they are not.
        is_all: Whether a request's tensors are hardly more than what is counted of them.
    """

    def __init__(self, signature: Signature, inputs: Sequence[str], outputs: Sequence[str], task: str) -> None:
        self._inputs, self._outputs, self._task = tuple(inputs), tuple(outputs), task
        specs = [spec for spec in signature.inputs if spec.name in inputs]
        given = [spec for spec in signature.outputs if spec.name in outputs or spec.name == task]
        self._alike = all(None not in spec.shape[1:] for spec in (*specs, *given))
        row_bytes = _row_bytes(*specs, *given)
        small = row_bytes <= _COPIED_BYTES
        self.is_all = _row_bytes(*signature.inputs, *signature.outputs) <= _COPIED_BYTES
        answer = [spec for spec in given if spec.name == task]
        self.capacity = min(COUNTED_ROWS, _rows_in_columns(row_bytes)) if small else COUNTED_ROWS
        self.uncounted_capacity = min(LARGEST_BLOCK, _rows_in_columns(_row_bytes(*answer))) if small else COUNTED_ROWS
        self._specs = (specs, given) if small else None
        self._answer = answer
        self._columns: tuple[_Columns, _Columns] = [], []
        self._kept: NDArray[Any] | None = None
        self.counting = True
        self.ids = Ids()
        self.latencies_us: list[float] = []
        self.at_s: list[float] = []
        self.sizes: list[int] = []
        self._draws: dict[int, Mapping[int, Draw]] = {}  # by index of the request
        self._held: list[tuple[Tensors | None, Tensors]] = []
        self.bytes = 0

    @property
    def copies(self) -> bool:
        """Whether rows are small enough to be copied: then there is no reason not to count them all."""
        return self._specs is not None

    @property
    def rows(self) -> int:
        """Rows that have been noted."""
        return sum(self.sizes) if self.sizes else len(self.ids)

    def fits(self, rows: int) -> bool:
        """Whether a request of so many rows may join: one that is held and those that were copied do not mix."""
        return not self.ids or ((rows == 1 or not self.copies) and (bool(self._held) != self.copies))

    def add(self, noted: Noted, inputs: Tensors | None, outputs: Tensors) -> None:
        """Note a request.

        Args:
            inputs: As the application sent them; None where this request is not to be counted.
            outputs: All of the model's.
        """
        self.latencies_us.append(noted.latency_us)
        if self.copies and noted.rows == 1 and inputs is not None:
            self.take((Held((noted.request_id,), 1, noted.at_s, inputs, outputs, noted.latency_us, draws=noted.draws),))
            return
        if noted.draws:
            self._draws[len(self.ids)] = noted.draws
        self._hold(inputs, outputs)
        self.ids.append(noted.request_id)
        self.at_s.append(noted.at_s)
        self.sizes.append(noted.rows)

    def take(self, held: Sequence[Held]) -> None:
        """Note requests of one row each, small ones as copies; all of them, or none where it raises."""
        if self.copies:
            self._copy(held)
        else:
            for each in held:
                self._hold(each.inputs if each.counted else None, each.outputs)
                self.sizes += [1] * each.rows
        ids, at_s = self.ids, self.at_s
        for each in held:
            if each.draws:
                self.drawn(len(ids), each.draws)
            ids.extend(each.request_ids, each.rows)
            at_s += [each.at_s] * each.rows

    def _copy(self, held: Sequence[Held]) -> None:
        begin = len(self.ids)
        end = begin + sum([each.rows for each in held])
        if not self.counting:
            if self._kept is None:
                self._kept = self._new_kept()
            np.concatenate([each.outputs[self._task] for each in held], out=self._kept[begin:end])
        else:
            if not self._columns[1]:
                self._columns = self._new_columns()
            given, found = self._columns
            for name, column in given:
                np.concatenate([each.inputs[name] for each in held], out=column[begin:end])
            for name, column in found:
                np.concatenate([each.outputs[name] for each in held], out=column[begin:end])

    def _hold(self, inputs: Tensors | None, outputs: Tensors) -> None:
        self._held.append((inputs, outputs))
        if inputs is not None:
            self.bytes += sum([array.nbytes for array in inputs.values()])

    def drawn(self, first: int, draws: Mapping[int, Draw]) -> None:
        """Note which of requests of one row each were chosen, by their place after the block's ``first``."""
        for index, draw in draws.items():
            self._draws[first + index] = {0: draw}

    @property
    def takes(self) -> bool:
        """Whether more requests of one row may follow by :meth:`take`: where they are copied, only behind others."""
        return not self.copies or (bool(self.ids) and not self._held)

    @property
    def lasts(self) -> bool:
        """Whether :meth:`probabilities` may be kept as they are: they are small, and no part of anything larger."""
        return self._kept is not None and self._kept[0].nbytes <= _KEPT_BYTES

    def probabilities(self) -> list[NDArray[Any]]:
        """Those of all rows, in order, in one or several float[N, classes]."""
        if self._held:
            return [outputs[self._task] for _, outputs in self._held]
        if self._kept is not None:
            return [self._kept[: len(self.ids)]]
        return [column[: len(self.ids)] for name, column in self._columns[1] if name == self._task]

    def batches(self) -> Iterator[tuple[Tensors, Tensors]]:
        """Inputs and outputs of the rows to count, those together that agree in all axes but the first."""
        if not self.counting:
            return
        if not self._held:
            rows = len(self.ids)
            given, found = ({name: column[:rows] for name, column in side} for side in self._columns)
            yield given, found
            return
        counted = [(inputs, outputs) for inputs, outputs in self._held if inputs is not None]
        for group in [counted] if self._alike else _alike(counted):
            for part in _parts(group, self._inputs):
                given_by_all = _joined([inputs for inputs, _ in part], self._inputs)
                yield from _by_rows(given_by_all, _joined([outputs for _, outputs in part], self._outputs))

    def clear(self) -> None:
        """Begin anew; columns are used again."""
        self.ids = Ids()
        self.latencies_us, self.at_s, self.sizes = [], [], []
        self._draws, self._held, self._kept, self.bytes = {}, [], None, 0

    def asked(self) -> dict[int, float]:
        """By row: the probability with which each chosen row was asked for a label."""
        if not self._draws:
            return {}
        firsts = list(itertools.accumulate(self.sizes, initial=0)) if self.sizes else range(len(self.ids))
        return {
            firsts[index] + row: draw.label_probability
            for index, draws in self._draws.items()
            for row, draw in draws.items()
        }

    def _new_columns(self) -> tuple[_Columns, _Columns]:
        given, found = self._specs or ([], [])
        return [(spec.name, _column(spec, self.capacity)) for spec in given], [
            (spec.name, _column(spec, self.capacity)) for spec in found
        ]

    def _new_kept(self) -> NDArray[Any]:
        return _column(self._answer[0], self.uncounted_capacity)


def _rows_in_columns(row_bytes: float) -> int:
    return int(_COLUMNS_BYTES // max(1, row_bytes))


def _row_bytes(*specs: TensorSpec) -> float:
    """Bytes of a row of these tensors; infinitely many where it is not known."""
    if any(None in spec.shape[1:] or spec.datatype is Datatype.BYTES for spec in specs):
        return math.inf
    return sum(math.prod(axis or 1 for axis in spec.shape[1:]) * spec.datatype.numpy.itemsize for spec in specs)


def _column(spec: TensorSpec, rows: int) -> NDArray[Any]:
    return np.empty((rows, *(axis or 1 for axis in spec.shape[1:])), dtype=spec.datatype.numpy)


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
        return {name: parts[0][name] for name in names if name in parts[0]}
    return {name: np.concatenate([part[name] for part in parts]) for name in names if name in parts[0]}
