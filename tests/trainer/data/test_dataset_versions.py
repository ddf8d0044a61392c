"""What a dataset version is a function of, how it is split, and that it is the same in memory and on disk."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from deltalake import DeltaTable, WriterProperties

from edge_agent.contract.lake import LABELS, SAMPLES
from tests.trainer.conftest import NOW_MS
from trainer.data.dataset import Dataset, read_dataset
from trainer.data.lake import append
from trainer.data.rows import StoredInputs, encode_row
from trainer.errors import DatasetError, VersionGone
from trainer.recipe import Recipe

Made = tuple[list[dict[str, Any]], list[dict[str, Any]]]


def camera_rows(rows: int, *, model: str = "digits", seed: int = 0, devices: int = 5, labelled: int = 10_000) -> Made:
    """Rows of some cameras, a minute apart; ten in a row show one subject."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 17, (rows, 1, 8, 8)).astype(np.float32)
    samples, labels = [], []
    for at in range(rows):
        common: dict[str, Any] = {
            "request_id": f"r{seed}-{at}", "device": f"cam-{at // 10 % devices}", "model": model, "package": "p" * 64,
            "at_ms": NOW_MS + at * 60_000, "prediction": "1", "inclusion_probability": 0.5,
        }  # fmt: skip
        samples.append(
            common
            | {
                "day": "2025-03-01",
                "reason": "uniform",
                "confidence": 0.9,
                "margin": 0.8,
                "group": f"subject-{seed}-{at // 10}",
                "inputs": encode_row({"image": images}, at),
                "outputs": b"\x80",
            }
        )
        if at < labelled:
            labels.append(common | {"label": str(at % 10), "source": "test", "labelled_at_ms": common["at_ms"] + 1_000})
    return samples, labels


def recipe_with(recipe: Recipe, *, inputs: Callable[[Any], Any] | None = None, **settings: Any) -> Recipe:
    """The recipe with other settings in [dataset], and other inputs."""
    file = msgspec.structs.replace(recipe.file, dataset=msgspec.structs.replace(recipe.file.dataset, **settings))
    if inputs is not None:
        file = msgspec.structs.replace(file, inputs=tuple(inputs(spec) for spec in file.inputs))
    return Recipe(recipe.folder, file, recipe.digest)


@pytest.fixture
def recipe_like(recipe: Recipe) -> Callable[..., Recipe]:
    """The recipe with other settings in [dataset]."""

    def make(**settings: Any) -> Recipe:
        return recipe_with(recipe, **settings)

    return make


def sides_are_apart(dataset: Dataset) -> None:
    """No group is on two sides."""
    sides = [set(dataset.rows.groups[mask]) for mask in (dataset.train, dataset.validation, dataset.holdout)]
    assert sum(map(len, sides)) == len(set.union(*sides))


def test_rows_of_another_model_change_the_name_but_not_the_content(
    recipe: Recipe, lake_with: Callable[..., Path]
) -> None:
    lake = lake_with(*camera_rows(50))
    before = read_dataset(recipe, str(lake))
    after = read_dataset(recipe, str(lake_with(*camera_rows(40, model="other"))))
    assert (before.digest != after.digest, before.content) == (True, after.content)


def test_compaction_changes_neither_content_nor_order(recipe: Recipe, lake_with: Callable[..., Path]) -> None:
    for seed in range(3):
        lake = lake_with(*camera_rows(30, seed=seed))
    before = read_dataset(recipe, str(lake))
    for name in (SAMPLES, LABELS):
        DeltaTable(str(lake / name)).optimize.compact(writer_properties=WriterProperties(max_row_group_size=16))
    after = read_dataset(recipe, str(lake))
    assert (after.samples_version, after.content) == (before.samples_version + 1, before.content)
    assert after.rows.keys == before.rows.keys
    assert np.array_equal(after.rows.inputs["image"], before.rows.inputs["image"])


@pytest.mark.parametrize("change", ["label", "input", "group", "time", "row"])
def test_whatever_a_run_learns_from_is_in_the_content(
    recipe: Recipe, base_lake: Path, tmp_path: Path, change: str
) -> None:
    def read(name: str, samples: list[dict[str, Any]], labels: list[dict[str, Any]]) -> Dataset:
        shutil.copytree(base_lake, tmp_path / name)
        append(str(tmp_path / name), SAMPLES, samples)
        append(str(tmp_path / name), LABELS, labels)
        return read_dataset(recipe, str(tmp_path / name))

    samples, labels = camera_rows(20)
    before = read("before", samples, labels)
    samples, labels = camera_rows(20)
    if change == "label":
        labels[3]["label"] = "9"
    elif change == "input":
        samples[3]["inputs"] = samples[4]["inputs"]
    elif change == "group":
        samples[3]["group"] = "another"
    elif change == "time":
        samples[3]["at_ms"] += 1
    else:
        samples, labels = camera_rows(21)
    assert read("after", samples, labels).content != before.content


def test_labels_that_came_later_are_not_known_at_a_moment(recipe: Recipe, lake_with: Callable[..., Path]) -> None:
    samples, labels = camera_rows(30)
    corrected = [label | {"label": "0", "labelled_at_ms": NOW_MS + 10**9} for label in labels]
    lake = lake_with(samples, labels)
    then = read_dataset(recipe, str(lake))
    now = read_dataset(recipe, str(lake_with([], corrected)))
    assert (now.rows.targets[now.field] == 0).all()
    past = read_dataset(recipe, str(lake), labels_until_ms=NOW_MS + 10**8)
    assert past.content == then.content != now.content
    assert past.digest != now.digest
    early = read_dataset(recipe, str(lake), labels_until_ms=NOW_MS + 1_000 + 9 * 60_000)
    assert int(early.field.sum()) == 10


@pytest.mark.parametrize("by", ["group", "device", "time"])
def test_no_split_rule_puts_a_group_on_two_sides(
    recipe_like: Callable[..., Recipe], lake_with: Callable[..., Path], by: str
) -> None:
    dataset = read_dataset(recipe_like(split=by), str(lake_with(*camera_rows(400, devices=7))))
    sides_are_apart(dataset)
    field = dataset.holdout & dataset.field
    assert field.any()
    assert (dataset.train & dataset.field).any()
    # Imported rows have no device and no time of their own: about a quarter of them is held out by any rule.
    assert 0.2 < dataset.holdout[~dataset.field].mean() < 0.3
    if by == "time":
        assert dataset.rows.at_ms[field].min() >= dataset.rows.at_ms[dataset.train].max()
        assert 0.2 < field.sum() / dataset.field.sum() < 0.3


def test_by_device_no_device_is_on_two_sides(
    recipe_like: Callable[..., Recipe], lake_with: Callable[..., Path]
) -> None:
    samples, labels = camera_rows(300, devices=3)
    for sample in samples:
        sample["group"] = ""
    dataset = read_dataset(recipe_like(split="device"), str(lake_with(samples, labels)))
    held = set(dataset.rows.devices[dataset.holdout & dataset.field])
    assert len(held) in {1, 2}
    assert not held & set(dataset.rows.devices[dataset.train])


def test_copies_of_held_out_rows_are_not_trained_on(
    recipe_like: Callable[..., Recipe], recipe: Recipe, lake_with: Callable[..., Path]
) -> None:
    samples, labels = camera_rows(300)
    for at in range(150, 200):  # sent again under another name
        samples[at] |= {"inputs": samples[at - 150]["inputs"]}
    lake = str(lake_with(samples, labels))
    dataset = read_dataset(recipe, lake)
    judged = {bytes(row) for row in dataset.rows.inputs["image"][dataset.holdout]}
    assert dataset.copies > 0
    assert not judged & {bytes(row) for row in dataset.rows.inputs["image"][~dataset.holdout & ~dataset.idle]}
    assert read_dataset(recipe_like(duplicates="keep"), lake).copies == 0


def test_values_that_repeat_because_they_are_few_are_no_copies(recipe: Recipe, lake_with: Callable[..., Path]) -> None:
    samples, labels = camera_rows(3000)
    for at, sample in enumerate(samples):
        sample["inputs"] = samples[at % 4]["inputs"]
    assert read_dataset(recipe, str(lake_with(samples, labels))).copies == 0


def test_no_more_held_out_rows_are_judged_than_asked_for(
    recipe_like: Callable[..., Recipe], lake_with: Callable[..., Path]
) -> None:
    lake = str(lake_with(*camera_rows(300)))
    whole, less = read_dataset(recipe_like(), lake), read_dataset(recipe_like(judged_rows=40), lake)
    assert int(less.holdout.sum()) == 40
    assert np.array_equal(less.train, whole.train)
    assert not (less.holdout & ~whole.holdout).any()


def test_rows_on_disk_are_those_in_memory(
    recipe_like: Callable[..., Recipe], lake_with: Callable[..., Path], tmp_path: Path
) -> None:
    samples, labels = camera_rows(500, labelled=300)
    samples[7]["inputs"] = b"\xc1"  # what no model can take
    lake = str(lake_with(samples, labels))
    small = read_dataset(recipe_like(), lake, champion="p" * 64)
    large = read_dataset(recipe_like(memory_mib=0.15), lake, champion="p" * 64, cache=tmp_path / "cache")
    assert isinstance(large.rows.inputs, StoredInputs)
    assert large.content == small.content
    assert large.summary() == small.summary() | {"digest": large.digest}
    for one, other in ((small.rows, large.rows.take(np.arange(len(large.rows)))), (small.recent, large.recent)):
        assert one.keys == other.keys
        assert np.array_equal(one.inputs["image"], other.inputs["image"])
        assert np.array_equal(one.sent["image"], other.sent["image"])
    for name in ("holdout", "validation", "idle", "current", "unseen"):
        assert np.array_equal(getattr(small, name), getattr(large, name)), name
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [large.rows.inputs.store.folder.name]
    weights = np.ones(len(small.rows))
    for mask in (small.train, small.validation):
        passes = [dataset.source(mask, weights).batches(size=32, seed=1) for dataset in (small, large)]
        sums = [sum(float(inputs["image"].sum()) for inputs, _, _ in batches) for batches in passes]
        assert sums[0] == pytest.approx(sums[1])


@pytest.mark.parametrize(("memory_mib", "labelled"), [(64, 300), (0.15, 300), (0.15, 500)])
def test_where_an_axis_is_open_rows_of_another_length_than_the_oldest_are_set_aside(
    recipe: Recipe, lake_with: Callable[..., Path], tmp_path: Path, memory_mib: float, labelled: int
) -> None:
    samples, labels = camera_rows(500, labelled=labelled)
    long = encode_row({"image": np.ones((1, 1, 9, 8), dtype=np.float32)}, 0)
    for at in (50, 51, 400):
        samples[at]["inputs"] = long
    for row in (samples[51], labels[51]):
        row["device"] = "import"
    open_axis = recipe_with(
        recipe, inputs=lambda spec: msgspec.structs.replace(spec, shape=(-1, 1, -1, 8)), memory_mib=memory_mib
    )
    found = read_dataset(open_axis, str(lake_with(samples, labels)), champion="p" * 64, cache=tmp_path / "cache")
    assert isinstance(found.rows.inputs, StoredInputs) == (memory_mib < 1)
    assert found.set_aside == 3
    assert "shape [1, 9, 8], the dataset's rows are of [1, 8, 8]" in found.complaint
    assert found.rows.inputs["image"].shape[1:] == (1, 8, 8)
    assert found.recent.inputs["image"].shape == (len(found.recent), 1, 8, 8)


def test_where_most_rows_are_of_another_length_it_is_said(recipe: Recipe, lake_with: Callable[..., Path]) -> None:
    samples, labels = camera_rows(3000)
    for sample in samples[1:]:
        sample["inputs"] = encode_row({"image": np.ones((1, 1, 9, 8), dtype=np.float32)}, 0)
    open_axis = recipe_with(recipe, inputs=lambda spec: msgspec.structs.replace(spec, shape=(-1, 1, -1, 8)))
    with pytest.raises(DatasetError, match=r"are of another shape than the oldest; .* cut them to one length"):
        read_dataset(open_axis, str(lake_with(samples, labels)))


def test_no_more_rows_judge_than_memory_holds(
    recipe_like: Callable[..., Recipe], lake_with: Callable[..., Path], tmp_path: Path
) -> None:
    lake = str(lake_with(*camera_rows(300)))
    dataset = read_dataset(recipe_like(memory_mib=100 * 256 / 2**20), lake, cache=tmp_path)
    assert int(dataset.holdout.sum()) == 100
    assert np.array_equal(dataset.train, read_dataset(recipe_like(), lake).train)


def test_a_disk_that_is_full_while_rows_are_decoded_is_said(
    recipe_like: Callable[..., Recipe], base_lake: Path, tmp_path: Path, full_disk: Callable[[], Any]
) -> None:
    with full_disk(), pytest.raises(DatasetError, match=r"MB of rows cannot be written: .*free some space"):
        read_dataset(recipe_like(memory_mib=0.1), str(base_lake), cache=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_small_dataset_is_stored_once_for_other_processes(recipe: Recipe, base_lake: Path, tmp_path: Path) -> None:
    dataset = read_dataset(recipe, str(base_lake))
    store = dataset.store(tmp_path)
    assert dataset.store(tmp_path).folder == store.folder
    assert np.array_equal(store.read(store.places())["image"], dataset.rows.inputs["image"])
    assert np.array_equal(store.targets[store.places()], dataset.rows.targets)


def test_without_labels_it_is_said_that_there_are_none_yet(recipe: Recipe, tmp_path: Path) -> None:
    samples, labels = camera_rows(10)
    append(str(tmp_path), SAMPLES, samples)
    append(str(tmp_path), LABELS, [label | {"model": "other"} for label in labels])
    with pytest.raises(DatasetError, match="has 10 samples and 0 labels, so there is nothing to learn from yet"):
        read_dataset(recipe, str(tmp_path))


def test_one_class_only_is_refused_by_name(recipe: Recipe, tmp_path: Path) -> None:
    samples, labels = camera_rows(100)
    append(str(tmp_path), SAMPLES, samples)
    append(str(tmp_path), LABELS, [label | {"label": "7"} for label in labels])
    with pytest.raises(DatasetError, match="all 100 labelled rows are of the class '7'"):
        read_dataset(recipe, str(tmp_path))


def test_a_file_that_is_gone_names_the_version_and_what_to_do(recipe: Recipe, lake_with: Callable[..., Path]) -> None:
    lake = lake_with(*camera_rows(20))
    next((lake / SAMPLES).glob("day=*/*.parquet")).unlink()
    with pytest.raises(VersionGone, match="samples at version 1: files of it are gone"):
        read_dataset(recipe, str(lake))


def test_a_damaged_file_is_told(recipe: Recipe, lake_with: Callable[..., Path]) -> None:
    lake = lake_with(*camera_rows(20))
    for file in (lake / SAMPLES).glob("day=*/*.parquet"):
        file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(DatasetError, match="samples at version 1: cannot be read"):
        read_dataset(recipe, str(lake))


def test_a_table_with_another_schema_is_told(recipe: Recipe, base_lake: Path, tmp_path: Path) -> None:
    import pyarrow as pa
    from deltalake import write_deltalake

    shutil.copytree(base_lake / LABELS, tmp_path / LABELS)
    write_deltalake(str(tmp_path / SAMPLES), pa.table({"model": ["digits"], "picture": [b""]}))
    with pytest.raises(DatasetError, match=r"has no columns \['at_ms', .*it was not written by Shoal"):
        read_dataset(recipe, str(tmp_path))
