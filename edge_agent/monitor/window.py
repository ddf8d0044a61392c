"""What one package did since the last report: counts that add up, and rows that wait to be counted."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.errors import PackageError
from edge_agent.contract.latency import BUCKETS, bucket_of
from edge_agent.contract.messages import ModelMetrics
from edge_agent.contract.profile import Feature, FeatureCounts, count, count_batch, merge

# Counting 20 numbers takes 0.7 us per row in batches of hundreds, and 30 times that for a row alone.
BATCH_ROWS = 512
BATCH_BYTES = 4 * 1024 * 1024

Tensors = Mapping[str, NDArray[Any]]


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
    _buffer: list[tuple[Tensors, Tensors]] = dataclasses.field(default_factory=list)
    _buffered_rows: int = 0
    _buffered_bytes: int = 0

    def add(self, inputs: Tensors, outputs: Tensors, rows: int, latency_us: float) -> bool:
        """Note one answered request; whether so many rows wait that they should be counted now."""
        self.requests += 1
        self.rows += rows
        self.latency[bucket_of(latency_us)] += 1
        waiting = _numbers(inputs), _numbers(outputs)
        self._buffer.append(waiting)
        self._buffered_rows += rows
        for tensors in waiting:
            for array in tensors.values():
                self._buffered_bytes += array.nbytes
        return self._buffered_rows >= BATCH_ROWS or self._buffered_bytes >= BATCH_BYTES

    def count(self, features: tuple[Feature, ...]) -> None:
        """Count the rows that wait."""
        buffer, self._buffer = self._buffer, []
        self._buffered_rows = self._buffered_bytes = 0
        alike: dict[object, list[tuple[Tensors, Tensors]]] = {}
        for pair in buffer:  # dynamic axes: only tensors of one shape make a batch
            alike.setdefault(_form(pair), []).append(pair)
        for pairs in alike.values():
            inputs, outputs = _joined([pair[0] for pair in pairs]), _joined([pair[1] for pair in pairs])
            for feature in features:
                self.counts = merge(self.counts, _counted(feature, inputs, outputs))
            self.counted += len(next(iter(outputs.values())))

    @property
    def is_empty(self) -> bool:
        """Whether nothing happened."""
        return not (self.requests or self.refused or self.failed)

    def merge(self, later: Window) -> None:
        """Add the counts of a later window of the same package; its waiting rows must have been counted."""
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


def _form(pair: tuple[Tensors, Tensors]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((name, array.shape[1:]) for tensors in pair for name, array in tensors.items())


def _numbers(tensors: Tensors) -> Tensors:
    """Without text, which has no number to count and would only be held in memory."""
    return {name: array for name, array in tensors.items() if array.dtype.kind != "O"}


def _joined(parts: list[Tensors]) -> Tensors:
    """One batch of all parts."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _counted(feature: Feature, inputs: Tensors, outputs: Tensors) -> dict[str, FeatureCounts]:
    try:
        return count_batch((feature,), inputs, outputs)
    except PackageError:
        # Dynamic axes: rows too short for the feature, which the golden samples could not show.
        return {feature.name: count(feature, np.empty(0), missing=len(next(iter(outputs.values()))))}
