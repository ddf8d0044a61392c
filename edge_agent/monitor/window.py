"""What one package did since the last report: counts that add up."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.errors import PackageError
from edge_agent.contract.latency import BUCKETS
from edge_agent.contract.messages import ModelMetrics
from edge_agent.contract.profile import Feature, FeatureCounts, count, merge, project

Tensors = Mapping[str, NDArray[Any]]

# Wider ones are widened feature by feature, so that no two copies are there at once.
_WIDENED_BYTES = 256 * 1024


@dataclasses.dataclass
class Window:
    """Counts of one package.

    Args:
        latency: Requests per bucket of ``BOUNDS_US``.
        counts: Of the rows counted so far, by feature; ``counted``: how many rows these are.
    """

    requests: int = 0
    rows: int = 0
    refused: int = 0
    failed: int = 0
    latency: list[int] = dataclasses.field(default_factory=lambda: [0] * BUCKETS)
    counts: dict[str, FeatureCounts] = dataclasses.field(default_factory=dict)
    counted: int = 0

    def took(self, buckets: Mapping[int, int]) -> None:
        """Note how many requests took how long, by the buckets of ``BOUNDS_US``."""
        latency = self.latency
        for bucket, requests in buckets.items():
            latency[bucket] += requests

    def count(self, features: tuple[Feature, ...], batches: Iterable[tuple[Tensors, Tensors]]) -> None:
        """Count the rows of batches of inputs and outputs: their values batch by batch, all of them at once."""
        values: dict[str, list[NDArray[np.float64]]] = {feature.name: [] for feature in features}
        missing = dict.fromkeys(values, 0)
        total = 0
        for given, found in batches:
            # Features are numbers of that width: to widen a tensor for each of them took longer than the features.
            inputs, outputs = _widened(given), _widened(found)
            rows = len(next(iter(outputs.values())))
            total += rows
            for feature in features:
                each = _values(feature, inputs, outputs)
                if each is None:
                    missing[feature.name] += rows
                else:
                    values[feature.name].append(each)
        if not total:
            return
        counts = {
            feature.name: count(
                feature, np.concatenate([np.empty(0), *values[feature.name]]), missing=missing[feature.name]
            )
            for feature in features
        }
        self.counts = merge(self.counts, counts)
        self.counted += total

    @property
    def is_empty(self) -> bool:
        """Whether nothing happened."""
        return not (self.requests or self.refused or self.failed)

    def merge(self, later: Window) -> None:
        """Add the counts of a later window of the same package."""
        self.requests += later.requests
        self.rows += later.rows
        self.refused += later.refused
        self.failed += later.failed
        self.latency = [a + b for a, b in zip(self.latency, later.latency, strict=True)]
        self.counts = merge(self.counts, later.counts)
        self.counted += later.counted

    def metrics(self, model: str, version: str, package: str) -> ModelMetrics:
        """The counts as they are reported."""
        return ModelMetrics(
            model=model,
            version=version,
            package=package,
            requests=self.requests,
            rows=self.rows,
            refused=self.refused,
            failed=self.failed,
            latency_counts=tuple(self.latency),
        )


def _widened(tensors: Tensors) -> Tensors:
    return {
        name: array.astype(np.float64) if array.dtype.kind == "f" and array.nbytes <= _WIDENED_BYTES else array
        for name, array in tensors.items()
    }


def _values(feature: Feature, inputs: Tensors, outputs: Tensors) -> NDArray[np.float64] | None:
    """The feature's value in each row; None where the batch has none."""
    tensor = feature.tensor_of(inputs, outputs)
    if tensor is None:
        return None
    try:
        values = project(feature, tensor)
    except PackageError:
        # Dynamic axes: rows too short for the feature, which the golden samples could not show.
        return None
    return values if values.base is None else values.copy()  # a column of the tensor would keep all of it
