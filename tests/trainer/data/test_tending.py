"""Retention, compaction and vacuum; what a model was trained on stays."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from edge_agent.contract.lake import LABELS, SAMPLES
from tests.trainer.conftest import NOW
from tests.trainer.data.test_dataset_versions import camera_rows
from trainer.data.dataset import read_dataset
from trainer.data.lake import open_table
from trainer.data.lake_scan import PLACE, LakeScan
from trainer.data.records import record_dataset
from trainer.data.replay import add_replay
from trainer.data.tending import Care, tend
from trainer.errors import DatasetError, VersionGone
from trainer.recipe import Recipe
from trainer.recipe_file import Replay

_DAY_MS = 86_400_000
_LATER = NOW + dt.timedelta(days=100)


def aged(days: float, rows: int, *, seed: int, labelled: int = 0) -> Any:
    """Rows of so many days ago, seen from ``_LATER``."""
    samples, labels = camera_rows(rows, seed=seed, labelled=labelled)
    at = _LATER - dt.timedelta(days=days)
    for row in (*samples, *labels):
        row["at_ms"] = int(at.timestamp() * 1000)
    for sample in samples:
        sample["day"] = at.strftime("%Y-%m-%d")
    return samples, labels


def fields(lake: Path) -> int:
    found = DeltaTable(str(lake / SAMPLES)).to_pyarrow_table(columns=["device"])["device"].to_pylist()
    return sum(device != "import" for device in found)


def test_old_samples_go_but_not_those_that_a_model_was_trained_on(
    recipe: Recipe, lake_with: Callable[..., Path]
) -> None:
    lake = lake_with(*aged(90, 40, seed=0, labelled=10))
    trained = read_dataset(recipe, str(lake))
    record_dataset(str(lake), "digits", trained, now=NOW, package="a" * 64, version="1")
    lake_with(*aged(80, 30, seed=1, labelled=5))  # labelled, but nothing was trained on it
    lake_with(*aged(1, 20, seed=2))
    seen = tend(str(lake), Care(retain_days=30), now=_LATER, dry_run=True)
    assert fields(lake) == 90
    done = tend(str(lake), Care(retain_days=30), now=_LATER)
    assert (done.dropped, done.pinned) == (seen.dropped, seen.pinned)
    assert (sum(done.dropped.values()), done.pinned, fields(lake)) == (60, 10, 30)
    after = read_dataset(recipe, str(lake))
    assert int(after.field.sum()) == 10
    assert int((~after.field).sum()) == 701
    again = read_dataset(
        recipe, str(lake), samples_version=trained.samples_version, labels_version=0 + trained.labels_version
    )
    assert again.content == trained.content
    assert tend(str(lake), Care(retain_days=30), now=_LATER).dropped == {}


def test_rows_of_replay_slices_stay_whatever_their_age(recipe: Recipe, lake_with: Callable[..., Path]) -> None:
    lake = lake_with(*aged(90, 40, seed=0, labelled=40))
    add_replay(recipe, str(lake), Replay(name="a", devices=("cam-2",)), now=NOW)
    done = tend(str(lake), Care(retain_days=30), now=_LATER)
    assert (sum(done.dropped.values()), done.pinned, fields(lake)) == (30, 10, 10)
    assert int(read_dataset(recipe, str(lake)).replay["a"].sum()) == 10


def test_a_vacuum_keeps_what_a_model_was_trained_on_and_the_rest_is_told_to_be_gone(
    recipe: Recipe, lake_with: Callable[..., Path]
) -> None:
    lake = lake_with(*camera_rows(20, seed=0))
    lake_with(*camera_rows(20, seed=1))
    trained = read_dataset(recipe, str(lake))
    record_dataset(str(lake), "digits", trained, now=NOW, package="a" * 64, version="1")
    lake_with(*camera_rows(20, seed=2))
    lake_with(*camera_rows(20, seed=3))
    untold = read_dataset(recipe, str(lake))
    tend(str(lake), Care(vacuum_days=0), now=NOW)  # merges; the files before are now of old versions alone
    done = tend(str(lake), Care(vacuum_days=0), now=NOW)
    assert done.kept[SAMPLES] == [trained.samples_version]
    again = read_dataset(
        recipe, str(lake), samples_version=trained.samples_version, labels_version=trained.labels_version
    )
    assert again.content == trained.content
    assert read_dataset(recipe, str(lake)).content == untold.content
    with pytest.raises(VersionGone, match=f"samples at version {untold.samples_version}: files of it are gone"):
        read_dataset(recipe, str(lake), samples_version=untold.samples_version)


def test_a_run_that_reads_while_the_lake_is_tended_goes_on_reading_and_is_told_where_that_was_forbidden(
    recipe: Recipe, lake_with: Callable[..., Path]
) -> None:
    lake = lake_with(*aged(90, 40, seed=0))
    samples = open_table(str(lake), SAMPLES, None)
    assert samples is not None
    scan = LakeScan(samples, recipe.name)
    places = scan.columns(["device"])[PLACE].to_numpy()
    lake_with(*aged(1, 20, seed=1))
    done = tend(str(lake), Care(retain_days=30), now=_LATER)
    assert sum(done.dropped.values()) == 40
    assert sum(len(at) for at, _ in scan.inputs(places)) == len(places)
    tend(str(lake), Care(vacuum_days=0), now=_LATER)
    with pytest.raises(VersionGone, match="it was vacuumed"):
        list(scan.inputs(places))


def test_of_each_model_the_newest_packages_are_kept(recipe: Recipe, lake_with: Callable[..., Path]) -> None:
    for number in range(3):
        lake = lake_with(*camera_rows(10, seed=number))
        found = read_dataset(recipe, str(lake))
        for model in ("digits", "other", "digits"):  # of a run that was tried again there are two entries
            record_dataset(
                str(lake), model, found, now=NOW + dt.timedelta(days=number), package=str(number) * 64, version="1"
            )
    done = tend(str(lake), Care(keep_packages=2), now=NOW, dry_run=True)
    assert done.kept[SAMPLES] == [2, 3]


def test_small_files_are_merged_into_small_row_groups(recipe: Recipe, lake_with: Callable[..., Path]) -> None:
    for number in range(4):
        lake = lake_with(*camera_rows(700, seed=number))
    before = read_dataset(recipe, str(lake))
    done = tend(str(lake), Care(), now=NOW)
    assert done.merged[SAMPLES] == 5
    assert done.removed[SAMPLES] == 0, "runs of the last days may still read them"
    table = DeltaTable(str(lake / SAMPLES))
    files = [
        lake / SAMPLES / name.replace("%3D", "=")
        for name in table.get_add_actions(flatten=True).column("path").to_pylist()
    ]
    assert len(files) == 1
    groups = pq.ParquetFile(files[0]).metadata
    assert max(groups.row_group(at).num_rows for at in range(groups.num_row_groups)) <= 1024
    assert table.metadata().configuration["delta.logRetentionDuration"] == "interval 3650 days"
    assert read_dataset(recipe, str(lake)).content == before.content


def test_a_lake_that_is_not_there_yet_needs_no_care(tmp_path: Path) -> None:
    assert tend(str(tmp_path / "lake"), Care(retain_days=1), now=NOW).removed == {}
    with pytest.raises(DatasetError, match="must not be below 0"):
        Care(retain_days=-1)


def test_nothing_is_dropped_where_it_is_not_known_what_is_pinned(
    recipe: Recipe, lake_with: Callable[..., Path]
) -> None:
    lake = lake_with(*aged(90, 40, seed=0, labelled=10))
    found = read_dataset(recipe, str(lake))
    record_dataset(str(lake), "digits", found, now=NOW, package="a" * 64, version="1")
    for file in (lake / LABELS).glob("*.parquet"):
        file.unlink()
    with pytest.raises(VersionGone, match="nothing was dropped"):
        tend(str(lake), Care(retain_days=30), now=_LATER)
    assert fields(lake) == 40
