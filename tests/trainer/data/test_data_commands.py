"""What a person sees of the rows: statistics, versions, replay slices, upkeep, imports."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from tests.trainer.conftest import NOW
from tests.trainer.data.test_dataset_versions import camera_rows
from tests.trainer.data.test_import_table import source_of
from trainer.cli import trainer
from trainer.data.dataset import read_dataset
from trainer.data.records import record_dataset
from trainer.data.rows import encode_row
from trainer.data.statistics import describe, shown
from trainer.recipe import Recipe


@pytest.fixture
def shoal(recipes: Path) -> Callable[..., str]:
    """Runs a command; what it prints, or its error."""

    def run(*arguments: str, status: int = 0, recipe: bool = True) -> str:
        words = [*arguments, *(["--recipes", str(recipes)] if recipe else [])]
        done = CliRunner().invoke(trainer, words, catch_exceptions=False)
        assert done.exit_code == status, done.output
        return done.output if status else done.stdout

    return run


@pytest.fixture
def lake(lake_with: Callable[..., Path]) -> str:
    return str(lake_with(*camera_rows(100)))


def test_a_dataset_is_shown_by_class_device_and_side(shoal: Callable[..., str], lake: str) -> None:
    told = shoal("dataset", "show", "digits", "--lake", lake, "--examples", "12")
    assert "digits: 801 labelled rows (701 imported, 100 from the field), 711 groups" in told
    assert [line.split() for line in told.splitlines() if line.startswith("cam-3")] == [["cam-3", "20"]]
    assert len([line for line in told.splitlines() if "(64 values)" in line]) == 12
    found = json.loads(shoal("dataset", "show", "digits", "--lake", lake, "--json", "--examples", "20"))
    assert sum(row["rows"] for row in found["classes"].values()) == found["rows"] == 801
    assert found["devices"]["import"] == 701
    assert found["inputs"]["image"]["maximum"] == 16.0
    assert sorted(row["label"] for row in found["examples"]) == sorted(2 * [str(digit) for digit in range(10)])


def test_samples_that_are_set_aside_are_shown_with_the_reason(
    shoal: Callable[..., str], lake_with: Callable[..., Path]
) -> None:
    samples, labels = camera_rows(100)
    samples[7]["inputs"] = encode_row({"picture": np.zeros((1, 1, 8, 8), dtype=np.float32)}, 0)
    told = shoal("dataset", "show", "digits", "--lake", str(lake_with(samples, labels)))
    assert "1 samples set aside, the first: it lacks the input 'image'" in told


def test_examples_of_words_are_shown_as_words() -> None:
    table = np.array([b"north", b"", "Pro Max"], dtype=object)
    assert [shown(cell) for cell in table] == ["'north'", "missing", "'Pro Max'"]
    assert shown(np.array([b"a", b"b"], dtype=object)) == "'a' 'b'"
    assert [shown(cell) for cell in np.array([1.5, np.nan], dtype=np.float32)] == ["1.5", "nan"]


def test_labels_known_later_are_left_out_where_it_is_asked(shoal: Callable[..., str], lake: str) -> None:
    told = shoal("dataset", "show", "digits", "--lake", lake, "--labels-until", "2025-03-01T12:30:00Z")
    assert "731 labelled rows (701 imported, 30 from the field)" in told
    assert "is neither a day" in shoal("dataset", "show", "digits", "--lake", lake, "--labels-until", "soon", status=2)


def test_the_versions_that_runs_have_read_are_listed(shoal: Callable[..., str], recipe: Recipe, lake: str) -> None:
    assert "no run has read" in shoal("dataset", "versions", "--lake", lake, recipe=False)
    record_dataset(lake, "digits", read_dataset(recipe, lake), now=NOW, run="r7", package="a" * 64, version="3")
    told = shoal("dataset", "versions", "digits", "--lake", lake, recipe=False)
    assert "2025-03-01 12:00  digits" in told
    assert "801 rows  package aaaaaaaaaaaa version 3  r7" in told
    assert json.loads(shoal("dataset", "versions", "--lake", lake, "--json", recipe=False))[0]["version"] == "3"


def test_a_replay_slice_is_added_listed_and_removed(shoal: Callable[..., str], lake: str) -> None:
    query = ("--device", "cam-1", "--since", "2025-03-01", "--why", "fog")
    assert "20 rows are new" in shoal("replay", "add", "digits", "fog", "--lake", lake, *query)
    assert shoal("replay", "list", "digits", "--lake", lake, recipe=False) == "fog: 20 rows  fog\n"
    assert "replay fog" in shoal("dataset", "show", "digits", "--lake", lake)
    assert "of 20 rows is gone" in shoal("replay", "remove", "digits", "fog", "--lake", lake, recipe=False)
    assert "no replay slice" in shoal("replay", "list", "digits", "--lake", lake, recipe=False)
    assert "names no rows" in shoal("replay", "add", "digits", "all", "--lake", lake, status=1)


def test_the_lake_is_tended(shoal: Callable[..., str], lake: str) -> None:
    told = shoal("lake", "tend", "--lake", lake, "--retain-days", "1", "--dry-run", recipe=False)
    assert "100 samples would be dropped of 1 days" in told
    assert "100 samples dropped" in shoal("lake", "tend", "--lake", lake, "--retain-days", "1", recipe=False)


def test_rows_of_a_table_are_imported(shoal: Callable[..., str], tmp_path: Path) -> None:
    source, _ = source_of("parquet", tmp_path)
    options: tuple[Any, ...] = ("--lake", str(tmp_path / "lake"), "--from", source.shown, "--label", "digit")
    told = shoal("import", "digits", *options, "--map", "image=pixels", "--group", "subject", "--key", "id")
    assert "300 rows read; 300 samples and 300 labels are new" in told
    assert "write INPUT=COLUMN" in shoal("import", "digits", *options, "--map", "pixels", status=1)
    assert "--replace is for base rows" in shoal("import", "digits", *options, "--replace", status=2)


def test_missing_values_and_text_are_described() -> None:
    numbers = describe(np.array([[1.0], [np.nan], [3.0], [np.inf]], dtype=np.float32))
    assert (numbers["missing"], numbers["infinite"], numbers["mean"], numbers["maximum"]) == (1, 1, 2.0, 3.0)
    words = describe(np.array([b"steel", b"steel", b"", b"brass"], dtype=object))
    assert (words["missing"], words["distinct"], words["common"]) == (1, 2, {"steel": 2, "brass": 1})
    assert describe(np.array([np.nan]))["missing"] == 1
