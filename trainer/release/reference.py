"""The reference profile: what the data of today's world looks like, in bins that devices count in.

Where the field has sent enough rows they are the reference, so that drift closes once a model has learnt the new world;
else the imported rows are. Devices differ by where they stand: the counts of single devices are kept beside those of
all, so that each can be compared with itself.

Of the field's rows only those count that the sampler drew uniformly. Undoing its preference for narrow margins by
weights instead gains no rows, and loses: weights must be clipped (with 5 % of the budget drawn uniformly, the tenth of
the traffic with the narrowest margins came out as 27 %), and a row that stands for several makes counts that vary more
than the drift test's chi-square allows for (by a quarter where the budget had been raised half-way).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.profile import (
    Feature,
    FeatureCounts,
    Projection,
    ReferenceProfile,
    count_batch,
    project,
    quantile_edges,
)
from edge_agent.runtime.backend import InferenceBackend
from trainer.data.dataset import Dataset
from trainer.data.rows import Rows
from trainer.gates.comparison import predict
from trainer.recipe import Recipe

# Fewest rows of a reference: with fewer the drift test has too few cells to see much.
_MIN_ROWS = 60
_MIN_UNSEEN_ROWS = 30
_MIN_JUDGED_ROWS = 60
# Each device's counts add about a kilobyte to every package; of more devices those with the most rows are kept.
_MOST_DEVICES = 500
_MARGIN_QUANTILE = 0.2
# A class is a bin of its own: quantiles of so few values would merge neighbours.
_UNIT_BINS = frozenset({Projection.CLASS})


@dataclass(frozen=True)
class Reference:
    """A profile, and what it was counted over.

    Args:
        source: Where the rows came from: ``field`` or ``imported``; ``rows``: how many.
    """

    profile: ReferenceProfile
    source: str
    rows: int


def build_reference(recipe: Recipe, dataset: Dataset, backend: InferenceBackend) -> Reference:
    """The reference of a model that was trained on ``dataset``.

    Args:
        backend: The new model, on the runtime that devices use.
    """
    rows, unseen, from_field = _rows(dataset)
    outputs = predict(backend, rows.inputs)
    known = unseen if int(unseen.sum()) >= _MIN_UNSEEN_ROWS else np.ones_like(unseen)
    # Inputs are counted as devices count them: as they were sent, before anything was filled or clipped.
    features = _features(recipe, rows, _take(outputs, known))
    counts = _count(features, rows.sent, outputs, known)
    devices = _count_devices(features, rows, outputs, unseen) if from_field else {}
    top = np.sort(outputs[recipe.task.output][known], axis=1)
    judged = dataset.holdout & dataset.current
    if not from_field or judged.sum() < _MIN_JUDGED_ROWS:
        judged = dataset.holdout
    labelled = dataset.rows.take(judged)
    probabilities = predict(backend, labelled.inputs)[recipe.task.output]
    correct = (probabilities.argmax(axis=1) == labelled.targets).astype(np.float64)
    weights = labelled.weights()
    profile = ReferenceProfile(
        features=features,
        counts=counts,
        calibration=calibrate(probabilities.max(axis=1), correct, weights),
        accuracy=float(np.average(correct, weights=weights)),
        margin_threshold=float(np.quantile(top[:, -1] - top[:, -2], _MARGIN_QUANTILE)),
        devices=devices,
    )
    return Reference(profile, "field" if from_field else "imported", len(rows))


def calibrate(
    confidence: NDArray[Any], correct: NDArray[np.float64], weights: NDArray[np.float64]
) -> tuple[tuple[float, float], ...]:
    """Knots (confidence, P(correct)) of the isotonic map, ascending; between them it is linear.

    Args:
        confidence, correct, weights: [N] each, N >= 1; correct is 0 or 1.
    """
    from sklearn.isotonic import IsotonicRegression

    # Two rows of doubt, one at each end, so that a handful of right answers does not promise certainty.
    x = np.concatenate([confidence.astype(np.float64), [0.0, 1.0]])
    y, w = np.concatenate([correct, [0.0, 0.5]]), np.concatenate([weights, [1.0, 1.0]])
    fitted = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(x, y, sample_weight=w)
    return tuple((float(a), float(b)) for a, b in zip(fitted.X_thresholds_, fitted.y_thresholds_, strict=True))


def _rows(dataset: Dataset) -> tuple[Rows, NDArray[np.bool_], bool]:
    """The reference's rows, which of them were not trained on, bool[N], and whether the field sent them."""
    even = dataset.recent.uniform
    if int(even.sum()) >= _MIN_ROWS:
        return dataset.recent.take(even), dataset.unseen[even], True
    imported = ~dataset.field
    if not imported.any():
        imported = np.ones_like(imported)  # few rows, but all there are
    return dataset.rows.take(imported), dataset.holdout[imported], False


def _count_devices(
    features: tuple[Feature, ...], rows: Rows, outputs: dict[str, NDArray[Any]], unseen: NDArray[np.bool_]
) -> dict[str, dict[str, FeatureCounts]]:
    """Counts of each device that sent enough rows; those of outputs only where enough were not trained on."""
    names, sent = np.unique(rows.devices.astype(str), return_counts=True)
    most = sorted(zip(-sent, names, strict=True))[:_MOST_DEVICES]
    devices = {}
    for device in sorted(str(name) for less, name in most if -less >= _MIN_ROWS):
        own = rows.devices == device
        surprised = own & unseen
        known = features if int(surprised.sum()) >= _MIN_ROWS else _of(features, "input")
        devices[device] = _count(known, _take(rows.sent, own), _take(outputs, own), surprised[own])
    return devices


def _features(recipe: Recipe, rows: Rows, outputs: dict[str, NDArray[Any]]) -> tuple[Feature, ...]:
    """The watched numbers with bins that share the reference rows out evenly."""
    features = []
    for watched in recipe.file.monitoring.features:
        side = "input" if watched.tensor in rows.sent else "output"
        probe = Feature(
            name=watched.name or f"{watched.tensor}.{watched.projection.value}",
            tensor=watched.tensor,
            side=side,
            projection=watched.projection,
            index=watched.index,
            edges=(0.0, 1.0),
        )
        tensor = (rows.sent if side == "input" else outputs)[watched.tensor]
        if watched.projection in _UNIT_BINS:
            edges = tuple(float(at) - 0.5 for at in range(tensor.shape[-1] + 1))
        else:
            values = project(probe, tensor)
            if side == "input" and not np.isfinite(values).any():  # always missing: bins for when it no longer is
                values = project(probe, rows.inputs[watched.tensor])
            edges = quantile_edges(values)
        features.append(msgspec.structs.replace(probe, edges=edges))
    return tuple(features)


def _count(
    features: tuple[Feature, ...],
    inputs: Mapping[str, NDArray[Any]],
    outputs: dict[str, NDArray[Any]],
    unseen: NDArray[np.bool_],
) -> dict[str, FeatureCounts]:
    """Counts over all rows; of outputs only over rows not trained on, where a model is surer than it is elsewhere."""
    counts = count_batch(_of(features, "input"), inputs, outputs)
    counts.update(count_batch(_of(features, "output"), _take(inputs, unseen), _take(outputs, unseen)))
    return {feature.name: counts[feature.name] for feature in features}


def _of(features: tuple[Feature, ...], side: str) -> tuple[Feature, ...]:
    return tuple(feature for feature in features if feature.side == side)


def _take(tensors: Mapping[str, NDArray[Any]], mask: NDArray[Any]) -> dict[str, NDArray[Any]]:
    return {name: array[mask] for name, array in tensors.items()}
