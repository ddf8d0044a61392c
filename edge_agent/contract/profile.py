"""Profiles: what a model's data looks like, as exact integer counts in reference bins.

A profile is made once, by the trainer, over the reference data; its bins travel in the package. A device counts its
live rows in the same bins, and counts of any number of devices and windows merge by addition.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.errors import PackageError

BINS = 32


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


class Feature(msgspec.Struct, frozen=True, kw_only=True):
    """One watched number.

    Args:
        name: Unique in the profile, e.g. ``image.std``.
        tensor: The input or output it is taken from.
        side: Where that tensor is.
        index: For ``element``: which one of the flattened row.
        edges: Bin edges, ascending; bin i holds edges[i] <= x < edges[i + 1], the last bin its upper edge too.
    """

    name: str
    tensor: str
    side: str  # "input" | "output"
    projection: Projection
    edges: tuple[float, ...]
    index: int = 0

    def __post_init__(self) -> None:
        if len(self.edges) < 2 or any(b <= a for a, b in zip(self.edges, self.edges[1:], strict=False)):
            raise PackageError(f"feature {self.name}: needs at least two ascending bin edges, got {self.edges}")


class FeatureCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Exact counts of one feature.

    Args:
        bins: One count per bin.
        under: Values below the first edge; ``over``: above the last.
        nan: Not-a-number; ``inf``: infinities, of both signs.
        missing: Rows in which the tensor was absent or filled.
        total: Sum of the finite values; ``squares``: sum of their squares.
    """

    bins: tuple[int, ...]
    under: int = 0
    over: int = 0
    nan: int = 0
    inf: int = 0
    missing: int = 0
    total: float = 0.0
    squares: float = 0.0

    @property
    def rows(self) -> int:
        """Rows counted, whatever became of them."""
        return sum(self.bins) + self.under + self.over + self.nan + self.inf + self.missing

    def cells(self) -> NDArray[np.int64]:
        """All counts as int64[bins + 5]: under, the bins, over, nan, inf, missing."""
        return np.array([self.under, *self.bins, self.over, self.nan, self.inf, self.missing], dtype=np.int64)

    def merge(self, other: FeatureCounts) -> FeatureCounts:
        """The counts of both together.

        Raises:
            PackageError: They were counted in different bins.
        """
        if len(self.bins) != len(other.bins):
            raise PackageError(f"cannot merge counts of {len(self.bins)} and {len(other.bins)} bins: profiles differ")
        return FeatureCounts(
            bins=tuple(a + b for a, b in zip(self.bins, other.bins, strict=True)),
            under=self.under + other.under,
            over=self.over + other.over,
            nan=self.nan + other.nan,
            inf=self.inf + other.inf,
            missing=self.missing + other.missing,
            total=self.total + other.total,
            squares=self.squares + other.squares,
        )


class ReferenceProfile(msgspec.Struct, frozen=True, kw_only=True):
    """What ``reference.profile`` says.

    Args:
        counts: Of the reference data, by feature name.
        calibration: Knots (confidence, P(correct)) of the isotonic map from confidence to accuracy.
        accuracy: Accuracy on the reference data.
        margin_threshold: Margin under which a prediction counts as uncertain (the reference's 20 % quantile).
    """

    features: tuple[Feature, ...]
    counts: dict[str, FeatureCounts]
    calibration: tuple[tuple[float, float], ...] = ()
    accuracy: float | None = None
    margin_threshold: float = 0.5

    def __post_init__(self) -> None:
        names = [feature.name for feature in self.features]
        if set(names) != set(self.counts) or len(set(names)) != len(names):
            raise PackageError(f"profile: features {sorted(names)} and counts {sorted(self.counts)} differ")


def encode_profile(profile: ReferenceProfile) -> bytes:
    """The bytes of ``reference.profile`` (msgpack)."""
    return msgspec.msgpack.encode(profile, order="deterministic")


def decode_profile(data: bytes) -> ReferenceProfile:
    """The profile in the bytes of ``reference.profile``.

    Raises:
        PackageError: It is none.
    """
    try:
        return msgspec.msgpack.decode(data, type=ReferenceProfile)
    except (msgspec.DecodeError, PackageError) as error:
        raise PackageError(f"reference.profile: {error}") from error


def project(feature: Feature, tensor: NDArray[Any]) -> NDArray[np.float64]:
    """The feature's value in each row of its tensor, float64[N]; it may be a view of ``tensor``.

    What cannot be computed (a NaN or infinity in the row, an image with no weight) comes out as NaN or infinity.

    Args:
        tensor: Axis 0 is N; for gradient and centroid the last two axes are rows and columns of an image.
    Raises:
        PackageError: The profile does not fit the tensor: text, no elements, no such index, no image.
    """
    if tensor.dtype.kind not in "fiub" or tensor.ndim == 0:
        raise PackageError(f"feature {feature.name}: tensor '{feature.tensor}' is {tensor.dtype}, not rows of numbers")
    if len(tensor) == 0:
        return np.empty(0, dtype=np.float64)
    columns = tensor.size // len(tensor)
    if columns <= (feature.index if feature.projection is Projection.ELEMENT else 0):
        raise PackageError(
            f"feature {feature.name}: tensor '{feature.tensor}' has {columns} elements per row, index is {feature.index}"
        )
    with np.errstate(all="ignore"):  # infinities and NaN are results here; count() tells them apart
        if feature.projection in _OF_IMAGE:
            if tensor.ndim < 3 or min(tensor.shape[-2:]) < 2:
                raise PackageError(
                    f"feature {feature.name}: {feature.projection.value} needs images of at least 2 x 2, "
                    f"got rows of shape {tensor.shape[1:]}"
                )
            image = tensor.reshape(len(tensor), -1, *tensor.shape[-2:]).astype(np.float64, copy=False)
            return _OF_IMAGE[feature.projection](image)
        rows = tensor.reshape(len(tensor), -1).astype(np.float64, copy=False)
        if feature.projection is Projection.ELEMENT:
            return rows[:, feature.index]
        return _OF_ROWS[feature.projection](rows)


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


def count(feature: Feature, values: NDArray[np.float64], *, missing: int = 0) -> FeatureCounts:
    """The counts of ``values``, float64[N], in the feature's bins, and ``missing`` rows besides."""
    finite = values[np.isfinite(values)]
    nan = int(np.isnan(values).sum())
    edges = np.asarray(feature.edges)
    at = np.searchsorted(edges, finite, side="right")
    at[finite == edges[-1]] = len(edges) - 1
    cells = np.bincount(at, minlength=len(edges) + 1)
    return FeatureCounts(
        bins=tuple(cells[1:-1].tolist()),
        under=int(cells[0]),
        over=int(cells[-1]),
        nan=nan,
        inf=len(values) - len(finite) - nan,
        missing=missing,
        total=float(finite.sum()),
        squares=float(np.square(finite).sum()),
    )


def count_batch(
    features: tuple[Feature, ...], inputs: Mapping[str, NDArray[Any]], outputs: Mapping[str, NDArray[Any]]
) -> dict[str, FeatureCounts]:
    """The counts of one batch by feature name; a tensor that is absent counts its rows as missing."""
    rows = len(next(iter(outputs.values())))
    counts: dict[str, FeatureCounts] = {}
    for feature in features:
        tensor = (inputs if feature.side == "input" else outputs).get(feature.tensor)
        if tensor is None:
            counts[feature.name] = count(feature, np.empty(0), missing=rows)
        else:
            counts[feature.name] = count(feature, project(feature, tensor))
    return counts


def merge(a: Mapping[str, FeatureCounts], b: Mapping[str, FeatureCounts]) -> dict[str, FeatureCounts]:
    """Both sets of counts together; a feature in only one of them is kept as it is."""
    merged = dict(a)
    for name, counts in b.items():
        merged[name] = merged[name].merge(counts) if name in merged else counts
    return merged


def quantile_edges(values: NDArray[np.float64], bins: int = BINS) -> tuple[float, ...]:
    """At most ``bins`` + 1 ascending edges that share the finite ``values`` out evenly; ties share one bin."""
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        raise PackageError("cannot make bins: the reference data has no finite value")
    edges = np.unique(np.quantile(finite, np.linspace(0.0, 1.0, bins + 1)))
    if len(edges) == 1:
        edges = np.array([edges[0] - 0.5, edges[0] + 0.5])
    return tuple(edges.tolist())
