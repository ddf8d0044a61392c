"""Accuracy without labels: confidence-based performance estimation (CBPE) from the counts of the confidence's bins.

A calibrated confidence is a probability of being right, so its mean over the live rows estimates their accuracy. Counts
know only which bin a row fell in; the error that makes is the same in the reference, whose accuracy is known, so the
difference is taken: ``accuracy(reference) + E[live] - E[reference]``. Blind to label noise and to a changed meaning of
classes: it never stands in for labels, it goes beside them.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edge_agent.contract.profile import Feature, FeatureCounts, Projection, ReferenceProfile


def confidence_feature(profile: ReferenceProfile) -> Feature | None:
    """The profile's feature that counts the largest probability, or None where it has none."""
    return next((feature for feature in profile.features if feature.projection is Projection.CONFIDENCE), None)


def estimate_accuracy(profile: ReferenceProfile, live: Mapping[str, FeatureCounts]) -> float | None:
    """The estimated accuracy of the live rows, 0..1.

    Returns:
        None where the profile has no calibration or confidence feature, or the live counts hold no finite confidence.
    """
    feature = confidence_feature(profile)
    if feature is None or not profile.calibration or feature.name not in live:
        return None
    now = _expected_share(profile, feature, live[feature.name])
    if now is None:
        return None
    then = _expected_share(profile, feature, profile.counts[feature.name])
    offset = 0.0 if profile.accuracy is None or then is None else profile.accuracy - then
    return min(1.0, max(0.0, now + offset))


def _expected_share(profile: ReferenceProfile, feature: Feature, counts: FeatureCounts) -> float | None:
    """Mean P(correct) over the finite rows, each taken at the centre of its bin."""
    if len(counts.bins) != len(feature.edges) - 1:
        return None
    edges = np.asarray(feature.edges)
    centres = np.concatenate([edges[:1], (edges[:-1] + edges[1:]) / 2, edges[-1:]])  # under, the bins, over
    rows = np.array([counts.under, *counts.bins, counts.over], dtype=np.float64)
    if rows.sum() == 0:
        return None
    knots = np.asarray(sorted(profile.calibration))  # [K, 2]
    return float(rows @ np.interp(centres, knots[:, 0], knots[:, 1]) / rows.sum())
