"""What a classifier said about each row: class, confidence, margin."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_FEW_ROWS = 4
_FEW_CLASSES = 64


class Prediction(NamedTuple):
    """One row's.

    Args:
        best: Index of the largest probability.
        confidence: Largest probability; 0 where the model gave a NaN or an infinity, which is no probability.
        margin: Largest probability less the second; the confidence itself where there is one class.
    """

    best: int
    confidence: float
    margin: float


# Neither a database's NOT NULL column nor JSON takes a NaN. Its margin of 0 makes such a row likely to be sampled.
_NONE = Prediction(best=0, confidence=0.0, margin=0.0)


def predictions(probabilities: NDArray[Any]) -> list[Prediction]:
    """The prediction of each row of float[N, classes]."""
    rows = probabilities.reshape(len(probabilities), -1)
    if len(rows) <= _FEW_ROWS and rows.shape[1] <= _FEW_CLASSES:  # three times as fast as numpy's fixed costs
        return [_of_list(row) for row in rows.tolist()]
    best = rows.argmax(axis=1)
    top = np.take_along_axis(rows, best[:, None], axis=1)[:, 0]
    second = np.zeros_like(top) if rows.shape[1] == 1 else np.partition(rows, rows.shape[1] - 2, axis=1)[:, -2]
    with np.errstate(invalid="ignore"):  # infinity less infinity
        margin = top - second
    found = zip(best.tolist(), top.tolist(), margin.tolist(), np.isfinite(rows).all(axis=1).tolist(), strict=True)
    return [Prediction(*row) if finite else _NONE for *row, finite in found]


def _of_list(row: list[float]) -> Prediction:
    if not math.isfinite(sum(row)):
        return _NONE
    confidence = max(row)
    index = row.index(confidence)
    if len(row) == 1:
        return Prediction(index, confidence, confidence)
    row[index] = float("-inf")
    return Prediction(index, confidence, confidence - max(row))
