"""Projections: the one number per row that a feature of a profile watches."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.errors import PackageError


class Projection(str, enum.Enum):
    """A number per row, taken from a tensor: what a feature of the profile is."""

    ELEMENT = "element"  # one element of the flattened row
    MEAN = "mean"
    STD = "std"
    MAXIMUM = "maximum"
    GRADIENT = "gradient"  # mean absolute difference of neighbours along the last two axes: sharpness of an image
    CENTROID = "centroid"  # mean column weighted by value, less that of the upper half: slant of an image
    CONFIDENCE = "confidence"  # largest probability
    MARGIN = "margin"  # largest probability less the second
    CLASS = "class"  # index of the largest probability


def project_rows(projection: Projection, tensor: NDArray[Any], *, index: int = 0) -> NDArray[np.float64]:
    """The projection of each row of a tensor, float64[N]; it may be a view of ``tensor``.

    Args:
        tensor: Axis 0 is N; for gradient and centroid the last two axes are rows and columns of an image.
        index: For ``element``: which one of the flattened row.
    Raises:
        PackageError: It cannot be taken from such a tensor; the text goes on after the tensor's name.
    """
    if tensor.dtype.kind not in "fiub" or tensor.ndim == 0:
        raise PackageError(f"is {tensor.dtype} of shape {tensor.shape}, not rows of numbers")
    if len(tensor) == 0:
        return np.empty(0, dtype=np.float64)
    columns = tensor.size // len(tensor)
    if columns <= (index if projection is Projection.ELEMENT else 0):
        raise PackageError(f"has {columns} elements per row, none at index {index}")
    with np.errstate(all="ignore"):  # infinities and NaN are results here; counts tell them apart
        if projection in _OF_IMAGE:
            if tensor.ndim < 3 or min(tensor.shape[-2:]) < 2:
                raise PackageError(f"has rows of shape {tensor.shape[1:]}; {projection.value} needs at least 2 x 2")
            image = tensor.reshape(len(tensor), -1, *tensor.shape[-2:]).astype(np.float64, copy=False)
            return _OF_IMAGE[projection](image)
        rows = tensor.reshape(len(tensor), -1).astype(np.float64, copy=False)
        return rows[:, index] if projection is Projection.ELEMENT else _OF_ROWS[projection](rows)


def _mean(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    values: NDArray[np.float64] = rows.mean(axis=1)
    return values


def _std(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    values: NDArray[np.float64] = rows.std(axis=1)
    return values


def _maximum(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    values: NDArray[np.float64] = rows.max(axis=1)
    return values


def _class(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Index of the largest; NaN where a NaN leaves no largest (argmax would name the NaN's own index)."""
    return np.where(np.isnan(rows).any(axis=1), np.nan, rows.argmax(axis=1).astype(np.float64))


def _margin(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Largest less second; with one class only there is no second, and nothing is taken off."""
    if rows.shape[1] == 1:
        return rows[:, 0]
    top = np.partition(rows, rows.shape[1] - 2, axis=1)[:, -2:]
    values: NDArray[np.float64] = top[:, 1] - top[:, 0]
    return values


def _gradient(image: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean absolute difference of neighbours, float64[N] from float64[N, C, H, W]."""
    across: NDArray[np.float64] = np.abs(np.diff(image, axis=-1)).mean(axis=(1, 2, 3))
    down: NDArray[np.float64] = np.abs(np.diff(image, axis=-2)).mean(axis=(1, 2, 3))
    return across + down


def _slant(image: NDArray[np.float64]) -> NDArray[np.float64]:
    """Columns between the centres of mass of the lower and upper half: float64[N] from float64[N, C, H, W]."""
    weight = image.sum(axis=1) + 1e-9
    columns = np.arange(image.shape[-1], dtype=np.float64)
    half = image.shape[-2] // 2

    def centre(part: NDArray[np.float64]) -> NDArray[np.float64]:
        moment: NDArray[np.float64] = (part * columns).sum(axis=(1, 2))
        mass: NDArray[np.float64] = part.sum(axis=(1, 2))
        return moment / mass

    return centre(weight[:, half:]) - centre(weight[:, :half])


_Values = Callable[[NDArray[np.float64]], NDArray[np.float64]]
_OF_IMAGE: Mapping[Projection, _Values] = {Projection.GRADIENT: _gradient, Projection.CENTROID: _slant}
_OF_ROWS: Mapping[Projection, _Values] = {
    Projection.MEAN: _mean,
    Projection.STD: _std,
    Projection.MAXIMUM: _maximum,
    Projection.CONFIDENCE: _maximum,
    Projection.MARGIN: _margin,
    Projection.CLASS: _class,
}
