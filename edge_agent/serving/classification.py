"""The classification extension: the best classes of an output in place of its values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.manifest import Classification
from edge_agent.contract.signature import Signature


def classify(values: NDArray[Any], count: int, labels: Sequence[str] | None = None) -> NDArray[Any]:
    """The highest values of each row as ``value:index`` or ``value:index:label``.

    Args:
        values: Numbers[N, ...]; each row's further axes count as one.
        count: Classes wanted per row; no more than there are come back.
        labels: By index; one may be missing at the end.
    Returns:
        object[N, min(count, classes)] of ``bytes``, best first; of equal values the one with the lower index. Values
        are written as Triton writes them: fractions with six digits.
    """
    values = np.atleast_1d(values)
    rows = values.reshape(len(values), math.prod(values.shape[1:]))
    if rows.dtype.kind == "f":
        keys = np.where(np.isnan(rows), -np.inf, rows)
        written = "%f"
    else:
        keys, written = rows, "%d"
    # Sorted backwards in both directions: descending, and still stable, for unsigned numbers too.
    last = rows.shape[1] - 1
    order = last - np.argsort(keys[:, ::-1], axis=1, kind="stable")[:, ::-1][:, :count]
    best = rows[np.arange(len(rows))[:, np.newaxis], order]
    out = np.empty(order.shape, dtype=object)
    for row, (indices, found) in enumerate(zip(order.tolist(), best.tolist(), strict=True)):
        for place, (index, value) in enumerate(zip(indices, found, strict=True)):
            text = f"{written % value}:{index}"
            if labels is not None and index < len(labels):
                text = f"{text}:{labels[index]}"
            out[row, place] = text.encode()
    return out


def class_labels(output: str, signature: Signature, task: Classification | None) -> Sequence[str] | None:
    """The names of an output's classes, by index: the signature's, else the task's where it is about this output."""
    for spec in signature.outputs:
        if spec.name == output and spec.labels is not None:
            return spec.labels
    return task.labels if task is not None and task.output == output else None
