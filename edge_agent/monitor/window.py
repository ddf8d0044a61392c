"""What one package did since the last report: counts that add up, and rows that wait to be counted."""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.latency import BOUNDS_US, BUCKETS
from edge_agent.contract.messages import ModelMetrics
from edge_agent.contract.profile import Feature, FeatureCounts, count_batch, merge

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
        self.latency[bisect.bisect_left(BOUNDS_US, latency_us)] += 1
        self._buffer.append((inputs, outputs))
        self._buffered_rows += rows
        for array in inputs.values():
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
            self.counts = merge(self.counts, count_batch(features, inputs, outputs))
            self.counted += len(next(iter(outputs.values())))

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


def _joined(parts: list[Tensors]) -> dict[str, NDArray[Any]]:
    """One batch of all parts; text is left out, for it has no number to count."""
    return {
        name: np.concatenate([part[name] for part in parts])
        for name, array in parts[0].items()
        if array.dtype.kind != "O"
    }
