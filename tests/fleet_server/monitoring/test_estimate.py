from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_agent.contract.profile import (
    Feature,
    FeatureCounts,
    Projection,
    ReferenceProfile,
    count,
    quantile_edges,
)
from fleet_server.monitoring.estimate import estimate_accuracy


def profile(confidence: NDArray[np.float64], accuracy: float | None = None) -> ReferenceProfile:
    feature = Feature(
        name="confidence",
        tensor="p",
        side="output",
        projection=Projection.CONFIDENCE,
        edges=quantile_edges(confidence),
    )
    # This model is overconfident: it is right with probability c^2.
    knots = tuple((float(c), float(c * c)) for c in np.linspace(0.1, 1.0, 19))
    counts = {"confidence": count(feature, confidence)}
    return ReferenceProfile(features=(feature,), counts=counts, calibration=knots, accuracy=accuracy)


def test_accuracy_under_shift_is_estimated_without_a_label() -> None:
    rng = np.random.default_rng(0)
    before, after = rng.beta(9, 1, 2_000), rng.beta(4, 2, 2_000)
    reference = profile(before, accuracy=float(np.mean(before**2)))
    counts = {"confidence": count(reference.features[0], after)}
    assert estimate_accuracy(reference, counts) == pytest.approx(np.mean(after**2), abs=0.02)


def test_on_the_reference_itself_the_estimate_is_its_accuracy() -> None:
    reference = profile(np.random.default_rng(0).beta(9, 1, 2_000), accuracy=0.87)
    assert estimate_accuracy(reference, reference.counts) == pytest.approx(0.87)


def test_without_calibration_or_confidences_there_is_no_estimate() -> None:
    reference = profile(np.linspace(0.2, 1.0, 100))
    empty = {"confidence": FeatureCounts(bins=(0,) * len(reference.counts["confidence"].bins), nan=9)}
    assert estimate_accuracy(reference, empty) is None
    assert estimate_accuracy(reference, {}) is None
    bare = ReferenceProfile(features=reference.features, counts=reference.counts)
    assert estimate_accuracy(bare, reference.counts) is None
