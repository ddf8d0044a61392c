"""The reference profile: what the data of today's world looks like, in bins that devices count in.

Where the field has sent enough rows they are the reference, so that drift closes once a model has learnt the new world;
else the imported rows are. Devices differ by where they stand: the counts of single devices are kept beside those of
all, so that each can be compared with itself.
"""

from __future__ import annotations

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
from trainer.dataset import Dataset
from trainer.evaluate import predict
from trainer.recipe import Recipe
from trainer.rows import Rows

DEVICES_FILE = "reference.devices"
_MIN_ROWS = 100
_MIN_DEVICE_ROWS = 60
_MIN_UNSEEN_ROWS = 30
_MARGIN_QUANTILE = 0.2
# A class is a bin of its own: quantiles of so few values would merge neighbours.
_UNIT_BINS = frozenset({Projection.CLASS})


@dataclass(frozen=True)
class Reference:
    """A profile, and the same counts for single devices.

    Args:
        devices: By device and feature, in the profile's bins; only devices with enough rows.
        source: Where the rows came from: ``field`` or ``imported``; ``rows``: how many.
    """

    profile: ReferenceProfile
    devices: dict[str, dict[str, FeatureCounts]]
    source: str
    rows: int

    def encoded_devices(self) -> bytes:
        """The bytes of ``reference.devices`` (msgpack of the counts by device and feature)."""
        return msgspec.msgpack.encode(self.devices, order="deterministic")


def build_reference(recipe: Recipe, dataset: Dataset, backend: InferenceBackend, *, seed: int) -> Reference:
    """The reference of a model that was trained on ``dataset``.

    Args:
        backend: The new model, on the runtime that devices use.
        seed: Of the draw that undoes the sampler's preference for uncertain rows.
    """
    from_field = len(dataset.recent) >= _MIN_ROWS
    rows = dataset.recent if from_field else dataset.rows
    unseen = dataset.unseen if from_field else dataset.holdout
    chosen = _fair_draw(rows, seed)
    rows, unseen = rows.take(chosen), _enough(unseen[chosen])
    outputs = predict(backend, rows.inputs)
    features = _features(recipe, rows.inputs, _take(outputs, unseen))
    counts = _count(features, rows.inputs, outputs, unseen)
    devices = {}
    for device in sorted(set(rows.devices)) if from_field else []:
        own = rows.devices == device
        if own.sum() >= _MIN_DEVICE_ROWS:
            devices[device] = _count(features, _take(rows.inputs, own), _take(outputs, own), _enough(unseen[own]))
    judged = dataset.holdout & dataset.current
    if not from_field or judged.sum() < _MIN_DEVICE_ROWS:
        judged = dataset.holdout
    known = dataset.rows.take(judged)
    probabilities = predict(backend, known.inputs)[recipe.task.output]
    correct = (probabilities.argmax(axis=1) == known.targets).astype(np.float64)
    weights = known.weights()
    top = np.sort(outputs[recipe.task.output][unseen], axis=1)
    profile = ReferenceProfile(
        features=features,
        counts=counts,
        calibration=calibrate(probabilities.max(axis=1), correct, weights),
        accuracy=float(np.average(correct, weights=weights)),
        margin_threshold=float(np.quantile(top[:, -1] - top[:, -2], _MARGIN_QUANTILE)),
    )
    return Reference(profile, devices, "field" if from_field else "imported", len(rows))


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


def _fair_draw(rows: Rows, seed: int) -> NDArray[np.int64]:
    """Rows as the device saw them, drawn by inverse probability; as many as they are worth (Kish 1965)."""
    weights = rows.weights()
    if np.allclose(weights, 1.0):
        return np.arange(len(rows))
    worth = int(np.square(weights.sum()) / np.square(weights).sum())
    # Systematic: each row comes floor or ceil of its expected number of times.
    steps = (np.random.default_rng(seed).random() + np.arange(worth)) / worth
    return np.searchsorted(np.cumsum(weights) / weights.sum(), steps, side="right").clip(max=len(rows) - 1)


def _features(recipe: Recipe, inputs: dict[str, NDArray[Any]], outputs: dict[str, NDArray[Any]]) -> tuple[Feature, ...]:
    """The watched numbers with bins that share the reference rows out evenly."""
    features = []
    for watched in recipe.file.monitoring.features:
        side = "input" if watched.tensor in inputs else "output"
        probe = Feature(
            name=watched.name or f"{watched.tensor}.{watched.projection.value}",
            tensor=watched.tensor,
            side=side,
            projection=watched.projection,
            index=watched.index,
            edges=(0.0, 1.0),
        )
        tensor = (inputs if side == "input" else outputs)[watched.tensor]
        if watched.projection in _UNIT_BINS:
            edges = tuple(float(at) - 0.5 for at in range(tensor.shape[-1] + 1))
        else:
            edges = quantile_edges(project(probe, tensor))
        features.append(msgspec.structs.replace(probe, edges=edges))
    return tuple(features)


def _count(
    features: tuple[Feature, ...],
    inputs: dict[str, NDArray[Any]],
    outputs: dict[str, NDArray[Any]],
    unseen: NDArray[np.bool_],
) -> dict[str, FeatureCounts]:
    """Counts over all rows; of outputs only over rows not trained on, where a model is surer than it is elsewhere."""
    ins = tuple(feature for feature in features if feature.side == "input")
    outs = tuple(feature for feature in features if feature.side == "output")
    counts = count_batch(ins, inputs, outputs)
    counts.update(count_batch(outs, _take(inputs, unseen), _take(outputs, unseen)))
    return {feature.name: counts[feature.name] for feature in features}


def _enough(unseen: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The rows not trained on, or all where these are too few to tell anything."""
    return unseen if int(unseen.sum()) >= _MIN_UNSEEN_ROWS else np.ones_like(unseen)


def _take(tensors: dict[str, NDArray[Any]], mask: NDArray[Any]) -> dict[str, NDArray[Any]]:
    return {name: array[mask] for name, array in tensors.items()}
