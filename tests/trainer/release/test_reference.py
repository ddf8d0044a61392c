from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_agent.contract.profile import FeatureCounts, count_batch
from edge_agent.contract.sampling import SamplingPolicy
from edge_agent.monitor.sampler import Sampler
from edge_agent.runtime.onnx import OnnxBackend
from edge_agent.runtime.package import Package
from tests.trainer.conftest import NOW_MS, field_rows
from trainer.data.dataset import read_dataset
from trainer.data.rows import encode_row
from trainer.recipe import Recipe
from trainer.release.reference import Reference, build_reference


def reference_of(recipe: Recipe, champion: Package, lake: Path) -> Reference:
    dataset = read_dataset(recipe, str(lake), champion=champion.digest)
    return build_reference(recipe, dataset, OnnxBackend(champion))


def test_the_reference_is_of_the_world_of_today_for_all_and_for_each_device(
    recipe: Recipe, champion: Package, lake_with: Callable[..., Path]
) -> None:
    found = reference_of(recipe, champion, lake_with(*field_rows(recipe, champion, per_device=150, drifted=True)))
    assert found.source == "field"
    assert set(found.profile.devices) == {"cam-a", "cam-b", "cam-c"}
    parts = [counts["image.std"] for counts in found.profile.devices.values()]
    assert sum(part.rows for part in parts) == found.profile.counts["image.std"].rows == found.rows
    mean = found.profile.counts["image.std"].total / found.rows
    assert mean < 0.6 * champion.reference().counts["image.std"].total / 701


def test_a_device_has_a_reference_of_its_own_only_where_it_sent_enough(
    recipe: Recipe, champion: Package, lake_with: Callable[..., Path]
) -> None:
    samples, labels = field_rows(recipe, champion, per_device=150, drifted=True)
    for sample in samples:
        if sample["device"] == "cam-b" and not sample["request_id"].endswith("0"):
            sample["reason"] = "margin"  # 15 of 150 are left
    profile = reference_of(recipe, champion, lake_with(samples, labels)).profile
    assert set(profile.devices) == {"cam-a", "cam-c"}
    rest = profile.counts["image.std"].rows - sum(own["image.std"].rows for own in profile.devices.values())
    assert 0 < rest <= 15, "in the fleet's reference they count"


def test_a_devices_answers_are_its_own_reference_only_where_enough_were_not_trained_on(
    recipe: Recipe, champion: Package, lake_with: Callable[..., Path]
) -> None:
    samples, labels = field_rows(recipe, champion, per_device=150, drifted=True)
    unlabelled = {label["request_id"] for label in labels if label["device"] == "cam-a"}
    few = [label for label in labels if label["request_id"] not in unlabelled or label["request_id"].endswith("7")]
    devices = reference_of(recipe, champion, lake_with(samples, few)).profile.devices
    assert 60 <= devices["cam-a"]["probabilities.margin"].rows < devices["cam-a"]["image.mean"].rows
    assert devices["cam-b"]["image.mean"].rows >= 60
    assert "probabilities.margin" not in devices["cam-b"], "a quarter of 150, held out, is too few"


def test_few_rows_of_the_field_leave_the_imported_ones_as_the_reference(
    recipe: Recipe, champion: Package, lake_with: Callable[..., Path]
) -> None:
    found = reference_of(recipe, champion, lake_with(*field_rows(recipe, champion, per_device=15, drifted=True)))
    assert (found.source, found.rows, found.profile.devices) == ("imported", 701, {})


def sampled(
    recipe: Recipe, champion: Package, *, uniform_share: float, rows: int
) -> tuple[list[dict[str, Any]], dict[str, FeatureCounts]]:
    """What a device's own sampler sends of ``rows`` digits at 25 a second, and the counts of all of them."""
    data, rng = recipe.module("data"), np.random.default_rng(5)
    stream, profile = data.load("stream"), champion.reference()
    chosen = rng.integers(0, len(stream), rows)
    inputs = {"image": recipe.module("world").DRIFTED["cam-c"].show(stream.images[chosen], rng)}
    outputs = OnnxBackend(champion).infer(inputs)
    top = np.sort(outputs["probabilities"], axis=1)
    margins, classes = top[:, -1] - top[:, -2], outputs["probabilities"].argmax(axis=1)
    policy = SamplingPolicy(samples_per_minute=150, uniform_share=uniform_share)
    sampler = Sampler(policy, threshold=profile.margin_threshold, uniform=random.Random(5).random)
    sent = []
    for at, margin in enumerate(margins.tolist()):
        draw = sampler.draw(margin, at / 25)
        if draw is None:
            continue
        sent.append({
            "request_id": f"r{at}", "device": "cam-c", "model": "digits", "package": champion.digest,
            "at_ms": NOW_MS + at * 40, "day": "2025-03-01", "reason": draw.reason.value,
            "inclusion_probability": draw.probability, "prediction": str(classes[at]),
            "confidence": float(top[at, -1]), "margin": margin, "group": data.group(int(stream.rows[chosen[at]])),
            "inputs": encode_row(inputs, at), "outputs": b"\x80",
        })  # fmt: skip
    return sent, count_batch(profile.features, inputs, outputs)


@pytest.mark.parametrize("uniform_share", [0.1, 0.3, 0.6])
def test_that_uncertain_rows_are_sampled_more_often_does_not_bias_the_reference(
    recipe: Recipe, champion: Package, lake_with: Callable[..., Path], uniform_share: float
) -> None:
    sent, traffic = sampled(recipe, champion, uniform_share=uniform_share, rows=20_000)
    labels = [
        {name: row[name] for name in ("request_id", "device", "model", "package", "at_ms", "prediction")}
        | {"label": row["prediction"], "inclusion_probability": 0.01, "source": "t", "labelled_at_ms": row["at_ms"]}
        for row in sent[::100]
    ]
    profile = reference_of(recipe, champion, lake_with(sent, labels)).profile
    asked = sum(row["margin"] for row in sent) / len(sent)
    truth = traffic["probabilities.margin"].total / 20_000
    assert abs(asked - truth) > 0.05, "the sampler does prefer the uncertain"
    for counts in (profile.counts, profile.devices["cam-c"]):
        for name in ("probabilities.margin", "probabilities.confidence", "image.std", "image.centroid"):
            rows, own = traffic[name], counts[name]
            spread = np.sqrt((rows.squares / rows.rows - (rows.total / rows.rows) ** 2) / own.rows)
            assert abs(own.total / own.rows - rows.total / rows.rows) < 4 * spread, name
