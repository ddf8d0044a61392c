"""The coarsest step that passes; the model that was trained from is the first model with noise on its weights."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edge_agent.runtime.backend import InferenceBackend
from edge_agent.runtime.onnx import OnnxBackend
from edge_agent.runtime.package import Package
from trainer.data.dataset import Dataset, read_dataset
from trainer.errors import RecipeError
from trainer.gates.evaluate import Evaluation, evaluate
from trainer.gates.update_gate import UpdateGate, distance
from trainer.recipe import Recipe
from trainer.release.export import weights_of
from trainer.release.package import Identity, write_candidate
from trainer.release.stored import layout_of
from trainer.release.update_search import (
    LADDER,
    Released,
    Update,
    difference_of,
    find_update,
    rounded_candidate,
)

FILES = ("model.onnx", "model.onnx.data", "tensors.json")
Search = Callable[..., Released]


def with_release(recipe: Recipe, **changes: Any) -> Recipe:
    changed = msgspec.structs.replace(recipe.file.release, **changes)
    return dataclasses.replace(recipe, file=msgspec.structs.replace(recipe.file, release=changed))


@pytest.fixture(scope="module")
def dataset(recipe: Recipe, base_lake: Path) -> Dataset:
    return read_dataset(recipe, str(base_lake))


def identity_of(dataset: Dataset) -> Identity:
    return Identity(version="2", parent=None, dataset=dataset.digest, seed=1, run="r")


@pytest.fixture(scope="module")
def parent(recipe: Recipe, champion: Package, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Package:
    """What the champion was trained from, as it were: it answers worse."""
    place = tmp_path_factory.mktemp("parent")
    weights = np.fromfile(champion.path("model.onnx.data"), "<f4")
    rng = np.random.default_rng(3)
    (place / "noisy").write_bytes((weights + rng.normal(0, 0.03, weights.shape)).astype("<f4").tobytes())
    files: dict[str, bytes | Path] = {name: champion.path(name) for name in FILES}
    return write_candidate(
        place / "package", recipe, identity_of(dataset), files | {"model.onnx.data": place / "noisy"}
    )


@pytest.fixture
def search(recipe: Recipe, champion: Package, parent: Package, dataset: Dataset, tmp_path: Path) -> Search:
    files: dict[str, bytes | Path] = {name: champion.path(name) for name in FILES}
    identity = identity_of(dataset)
    candidate = write_candidate(tmp_path / "exact", recipe, identity, files)
    places = (tmp_path / f"work-{at}" for at in itertools.count())

    def judged(found: InferenceBackend) -> Evaluation:
        return evaluate(recipe, dataset, found, None, seed=1)

    # Of 168 held-out rows three may tip over by chance: here nearness decides.
    near = with_release(recipe, update_budget=0.05)

    def run(
        of: Recipe = near, parent: Package | None = parent, verdict: Callable[..., Evaluation] = judged
    ) -> Released:
        backend = OnnxBackend(candidate)
        exact = Released(Update("exact"), candidate, backend, judged(backend))
        return find_update(next(places), of, dataset, identity, exact, parent=parent, evaluate=verdict)

    return run


def test_the_coarsest_step_that_passes_is_released_and_why_coarser_ones_are_not(
    search: Search, champion: Package, parent: Package, tmp_path: Path
) -> None:
    found = search()
    update = found.update
    assert update.rounded is not None, update
    assert update.nearness is not None
    assert update.rounded.factor in LADDER
    assert [factor for factor, _ in update.tried] == list(LADDER[: LADDER.index(update.rounded.factor)])
    assert all("from the exact weights' on average; at most 0.01 is allowed" in fault for _, fault in update.tried), (
        update
    )
    assert update.nearness.faults == ()
    assert update.nearness.distances["probabilities"] <= 0.01
    assert layout_of(found.candidate).files["model.onnx.data"] == update.rounded.layout
    assert update.rounded.layout.base == parent.manifest.files["model.onnx.data"].sha256
    assert 0 < update.sent_bytes < 0.2 * update.rounded.size_bytes
    exact, released = weights_of(champion), weights_of(found.candidate)
    assert not np.array_equal(released["classifier.1.weight"], exact["classifier.1.weight"])
    assert np.array_equal(released["features.2.bias"], exact["features.2.bias"])
    said = update.as_json()
    assert (said["kind"], said["parent"]) == ("quantised", parent.digest)
    assert said["percent_of_full"] == pytest.approx(100 * update.sent_bytes / said["full_bytes"], abs=0.01)
    assert len(list((tmp_path / "work-0").iterdir())) == 1, "what did not pass does not stay"


def test_the_gate_refuses_a_step_that_is_too_coarse(
    recipe: Recipe, champion: Package, parent: Package, dataset: Dataset, tmp_path: Path
) -> None:
    gate = UpdateGate(recipe, dataset, OnnxBackend(champion), seed=1)
    difference = difference_of(champion, parent)
    identity, faults = identity_of(dataset), {}
    for factor in (4.0, 0.05):
        candidate, _ = rounded_candidate(tmp_path / f"f{factor}", recipe, identity, champion, difference, factor=factor)
        nearness = gate.judge(OnnxBackend(candidate))
        faults[factor] = nearness.faults
        assert nearness.as_json()["comparison"]["rows"] == int(dataset.holdout.sum())
    assert any("points may be lost" in fault for fault in faults[4.0])
    assert any("at most 0.01 is allowed" in fault for fault in faults[4.0])
    assert faults[0.05] == ()


def test_where_no_step_passes_the_exact_weights_are_released_and_it_is_said(
    search: Search, recipe: Recipe, champion: Package
) -> None:
    found = search(with_release(recipe, update_distance=0.0, update_budget=0.05))
    assert found.update.rounded is None
    assert found.candidate.path("model.onnx.data").read_bytes() == champion.path("model.onnx.data").read_bytes()
    assert found.update.reason.startswith(
        "exact: no step passed; at the finest, 0.15, its answers 'probabilities' are "
    )
    said = found.update.as_json()
    assert said["kind"] == "exact"
    assert [each["factor"] for each in said["tried"]] == list(LADDER)


def test_a_step_with_which_the_verdict_is_another_does_not_pass(search: Search) -> None:
    asked: list[InferenceBackend] = []
    plain = search()

    def strict(backend: InferenceBackend) -> Evaluation:
        asked.append(backend)
        return plain.evaluation.refused(["not better any more"]) if len(asked) == 1 else plain.evaluation

    found = search(verdict=strict)
    assert plain.update.rounded is not None
    assert found.update.rounded is not None, found.update
    assert found.update.rounded.factor < plain.update.rounded.factor
    assert (plain.update.rounded.factor, "with it the verdict is another: not better any more") in found.update.tried


def test_without_a_parent_weights_are_exact(search: Search) -> None:
    found = search(parent=None)
    assert found.update.reason == (
        "exact: it was not trained from another package's weights, so that it is a difference of none"
    )


def test_a_recipe_may_ask_for_exact_weights(search: Search, recipe: Recipe) -> None:
    found = search(with_release(recipe, update="exact"))
    assert found.update.as_json() == {
        "kind": "exact",
        "reason": 'exact: the recipe says so ([release] update = "exact")',
        "tried": [],
    }


def test_distances_of_answers_of_every_kind() -> None:
    a = np.array([[0.5, 0.5], [1.0, 0.0]])
    b = np.array([[0.6, 0.4], [1.0, 0.0]])
    assert distance(a, b, probabilities=True) == pytest.approx(0.05)
    scores = np.array([1.0, 3.0, np.nan])
    assert distance(scores, scores + 0.1, probabilities=False) == pytest.approx(0.1 * 2 / 3)
    assert distance(np.ones(3), np.ones(3), probabilities=False) == 0.0
    assert distance(np.ones(3), np.full(3, 2.0), probabilities=False) == 1.0
    assert np.isnan(distance(np.arange(3.0), np.array([0, np.nan, 2]), probabilities=False))
    assert distance(np.ones(3), np.array([1, np.nan, 1]), probabilities=False) == 1.0
    words = np.array([b"a", b"b"], dtype=object)
    assert distance(words, np.array([b"a", b"c"], dtype=object), probabilities=False) == 0.5


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('update = "coarse"', "allowed are: quantised, exact"),
        ("update_buget = 0.1", "update_buget"),
        ("update_distance = 2.0", r"update_distance must lie in 0\.\.1, got 2"),
    ],
)
def test_a_misspelt_release_table_is_refused(recipe: Recipe, line: str, said: str, tmp_path: Path) -> None:
    folder = shutil.copytree(recipe.folder, tmp_path / "digits")
    path = folder / "model.toml"
    path.write_text(path.read_text() + f"\n[release]\n{line}\n")
    with pytest.raises(RecipeError, match=said):
        Recipe.load(folder)
