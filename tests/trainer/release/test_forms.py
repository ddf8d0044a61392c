from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edge_agent.contract.lake import IMPORTED
from edge_agent.contract.manifest import GOLDEN_FILE, golden_file
from edge_agent.runtime.loaded import LoadedModel, load
from edge_agent.runtime.onnx import OnnxBackend
from edge_agent.runtime.package import Package
from edge_agent.runtime.selftest import prove
from trainer.data.dataset import Dataset, read_dataset
from trainer.gates.parity_matrix import ParityMatrix
from trainer.recipe import Recipe
from trainer.release.export import state_from
from trainer.release.forms import INT8_FILE, Forms, make_forms, parity_slices
from trainer.release.package import Identity, write_candidate
from trainer.release.update_search import Update


def with_gates(recipe: Recipe, **gates: Any) -> Recipe:
    """The recipe with other gates."""
    changed = msgspec.structs.replace(recipe.file.gates, **gates)
    return dataclasses.replace(recipe, file=msgspec.structs.replace(recipe.file, gates=changed))


@pytest.fixture(scope="module")
def dataset(recipe: Recipe, base_lake: Path) -> Dataset:
    return read_dataset(recipe, str(base_lake))


@pytest.fixture(scope="module")
def matrix(recipe: Recipe, champion: Package, dataset: Dataset) -> ParityMatrix:
    network = recipe.network(learning_rate=1e-3, epochs=1)
    weights = state_from(champion, network)
    assert weights is not None
    from trainer.training.loop import load_weights

    load_weights(network, weights)
    slices = parity_slices(recipe, dataset, dataset.holdout)
    unseen = dict(dataset.rows.take(dataset.holdout).inputs)
    return ParityMatrix(network.eval(), recipe.signature, recipe.task.output, unseen, slices=slices)


def forms_of(recipe: Recipe, champion: Package, dataset: Dataset, matrix: ParityMatrix, work: Path) -> Forms:
    backend = OnnxBackend(champion)
    files: dict[str, bytes | Path] = {name: champion.path(name) for name in ("model.onnx", "model.onnx.data")}
    identity = Identity(version="9", parent=None, dataset=dataset.digest, seed=1, run="r")
    candidate = write_candidate(work / "candidate", recipe, identity, files)
    full = matrix.hold(backend, exact=True)
    return make_forms(
        work,
        recipe,
        identity,
        candidate,
        backend,
        dataset=dataset,
        matrix=matrix,
        full=full,
        exact=full,
        update=Update("exact"),
    )


def test_an_int8_form_that_is_fast_and_good_enough_is_kept_and_a_device_can_serve_it(
    recipe: Recipe, champion: Package, dataset: Dataset, matrix: ParityMatrix, tmp_path: Path
) -> None:
    # How fast it is here is for the benchmark; a machine that tests in parallel shows something near it.
    lenient = with_gates(recipe, int8_speedup=1.0, int8_budget=0.05, confidence=0.99)
    found = forms_of(lenient, champion, dataset, matrix, tmp_path)
    if not found.int8.kept:  # too busy: it must be the time alone, and said
        assert "it must be 1 times for a single row" in found.int8.reason or "that busy" in found.int8.reason
        return
    assert found.int8.reason.startswith("it is ")
    assert "held-out rows" in found.int8.reason
    assert set(found.footprints) == set(found.parity) == {"fp32", "int8"}
    assert found.parity["int8"].slices["all"].agreement > 0.95
    assert {"class 0", f"device {IMPORTED}"} <= set(found.parity["int8"].slices)
    package = found.package
    assert {INT8_FILE, golden_file("int8"), GOLDEN_FILE} <= set(package.manifest.files)
    backend = OnnxBackend(package, variant="int8")
    loaded = LoadedModel(package=package, backend=backend, variant="int8")
    prove(loaded)
    full = package.golden().outputs["probabilities"]
    assert 0 < np.abs(loaded.golden().outputs["probabilities"] - full).max() < 0.1


def test_an_int8_form_that_is_not_fast_enough_is_not_released_and_says_so(
    recipe: Recipe, champion: Package, dataset: Dataset, matrix: ParityMatrix, tmp_path: Path
) -> None:
    found = forms_of(with_gates(recipe, int8_speedup=50.0), champion, dataset, matrix, tmp_path)
    assert not found.int8.kept
    assert "it must be 50 times for a single row" in found.int8.reason
    assert set(found.package.manifest.variants) == {"fp32"}
    assert found.int8.as_json()["speedup"] > 0
    assert "int8" in found.parity_json()["forms"], "what it was like is told all the same"
    assert found.served == "fp32"


def test_a_recipe_can_do_without(
    recipe: Recipe, champion: Package, dataset: Dataset, matrix: ParityMatrix, tmp_path: Path
) -> None:
    found = forms_of(with_gates(recipe, int8="off"), champion, dataset, matrix, tmp_path)
    assert found.int8.as_json() == {"kept": False, "reason": "gates.int8 is off"}
    assert set(found.footprints) == {"fp32"}
    assert found.footprints_json()["fp32"]["batch_rows"] == 16


def test_load_takes_the_form_that_is_asked_for(champion: Package) -> None:
    judged = msgspec.json.decode(champion.path("evaluation.json").read_bytes())
    assert judged["int8"]["kept"] == ("int8" in champion.manifest.variants)
    for variant in champion.manifest.variants:
        loaded = load(champion, variant=variant)
        prove(loaded)
        loaded.close()
