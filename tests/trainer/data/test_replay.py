"""Replay slices: named in the recipe or kept in the lake, never trained on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edge_agent.runtime.package import Package
from tests.trainer.conftest import NOW
from tests.trainer.data.test_dataset_versions import camera_rows
from trainer.data.dataset import read_dataset
from trainer.data.records import dataset_records, find_record, record_dataset
from trainer.data.replay import add_replay, kept_rows, remove_replay
from trainer.data.tending import Care, tend
from trainer.errors import DatasetError
from trainer.recipe import Recipe
from trainer.recipe_file import Replay


def with_replay(recipe: Recipe, **query: Any) -> Recipe:
    return Recipe(recipe.folder, msgspec.structs.replace(recipe.file, replay=(Replay(**query),)), recipe.digest)


def test_a_slice_of_the_recipe_is_never_trained_on_nor_is_anything_of_its_groups(
    recipe: Recipe, lake_with: Callable[..., Path]
) -> None:
    lake = str(lake_with(*camera_rows(200)))
    plain = read_dataset(recipe, lake)
    dataset = read_dataset(with_replay(recipe, name="threes", devices=("cam-1",), labels=("3",)), lake)
    mask = dataset.replay["threes"]
    assert set(dataset.rows.devices[mask]) == {"cam-1"}
    assert set(dataset.rows.targets[mask].tolist()) == {3}
    assert not (dataset.train & mask).any()
    assert not set(dataset.rows.groups[mask]) & set(dataset.rows.groups[dataset.train | dataset.validation])
    # Held-out rows judge as before: they are still a fair sample of all.
    assert np.array_equal(dataset.holdout, plain.holdout)
    assert dataset.content != plain.content
    assert dataset.summary()["replay"] == {"threes": int(mask.sum())}


def test_an_incident_is_kept_by_its_rows_as_they_were(recipe: Recipe, lake_with: Callable[..., Path]) -> None:
    lake = str(lake_with(*camera_rows(100)))
    before = read_dataset(recipe, lake)
    query = Replay(name="dark-hall", why="lamp failed", devices=("cam-2",), since="2025-03-01", until="2025-03-02")
    assert add_replay(recipe, lake, query, now=NOW) == 20
    assert add_replay(recipe, lake, query, now=NOW) == 0
    lake_with(*camera_rows(100, seed=1))
    dataset = read_dataset(recipe, lake)
    assert int(dataset.replay["dark-hall"].sum()) == 20
    assert (before.replay_version, dataset.replay_version) == (-1, 0)
    assert kept_rows(lake, "digits").why == {"dark-hall": "lamp failed"}
    assert read_dataset(recipe, lake, replay_version=0).digest == dataset.digest


def test_only_what_went_wrong_is_kept_where_that_is_asked_for(recipe: Recipe, lake_with: Callable[..., Path]) -> None:
    lake = str(lake_with(*camera_rows(100)))
    query = Replay(name="wrong", devices=("cam-2",))
    assert add_replay(recipe, lake, query, now=NOW, wrong_only=True) == 18  # the cameras answer 1 to everything


def test_a_slice_that_finds_nothing_is_an_error(recipe: Recipe, lake_with: Callable[..., Path]) -> None:
    lake = str(lake_with(*camera_rows(10)))
    with pytest.raises(DatasetError, match="no labelled row of 'digits' is in the slice 'x', of 711"):
        add_replay(recipe, lake, Replay(name="x", devices=("nobody",)), now=NOW)
    with pytest.raises(DatasetError, match="the replay slice gone matches no labelled row"):
        read_dataset(with_replay(recipe, name="gone", devices=("nobody",)), lake)
    with pytest.raises(DatasetError, match="ten is no class; there are: 0, 1"):
        read_dataset(with_replay(recipe, name="ten", labels=("ten",)), lake)


def test_a_slice_can_be_removed_and_older_versions_keep_it(recipe: Recipe, lake_with: Callable[..., Path]) -> None:
    lake = str(lake_with(*camera_rows(100)))
    add_replay(recipe, lake, Replay(name="a", devices=("cam-2",)), now=NOW)
    assert remove_replay(lake, "digits", "a") == 20
    assert read_dataset(recipe, lake).replay == {}
    assert int(read_dataset(recipe, lake, replay_version=0).replay["a"].sum()) == 20
    with pytest.raises(DatasetError, match="has no replay slice 'a' of 'digits'; it has: none"):
        remove_replay(lake, "digits", "a")


@pytest.mark.parametrize("wrong", [{"name": "Bad Name"}, {"name": "none"}, {"name": "a", "since": "yesterday"}])
def test_a_slice_that_names_no_rows_or_no_time_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"replay": wrong}, type=dict[str, Replay])


def test_the_book_of_datasets_says_what_was_trained_on_what(recipe: Recipe, lake_with: Callable[..., Path]) -> None:
    lake = str(lake_with(*camera_rows(10)))
    assert dataset_records(lake) == []
    first = read_dataset(recipe, lake)
    record_dataset(lake, "digits", first, now=NOW, run="r1", package="a" * 64, version="1")
    second = read_dataset(recipe, str(lake_with(*camera_rows(10, seed=1))), champion="a" * 64)
    record_dataset(lake, "digits", second, now=NOW.replace(day=2), run="r2", champion="a" * 64)
    record_dataset(lake, "other", second, now=NOW)
    assert [(found.run, found.package) for found in dataset_records(lake, "digits")] == [("r2", ""), ("r1", "a" * 64)]
    assert len(dataset_records(lake)) == 3
    found = find_record(lake, "digits", first.digest)
    assert found is not None
    assert found.summary["rows"] == 711
    add_replay(recipe, lake, Replay(name="later", devices=("cam-0",)), now=NOW)
    again = read_dataset(
        recipe, lake, samples_version=found.samples_version, labels_version=found.labels_version,
        replay_version=found.replay_version, labels_until_ms=found.labels_until_ms,
    )  # fmt: skip
    assert (again.digest, again.content) == (first.digest, first.content)
    assert find_record(lake, "digits", "0" * 64) is None


def test_a_run_writes_into_the_book_what_it_has_trained_on(champion: Package, first_lake: Path) -> None:
    found = next(record for record in dataset_records(str(first_lake), "digits") if record.package == champion.digest)
    assert (found.version, found.run) == ("1", "run-1")
    assert (found.digest, found.content) == (champion.manifest.lineage.dataset, champion.manifest.lineage.content)
    assert tend(str(first_lake), Care(), now=NOW, dry_run=True).kept == {"samples": [0], "labels": [0], "replay": []}
