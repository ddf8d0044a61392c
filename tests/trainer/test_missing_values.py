"""Values that are missing: filled for the model, and still missing where devices see them missing too."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edge_agent.contract.tensors import Tensor
from edge_agent.runtime.onnx import OnnxBackend
from edge_agent.runtime.package import Golden, Package
from edge_agent.runtime.selftest import self_test
from tests.trainer.conftest import field_rows
from trainer.data.dataset import Dataset, read_dataset
from trainer.data.rows import encode_row
from trainer.recipe import Recipe
from trainer.release.forms import golden_inputs
from trainer.release.reference import build_reference

FILL = -1.0  # below the minimum, so that the model can tell it from a measurement


@pytest.fixture
def nullable(recipes: Path, tmp_path: Path) -> Recipe:
    """The recipe, which takes images with missing pixels."""
    shutil.copytree(recipes / "digits", tmp_path / "digits")
    settings = tmp_path / "digits" / "model.toml"
    plain = "constraint = { minimum = 0.0, maximum = 16.0 }"
    text = settings.read_text()
    assert plain in text
    settings.write_text(text.replace(plain, plain.replace(" }", f", nullable = true, fill = {FILL} }}")))
    return Recipe.load(tmp_path / "digits")


@pytest.fixture
def dataset(nullable: Recipe, champion: Package, lake_with: Callable[..., Path]) -> Dataset:
    """Every row of the field lacks a pixel."""
    samples, labels = field_rows(nullable, champion, per_device=120, drifted=True)
    for sample in samples:
        sample["inputs"] = without_a_pixel(sample["inputs"])
    return read_dataset(nullable, str(lake_with(samples, labels)), champion=champion.digest)


def without_a_pixel(blob: bytes) -> bytes:
    image: Any = msgspec.msgpack.decode(blob, type=dict[str, Tensor])["image"].array().copy()
    image.reshape(1, -1)[0, 5] = np.nan
    return encode_row({"image": image}, 0)


def test_the_model_sees_the_fill_and_the_reference_what_was_sent(
    nullable: Recipe, champion: Package, dataset: Dataset
) -> None:
    assert not np.isnan(dataset.rows.inputs["image"]).any()
    assert np.isnan(dataset.rows.sent["image"]).any(axis=tuple(range(1, dataset.rows.sent["image"].ndim))).sum() == 360
    found = build_reference(nullable, dataset, OnnxBackend(champion))
    assert found.source == "field"
    assert found.profile.counts["image.mean"].nan == found.rows


def test_golden_samples_pass_the_check_that_devices_make_of_them(
    nullable: Recipe, champion: Package, dataset: Dataset
) -> None:
    manifest = msgspec.structs.replace(champion.manifest, signature=nullable.signature)
    backend = OnnxBackend(dataclasses.replace(champion, manifest=manifest))
    rows = golden_inputs(dataclasses.replace(dataset, holdout=dataset.holdout & dataset.field))
    golden = Golden(dict(rows.sent), backend.infer(rows.inputs))
    assert np.isnan(golden.inputs["image"]).any()
    self_test(backend, golden)


def test_rows_that_nothing_changes_are_held_once(recipe: Recipe, base_lake: Path) -> None:
    rows = read_dataset(recipe, str(base_lake), champion=None).rows
    assert rows.sent["image"] is rows.inputs["image"]
    taken = rows.take(rows.targets == 3)
    assert taken.sent["image"] is taken.inputs["image"]
