"""The rows of the shipped recipes from tables, as people have them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from click.testing import CliRunner

from tests.trainer.recipes.conftest import MODELS
from trainer.cli import trainer
from trainer.data.dataset import read_dataset
from trainer.recipe import Recipe


def imported(model: str, lake: Path, *options: str) -> str:
    done = CliRunner().invoke(trainer, ["import", model, "--lake", str(lake), "--recipes", str(MODELS), *options])
    assert done.exit_code == 0, done.output
    return done.output


def test_a_lines_table_is_imported_with_its_missing_cells(tmp_path: Path) -> None:
    recipe = Recipe.load(MODELS / "quality")
    runs, parts = recipe.module("data").parts(30, seed=4)
    names = [name for name in parts[0].__slots__ if name != "defect"]
    columns = {name: [getattr(part, name) for part in parts] for name in names}
    table = pa.table(columns | {"run": runs, "fault": [part.defect for part in parts]})
    pq.write_table(table, tmp_path / "parts.parquet")
    said = imported(
        "quality",
        tmp_path / "lake",
        "--from",
        f"parquet:{tmp_path / 'parts.parquet'}",
        "--label",
        "fault",
        "--group",
        "run",
    )
    assert "240 samples and 240 labels are new" in said
    rows = read_dataset(recipe, str(tmp_path / "lake")).rows
    assert sorted(set(rows.groups)) == sorted(set(runs))
    # As many are missing as were; the network is given what the contract makes of the rest.
    assert (rows.inputs["material"] == b"").sum() == columns["material"].count(None)
    assert np.isnan(rows.inputs["moisture"]).sum() == columns["moisture"].count(None)
    assert (recipe.front_end.encode(rows.inputs)["material"] == 0).sum() == columns["material"].count(None)


def test_series_are_imported_from_a_column_of_lists(tmp_path: Path) -> None:
    recipe = Recipe.load(MODELS / "bearing")
    data = recipe.module("data")
    parts = {condition: data.windows(condition, bearings=4, each=2, seed=1) for condition in data.CLASSES}
    table = pa.table({
        "acceleration": [window.tolist() for _, inputs in parts.values() for window in inputs["vibration"]],
        "speed": np.concatenate([inputs["speed"] for _, inputs in parts.values()]),
        "bearing": [group for groups, _ in parts.values() for group in groups],
        "damage": [condition for condition, (groups, _) in parts.items() for _ in groups],
    })  # fmt: skip
    pq.write_table(table, tmp_path / "windows.parquet")
    told = ["--map", "vibration=acceleration", "--label", "damage", "--group", "bearing"]
    assert "32 samples" in imported(
        "bearing", tmp_path / "lake", "--from", f"parquet:{tmp_path / 'windows.parquet'}", *told
    )
    rows = read_dataset(recipe, str(tmp_path / "lake")).rows
    assert rows.inputs["vibration"].shape == (32, data.WINDOW)
    assert sorted(rows.inputs["speed"]) == sorted(table["speed"].to_pylist())
