"""What a classifier said about each row: class, confidence, margin."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

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


class Predictions(NamedTuple):
    """Those of many rows: ``best`` int64[N], ``confidence`` and ``margin`` of the probabilities' own dtype, [N]."""

    best: NDArray[Any]
    confidence: NDArray[Any]
    margin: NDArray[Any]

    def row(self, index: int) -> Prediction:
        """One row's."""
        return Prediction(int(self.best[index]), float(self.confidence[index]), float(self.margin[index]))


def prediction(probabilities: NDArray[Any]) -> Prediction:
    """The prediction of float[1, classes]; see :func:`predictions`. A third of its time, for few classes."""
    row = probabilities.ravel().tolist()
    if len(row) > _FEW_CLASSES:
        return predictions(probabilities).row(0)
    if not math.isfinite(sum(row)):
        return Prediction(0, 0.0, 0.0)
    confidence = max(row)
    best = row.index(confidence)
    row[best] = -math.inf
    return Prediction(best, confidence, confidence - max(row) if len(row) > 1 else confidence)


def predictions(probabilities: NDArray[Any]) -> Predictions:
    """The prediction of each row of float[N, classes].

    A row with a NaN or an infinity gets class 0, confidence 0 and margin 0: neither a database's NOT NULL column nor
    JSON takes a NaN, and a margin of 0 makes such a row likely to be sampled.
    """
    rows = probabilities.reshape(len(probabilities), -1)
    best = rows.argmax(axis=1)
    confidence = np.take_along_axis(rows, best[:, None], axis=1)[:, 0]
    if rows.shape[1] == 1:
        margin = confidence.copy()
    else:
        with np.errstate(invalid="ignore"):  # infinity less infinity
            margin = confidence - np.partition(rows, rows.shape[1] - 2, axis=1)[:, -2]
    # One sum per row: it is finite only where all of its probabilities are.
    with np.errstate(invalid="ignore", over="ignore"):
        wrong = ~np.isfinite(rows.sum(axis=1))
    if wrong.any():
        best[wrong], confidence[wrong], margin[wrong] = 0, 0.0, 0.0
    return Predictions(best, confidence, margin)


def predictions_of(outputs: Sequence[NDArray[Any]]) -> Predictions:
    """The predictions of the rows of several float[N, classes], one after the other."""
    if len({array.shape[1:] for array in outputs}) == 1:
        return predictions(outputs[0] if len(outputs) == 1 else np.concatenate(outputs))
    each = [predictions(array) for array in outputs]  # a model whose number of classes is dynamic
    return Predictions(*(np.concatenate(column) for column in zip(*each, strict=True)))
