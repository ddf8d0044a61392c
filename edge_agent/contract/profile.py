"""Profiles: what a model's data looks like, as exact integer counts in reference bins.

A profile is made once, by the trainer, over the reference data; its bins travel in the package. A device counts its
live rows in the same bins, and counts of any number of devices and windows merge by addition.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.errors import PackageError
from edge_agent.contract.projection import Projection, project_rows
from edge_agent.contract.quantities import Count

__all__ = [
    "BINS",
    "Feature",
    "FeatureCounts",
    "Projection",  # defined beside its formulas, part of a feature all the same
    "ReferenceProfile",
    "count",
    "count_batch",
    "decode_profile",
    "encode_profile",
    "merge",
    "project",
    "quantile_edges",
]

BINS = 32


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
        ascending = all(low < high for low, high in itertools.pairwise(self.edges))
        if len(self.edges) < 2 or not ascending or not all(map(math.isfinite, self.edges)):
            raise PackageError(f"feature {self.name}: needs at least two ascending, finite bin edges, got {self.edges}")
        if self.side not in {"input", "output"}:
            raise PackageError(f"feature {self.name}: side is {self.side!r}, not 'input' or 'output'")
        if self.index < 0:
            raise PackageError(f"feature {self.name}: index {self.index} is negative")

    def tensor_of(self, inputs: Mapping[str, NDArray[Any]], outputs: Mapping[str, NDArray[Any]]) -> NDArray[Any] | None:
        """Its tensor in a batch; None where that is absent."""
        return (inputs if self.side == "input" else outputs).get(self.tensor)


class FeatureCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Exact counts of one feature.

    Args:
        bins: One count per bin.
        under: Values below the first edge; ``over``: above the last.
        nan: Not-a-number; ``inf``: infinities, of both signs.
        missing: Rows in which the tensor was absent, or too small for the feature.
        total: Sum of the finite values; ``squares``: sum of their squares. Floating point: unlike the counts, they
            depend in their last digits on the order of merging, and are infinite where the sum overflows.
    """

    bins: tuple[Count, ...]
    under: Count = 0
    over: Count = 0
    nan: Count = 0
    inf: Count = 0
    missing: Count = 0
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
        devices: By device and feature, what that device's own data looks like, in the same bins: devices differ by
            where they stand. A device or feature that is absent is compared with ``counts``.
    """

    features: tuple[Feature, ...]
    counts: dict[str, FeatureCounts]
    calibration: tuple[tuple[float, float], ...] = ()
    accuracy: float | None = None
    margin_threshold: float = 0.5
    devices: dict[str, dict[str, FeatureCounts]] = {}

    def __post_init__(self) -> None:
        names = [feature.name for feature in self.features]
        if set(names) != set(self.counts) or len(set(names)) != len(names):
            raise PackageError(f"profile: features {sorted(names)} and counts {sorted(self.counts)} differ")
        bins = {feature.name: len(feature.edges) - 1 for feature in self.features}
        _check_bins(self.counts, bins, "")
        for device, own in self.devices.items():
            _check_bins(own, bins, f" of {device}")
        if any(low[0] >= high[0] for low, high in itertools.pairwise(self.calibration)):
            raise PackageError(f"profile: the calibration's confidences do not ascend: {self.calibration}")


def _check_bins(counts: Mapping[str, FeatureCounts], bins: Mapping[str, int], whose: str) -> None:
    for name, found in counts.items():
        if name not in bins:
            raise PackageError(f"profile: counts{whose} of {name}, which is none of the features {sorted(bins)}")
        if len(found.bins) != bins[name]:
            raise PackageError(f"feature {name}: {len(found.bins)} counts{whose} for {bins[name]} bins")


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
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, PackageError) as error:
        raise PackageError(f"reference.profile: {error}") from error


def project(feature: Feature, tensor: NDArray[Any]) -> NDArray[np.float64]:
    """The feature's value in each row of its tensor, float64[N]; it may be a view of ``tensor``.

    What cannot be computed (a NaN or infinity in the row, an image with no weight) comes out as NaN or infinity.

    Args:
        tensor: Axis 0 is N; for gradient and centroid the last two axes are rows and columns of an image.
    Raises:
        PackageError: The profile does not fit the tensor: text, no elements, no such index, no image.
    """
    try:
        return project_rows(feature.projection, tensor, index=feature.index)
    except PackageError as error:
        raise PackageError(f"feature {feature.name}: tensor '{feature.tensor}' {error}") from error


def count(feature: Feature, values: NDArray[np.float64], *, missing: int = 0) -> FeatureCounts:
    """The counts of ``values``, float64[N], in the feature's bins, and ``missing`` rows besides."""
    values = np.asarray(values, dtype=np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        total = float(values.sum())
    finite, nan = values, 0
    if not math.isfinite(total):  # one sum tells whether a NaN or an infinity is there at all
        finite, nan = values[np.isfinite(values)], int(np.isnan(values).sum())
        with np.errstate(over="ignore", invalid="ignore"):
            total = float(finite.sum())
    edges = _edges(feature.edges)
    at = edges.searchsorted(finite, side="right")
    at[finite == edges[-1]] = len(edges) - 1
    cells = np.bincount(at, minlength=len(edges) + 1)
    with np.errstate(over="ignore"):
        squares = float(finite.dot(finite))
    return FeatureCounts(
        bins=tuple(cells[1:-1].tolist()),
        under=int(cells[0]),
        over=int(cells[-1]),
        nan=nan,
        inf=len(values) - len(finite) - nan,
        missing=missing,
        total=total,
        squares=squares,
    )


@functools.lru_cache(maxsize=1024)
def _edges(edges: tuple[float, ...]) -> NDArray[np.float64]:
    return np.asarray(edges)


def count_batch(
    features: tuple[Feature, ...], inputs: Mapping[str, NDArray[Any]], outputs: Mapping[str, NDArray[Any]]
) -> dict[str, FeatureCounts]:
    """The counts of one batch by feature name; a tensor that is absent counts its rows as missing.

    Raises:
        PackageError: The profile does not fit a tensor; or there is no tensor to tell the rows from.
    """
    first = next(iter((*outputs.values(), *inputs.values())), None)
    if first is None:
        raise PackageError("cannot count a batch without tensors")
    rows = len(first)
    counts: dict[str, FeatureCounts] = {}
    for feature in features:
        tensor = feature.tensor_of(inputs, outputs)
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
    """At most ``bins`` + 1 ascending edges that share the finite ``values`` out evenly.

    Of no more than ``bins`` distinct values (classes, flags) each gets a bin of its own, with edges halfway between:
    quantiles would put the two largest into one bin. Otherwise equal values share one bin.

    Raises:
        PackageError: There is no finite value.
    """
    finite = np.asarray(values, dtype=np.float64)
    finite = finite[np.isfinite(finite)]
    if finite.size == 0:
        raise PackageError("cannot make bins: the reference data has no finite value")
    distinct = np.unique(finite)
    edges = _edges_between(distinct) if len(distinct) <= bins else _edges_by_quantile(finite, bins)
    return tuple(edges.tolist())


def _edges_between(distinct: NDArray[np.float64]) -> NDArray[np.float64]:
    """One bin around each of the ascending values; the outer ones reach as far out as they reach in."""
    halves = np.diff(distinct / 2)  # halved first: the difference of two large floats may overflow
    middle = distinct[:-1] + halves
    middle = np.where(middle > distinct[:-1], middle, distinct[1:])  # neighbouring floats have nothing between them
    reach_low, reach_high = (halves[0], halves[-1]) if len(halves) else (0.5, 0.5)
    largest = np.finfo(np.float64).max
    with np.errstate(over="ignore"):
        first = distinct[0] - max(reach_low, np.spacing(abs(distinct[0])))
        last = distinct[-1] + max(reach_high, np.spacing(abs(distinct[-1])))
    # Unique: above the largest float there is no edge, so it shares a bin with its neighbour.
    edges: NDArray[np.float64] = np.unique(np.clip([first, *middle, last], -largest, largest))
    return edges


def _edges_by_quantile(finite: NDArray[np.float64], bins: int) -> NDArray[np.float64]:
    # Interpolation takes differences, which overflow near the largest float; a quarter of all values does not.
    scale = 0.25 if np.abs(finite).max() > 1e300 else 1.0
    quantiles = np.quantile(finite * scale, np.linspace(0.0, 1.0, bins + 1)) / scale
    edges: NDArray[np.float64] = np.unique(quantiles)
    return edges
