"""A training run's verdict: what it came to before, limits, and what the package then says."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from edge_agent.contract.errors import ConfigurationError
from edge_agent.contract.runs import RunState
from edge_agent.runtime.package import Package
from tests.trainer.conftest import field_rows, run_file
from tests.trainer.release.test_forms import with_gates
from trainer.recipe import Recipe
from trainer.release.lineage import trainer_digest
from trainer.release.package import lock_digest
from trainer.work.run import PACKAGE_FOLDER, execute


def test_a_package_says_what_it_follows_from_and_draws_its_card(recipe: Recipe, champion: Package) -> None:
    lineage = champion.manifest.lineage
    assert (lineage.samples_version, lineage.labels_version, lineage.champion) == (0, 0, None)
    assert (lineage.trainer_sha256, lineage.lock_sha256) == (trainer_digest(), lock_digest())
    card = champion.path("card.md").read_text()
    for name in ("slices", "reliability", "confusion"):
        assert f"(card/{name}.svg)" in card
        assert champion.path(f"card/{name}.svg").read_bytes().startswith(b"<?xml")
    assert "int8: " in card
    assert f"digest {str(lineage.inputs)[:12]}: `shoal reproduce`" in card
    parity = json.loads(champion.path("parity.json").read_text())["forms"]["fp32"]
    assert [shape["rows"] for shape in parity["shapes"]] == [1, 2, 7, 32, 16]
    assert "class 3" in parity["slices"]
    judged = json.loads(champion.path("evaluation.json").read_text())
    assert 0 <= judged["calibration_error"] < 0.3
    assert judged["footprint"]["fp32"]["p99_ms"] > 0


def test_a_night_on_which_nothing_has_changed_does_not_train_again(
    recipe: Recipe, champion: Package, base_lake: Path, tmp_path: Path
) -> None:
    inputs = str(champion.manifest.lineage.inputs)
    said: list[str] = []
    run = run_file(base_lake, run="run-2", tried={"run-0": "0" * 64, "run-1": inputs})
    result = execute(
        run, recipe, tmp_path / "w", champion=None, version="2", report=lambda stage, *_: said.append(stage)
    )
    assert result.state is RunState.UNCHANGED
    assert result.inputs == inputs
    assert result.reasons[0].startswith("nothing has changed since run run-1: the same rows and labels, recipe")
    assert set(said) == {"dataset"}


def test_where_no_challenger_could_be_judged_none_is_trained(
    recipe: Recipe, champion: Package, lake_with: Callable[..., Path], tmp_path: Path
) -> None:
    lake = lake_with(*field_rows(recipe, champion, per_device=25, drifted=False))
    said: list[str] = []
    many = msgspec.structs.replace(recipe.file.dataset, current_rows=300)
    strict = dataclasses.replace(recipe, file=msgspec.structs.replace(recipe.file, dataset=many))
    run, work = run_file(lake, champion), tmp_path / "w"
    result = execute(run, strict, work, champion=champion, version="2", report=lambda stage, *_: said.append(stage))
    assert result.state is RunState.REFUSED
    assert result.evaluation["outcome"] == "undecided"
    assert "a comparison needs 300: more labels are needed" in result.reasons[0]
    assert set(said) == {"dataset"}, "nothing was trained"


@pytest.mark.parametrize("change", ["seed", "code"])
def test_another_seed_or_other_code_is_another_run(
    recipe: Recipe, champion: Package, base_lake: Path, change: str
) -> None:
    from trainer.data.dataset import read_dataset
    from trainer.release.lineage import known

    dataset = read_dataset(recipe, str(base_lake))
    inputs = champion.manifest.lineage.inputs
    assert known(recipe, dataset, champion=None, seed=1).inputs == inputs
    other = dataclasses.replace(recipe, digest="f" * 64) if change == "code" else recipe
    assert known(other, dataset, champion=None, seed=1 if change == "code" else 2).inputs != inputs


def test_a_model_beyond_the_recipes_limits_is_refused_with_the_figures(
    recipe: Recipe, lake_with: Callable[..., Path], tmp_path: Path
) -> None:
    quick = msgspec.structs.replace(recipe.file.training, epochs=2)
    strict = with_gates(recipe, max_size_mib=0.05, min_accuracy=0.1, int8="off")
    strict = dataclasses.replace(strict, file=msgspec.structs.replace(strict.file, training=quick))
    result = execute(
        run_file(lake_with([], [])), strict, tmp_path / "w", champion=None, version="1", report=lambda *_: None
    )
    assert result.state is RunState.REFUSED
    assert result.reasons[0].startswith("it takes too much: 0.2")
    assert "max_size_mib allows 0.05" in result.reasons[0]
    assert result.inputs
    assert not (tmp_path / "w" / PACKAGE_FOLDER).exists()


def test_what_was_trained_on_stands_in_the_lakes_book(champion: Package, first_lake: Path) -> None:
    from trainer.data.records import find_record

    record = find_record(str(first_lake), "digits", champion.manifest.lineage.dataset)
    assert record is not None
    assert (record.package, record.version, record.run) == (champion.digest, "1", "run-1")


def test_a_backfill_knows_no_label_that_was_given_later(
    recipe: Recipe, champion: Package, lake_with: Callable[..., Path], tmp_path: Path
) -> None:
    lake = lake_with(*field_rows(recipe, champion, per_device=40, drifted=True))
    run = run_file(lake, champion, labels_until="2025-03-01T12:00:00Z")  # the first label is 100 ms younger
    said: list[str] = []
    result = execute(
        run, recipe, tmp_path / "w", champion=champion, version="2", report=lambda *line: said.append(str(line[2]))
    )
    assert result.state is RunState.UNCHANGED
    assert result.reasons[0].startswith("nothing to learn from: 0 labelled rows of today's world")
    assert "701 labelled rows, 0 from the field, as known at 2025-03-01T12:00:00Z" in said
    with pytest.raises(ConfigurationError, match="labels_until 'noon' is no moment like"):
        execute(
            run_file(lake, champion, labels_until="noon"),
            recipe,
            tmp_path / "x",
            champion=champion,
            version="2",
            report=lambda *_: None,
        )
