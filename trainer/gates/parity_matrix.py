"""Where the exported forms of a model were compared with the trained network, and how far apart they were.

{full precision, int8} x {batch sizes, lengths of open axes} x {slices}, all on the runtime that devices use. Exporters
fix axes without a word: an example batch of 1 makes a model of batch 1, an LSTM's time axis becomes the example's.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.constraint import AxisLimit
from edge_agent.contract.errors import ShoalError
from edge_agent.contract.signature import Signature
from edge_agent.runtime.backend import InferenceBackend
from trainer.errors import ParityFailed
from trainer.gates.comparison import predict
from trainer.gates.parity import BATCH_SIZES, compare, trained_outputs

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule

_OTHER_LENGTH_SIZES = (1, 7)
_BATCH_ROWS = 256
# Of all slices together: a difference shows on the first rows as on the last.
MOST_ROWS = 2_000


@dataclass(frozen=True)
class Cell:
    """One form of the model beside the trained network on some rows.

    Args:
        differences: By output: the largest absolute difference; of what is no number, the share of unlike values.
        agreement: Share of the rows that get the same class.
    """

    rows: int
    differences: dict[str, float]
    agreement: float

    def as_json(self) -> dict[str, Any]:
        """The same for ``parity.json``."""
        differences = {name: float(f"{value:.3g}") for name, value in self.differences.items()}
        return {"rows": self.rows, "differences": differences, "agreement": round(self.agreement, 4)}


@dataclass(frozen=True)
class FormParity:
    """One form of the model in all shapes and slices.

    Args:
        shapes: Lengths of the open axes, by ``INPUT.AXIS``, and the cell; its rows are the batch.
        slices: By name, such as ``device cam-a``.
    """

    shapes: tuple[tuple[dict[str, int], Cell], ...]
    slices: dict[str, Cell]

    @property
    def difference(self) -> float:
        """The largest difference of any output anywhere."""
        cells = (*(cell for _, cell in self.shapes), *self.slices.values())
        return max(value for cell in cells for value in cell.differences.values())

    def as_json(self) -> dict[str, Any]:
        """The same for ``parity.json``."""
        return {
            "difference": float(f"{self.difference:.3g}"),
            "shapes": [{"lengths": lengths, **cell.as_json()} for lengths, cell in self.shapes],
            "slices": {name: cell.as_json() for name, cell in self.slices.items()},
        }


class ParityMatrix:
    """What the trained network answers in all shapes and slices; exported forms are held against it one by one.

    Args:
        output: Name of the task's output, [N, classes].
        inputs: Real rows that were not trained on, by name; axis 0 is N, at least 1.
        slices: By name, bool[N].
        sizes: Further sizes of a batch, such as those that devices prefer.
    Raises:
        ParityFailed: The network itself refuses a length that the signature lets through.
    """

    def __init__(
        self,
        network: LightningModule,
        signature: Signature,
        output: str,
        inputs: Mapping[str, NDArray[Any]],
        *,
        slices: Mapping[str, NDArray[np.bool_]],
        sizes: tuple[int, ...] = (),
    ) -> None:
        self._output = output
        rows = len(next(iter(inputs.values())))
        few = np.unique(np.linspace(0, rows - 1, min(rows, MOST_ROWS)).astype(np.int64))
        self._rows = {name: array[few] for name, array in inputs.items()}
        self._slices = {"all": np.ones(len(few), dtype=bool)} | {name: mask[few] for name, mask in slices.items()}
        parts = [
            trained_outputs(
                network, signature, {name: array[at : at + _BATCH_ROWS] for name, array in self._rows.items()}
            )
            for at in range(0, len(few), _BATCH_ROWS)
        ]
        self._expected = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        self._shapes = [
            (lengths, batch, _trained(network, signature, batch, lengths))
            for lengths, batch in _batches(signature, self._rows, sizes)
        ]

    def hold(self, backend: InferenceBackend, *, exact: bool) -> FormParity:
        """An exported form beside the trained network.

        Args:
            exact: Whether it must answer within tolerance; else it must merely run and give the right shapes.
        Raises:
            ParityFailed: It does not; the error names output, batch size, lengths and row.
        """
        shapes = []
        for lengths, batch, expected in self._shapes:
            where = _where(len(next(iter(batch.values()))), lengths)
            try:
                found = backend.infer(batch)
            except ShoalError:
                raise
            except Exception as error:
                # The runtime's exceptions share no base class but this one.
                axis = "time axis" if lengths else "batch axis"
                raise ParityFailed(
                    f"{where}: the exported model refuses it ({error}); was its {axis} fixed on export?"
                ) from error
            shapes.append((lengths, self._cell(where, expected, found, exact=exact)))
        answers = predict(backend, self._rows)
        return FormParity(
            shapes=tuple(shapes),
            slices={
                name: self._cell(f"slice '{name}'", _take(self._expected, mask), _take(answers, mask), exact=exact)
                for name, mask in self._slices.items()
                if mask.any()
            },
        )

    def _cell(
        self, where: str, expected: dict[str, NDArray[Any]], found: dict[str, NDArray[Any]], *, exact: bool
    ) -> Cell:
        differences = {name: compare(name, where, array, found[name], exact=exact) for name, array in expected.items()}
        same = expected[self._output].argmax(axis=1) == found[self._output].argmax(axis=1)
        return Cell(len(same), differences, float(same.mean()))


def open_lengths(signature: Signature, inputs: Mapping[str, NDArray[Any]]) -> list[dict[str, int]]:
    """Lengths of the axes that the signature leaves open beside the batch, by ``INPUT.AXIS``: the rows' own first.

    Others are the shortest and the longest that the contract names, or else half and twice the rows' own.
    """
    choices: dict[str, list[int]] = {}
    for spec in signature.inputs:
        limits = {limit.axis: limit for limit in spec.constraint.axes}
        for axis, length in enumerate(spec.shape):
            if axis and length is None:
                choices[f"{spec.name}.{axis}"] = _lengths(inputs[spec.name].shape[axis], limits.get(axis))
    if not choices:
        return [{}]
    most = max(len(lengths) for lengths in choices.values())
    return [{name: lengths[min(at, len(lengths) - 1)] for name, lengths in choices.items()} for at in range(most)]


def _lengths(own: int, limit: AxisLimit | None) -> list[int]:
    """Own, shortest, longest and one more than the own, as far as they are allowed; each once."""
    low = limit.minimum if limit is not None and limit.minimum > 1 else max(1, (own + 1) // 2)
    high = 2 * own + 1
    if limit is not None and limit.maximum is not None:
        high = min(limit.maximum, 8 * own)
    return list(dict.fromkeys(length for length in (own, low, high, own + 1) if length == own or low <= length <= high))


def _batches(
    signature: Signature, rows: dict[str, NDArray[Any]], sizes: tuple[int, ...]
) -> Iterator[tuple[dict[str, int], dict[str, NDArray[Any]]]]:
    own, *others = open_lengths(signature, rows)
    wanted = [(own, size) for size in dict.fromkeys((*BATCH_SIZES, *sizes))]
    wanted += itertools.product(others, _OTHER_LENGTH_SIZES)
    for lengths, size in wanted:
        batch = {name: np.resize(array, (size, *array.shape[1:])) for name, array in rows.items()}
        for where, length in lengths.items():
            name, _, axis = where.rpartition(".")
            at = np.arange(length) % max(1, batch[name].shape[int(axis)])
            batch[name] = np.take(batch[name], at, axis=int(axis))
        yield lengths, batch


def _trained(
    network: LightningModule, signature: Signature, batch: dict[str, NDArray[Any]], lengths: dict[str, int]
) -> dict[str, NDArray[Any]]:
    try:
        return trained_outputs(network, signature, batch)
    except ShoalError:
        raise
    except Exception as error:
        # Whatever the recipe's author wrote may fail in whatever way.
        where = _where(len(next(iter(batch.values()))), lengths)
        first = next(iter(str(error).splitlines()), "")
        raise ParityFailed(
            f"{where}: forward itself fails ({type(error).__name__}: {first}), but model.toml lets such requests "
            "through; give the axis a minimum or a maximum in constraint.axes"
        ) from error


def _where(rows: int, lengths: dict[str, int]) -> str:
    told = "".join(f", '{where.rpartition('.')[0]}' of length {length}" for where, length in lengths.items())
    return f"batch of {rows}{told}"


def _take(tensors: Mapping[str, NDArray[Any]], mask: NDArray[np.bool_]) -> dict[str, NDArray[Any]]:
    return {name: array[mask] for name, array in tensors.items()}
