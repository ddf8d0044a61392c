from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edge_agent.runtime.package import Package
from tests.trainer.conftest import NOW, NOW_MS, field_rows
from trainer.data.dataset import read_dataset
from trainer.data.lake import import_base
from trainer.data.recency import last_fall
from trainer.data.split import hash_share
from trainer.errors import DatasetError
from trainer.recipe import Recipe


def test_base_rows_are_imported_once_however_often_it_is_asked(recipe: Recipe, base_lake: Path) -> None:
    assert import_base(recipe, str(base_lake), now=NOW).new == 0
    dataset = read_dataset(recipe, str(base_lake))
    assert len(dataset.rows) == 701
    assert not dataset.field.any()


def test_a_lake_without_tables_says_what_to_do(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="has no table 'samples' yet; import base data"):
        read_dataset(recipe, str(tmp_path / "empty"))


def test_no_group_is_on_both_sides_of_the_split(
    recipe: Recipe, champion: Package, lake_with: Callable[..., Path]
) -> None:
    dataset = read_dataset(recipe, str(lake_with(*field_rows(recipe, champion, per_device=150, drifted=True))))
    sides = [set(dataset.rows.groups[mask]) for mask in (dataset.train, dataset.validation, dataset.holdout)]
    assert sum(map(len, sides)) == len(set.union(*sides)) == len(set(dataset.rows.groups))
    assert 0.2 < dataset.holdout.mean() < 0.3
    # The same digit is shown by several cameras: its group, not its row, is what is split.
    assert len(set(dataset.rows.groups)) < len(dataset.rows)


def test_nothing_of_the_heldout_part_is_ever_in_the_lake(recipe: Recipe, base_lake: Path) -> None:
    data = recipe.module("data")
    parts = {part: set(data.load(part).rows.tolist()) for part in ("base", "stream", "heldout")}
    assert sum(map(len, parts.values())) == len(set.union(*parts.values())) == 1797
    groups = set(read_dataset(recipe, str(base_lake)).rows.groups)
    assert groups == {data.group(row) for row in parts["base"]}


def test_the_latest_label_of_a_row_holds(recipe: Recipe, champion: Package, lake_with: Callable[..., Path]) -> None:
    samples, labels = field_rows(recipe, champion, per_device=20, drifted=False)
    wrong = [label | {"label": "0", "labelled_at_ms": 1} for label in labels]
    lake = lake_with(samples, labels)
    rows = read_dataset(recipe, str(lake_with([], wrong))).rows
    assert len(rows) == 701 + len(samples)
    truth = {label["request_id"]: int(label["label"]) for label in labels}
    assert sorted(rows.targets[rows.devices != "import"].tolist()) == sorted(truth.values())
    assert lake.exists()


def test_a_label_without_its_sample_is_counted_and_left_out(
    recipe: Recipe, champion: Package, lake_with: Callable[..., Path]
) -> None:
    samples, labels = field_rows(recipe, champion, per_device=10, drifted=False)
    dataset = read_dataset(recipe, str(lake_with(samples[1:], labels)))
    assert dataset.unmatched == 1
    assert int(dataset.field.sum()) == 29


def test_an_older_version_of_the_lake_gives_the_dataset_of_that_day(
    recipe: Recipe, champion: Package, base_lake: Path, lake_with: Callable[..., Path]
) -> None:
    lake = lake_with(*field_rows(recipe, champion, per_device=10, drifted=False))
    then = read_dataset(recipe, str(lake), samples_version=0, labels_version=0)
    assert then.digest == read_dataset(recipe, str(base_lake)).digest
    assert then.digest != read_dataset(recipe, str(lake)).digest
    with pytest.raises(DatasetError, match="at version 99"):
        read_dataset(recipe, str(lake), samples_version=99)


def test_a_label_that_is_no_class_is_refused(recipe: Recipe, champion: Package, lake_with: Callable[..., Path]) -> None:
    samples, labels = field_rows(recipe, champion, per_device=2, drifted=False)
    labels[0]["label"] = "ten"
    with pytest.raises(DatasetError, match="label 'ten' is no class of 'digits'; it has: 0, 1"):
        read_dataset(recipe, str(lake_with(samples, labels)))


def test_rows_from_before_the_world_changed_are_not_of_today(
    recipe: Recipe, champion: Package, lake_with: Callable[..., Path]
) -> None:
    lake_with(*field_rows(recipe, champion, per_device=60, drifted=False))
    changed_at = NOW_MS + 3_600_000
    lake = lake_with(*field_rows(recipe, champion, per_device=80, drifted=True, from_ms=changed_at))
    dataset = read_dataset(recipe, str(lake), champion=champion.digest)
    today = dataset.rows.at_ms[dataset.current]
    # The first answers after a change may still be right: the cut is where the fall shows, give or take a few rows.
    assert (today >= changed_at).mean() > 0.95
    assert len(today) > 0.85 * 3 * 80
    assert set(dataset.recent.devices) == {"cam-a", "cam-b", "cam-c"}


def test_when_today_began_does_not_depend_on_answers_to_held_out_rows(
    recipe: Recipe, champion: Package, lake_with: Callable[..., Path]
) -> None:
    samples, labels = field_rows(recipe, champion, per_device=120, drifted=False)
    for sample in samples:
        late = sample["at_ms"] >= NOW_MS + 60_000
        if late and hash_share(sample["group"], "holdout") < recipe.file.dataset.holdout_share:
            sample["prediction"] = "no class at all"
    dataset = read_dataset(recipe, str(lake_with(samples, labels)), champion=champion.digest)
    assert (dataset.holdout & dataset.current).sum() > 60
    assert np.array_equal(dataset.current, dataset.field), "the champion has not become worse on any other row"


def test_a_device_of_which_only_held_out_rows_are_labelled_follows_the_others(
    recipe: Recipe, champion: Package, lake_with: Callable[..., Path]
) -> None:
    samples, labels = field_rows(recipe, champion, per_device=60, drifted=False)
    held = {s["request_id"] for s in samples if hash_share(s["group"], "holdout") < recipe.file.dataset.holdout_share}
    labels = [label for label in labels if label["device"] != "cam-c" or label["request_id"] in held]
    dataset = read_dataset(recipe, str(lake_with(samples, labels)), champion=champion.digest)
    assert "cam-c" in set(dataset.rows.devices[dataset.current])


def test_without_a_fall_all_rows_count() -> None:
    rng = np.random.default_rng(0)
    cuts = [last_fall(rng.random(200) < 0.9) for _ in range(200)]
    assert np.mean(np.array(cuts) > 0) < 0.05
    rising = np.concatenate([np.zeros(50, dtype=bool), np.ones(50, dtype=bool)])
    assert last_fall(rising) == 0
    assert last_fall(~rising) == 50
