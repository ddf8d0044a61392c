from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from edge_agent import load
from edge_agent.contract.constraint import DateFormat, NumberFormat
from tests.trainer.conftest import NOW
from trainer.cli import trainer
from trainer.data.import_table import Columns, import_table
from trainer.data.sources import RowsFrom
from trainer.recipe import Recipe

MODELS = Path(__file__).parents[3] / "models"


def run(*arguments: str | Path) -> str:
    done = CliRunner().invoke(trainer, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done.output


def test_a_new_recipe_is_whole_and_has_data_to_begin_with(tmp_path: Path) -> None:
    # That it trains and serves as it is: tests/docs/test_notebook_to_fleet.py
    said = run("new", "pump", "--recipes", tmp_path / "models")
    assert f"{tmp_path / 'models' / 'pump'}: README.md, data.py, model.py, model.toml" in said
    said = run("import", "pump", "--lake", tmp_path / "lake", "--recipes", tmp_path / "models")
    assert "pump: 600 rows are new" in said


def test_a_new_recipe_can_begin_as_one_that_ships(tmp_path: Path) -> None:
    run("new", "press-7", "--like", "quality", "--recipes", tmp_path)
    recipe = Recipe.load(tmp_path / "press-7")
    assert recipe.name == "press-7"
    assert [spec.name for spec in recipe.signature.inputs][:2] == ["material", "machine"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["Pump 7"], "'Pump 7' cannot be a model's name"),
        (["here"], "here is there already"),
        (["pump", "--like", "nothing"], "no recipe here"),
    ],
)
def test_what_cannot_be_a_new_recipe_is_said_in_a_sentence(tmp_path: Path, arguments: list[str], said: str) -> None:
    (tmp_path / "here").mkdir()
    done = CliRunner().invoke(trainer, ["new", *arguments, "--recipes", str(tmp_path)])
    assert done.exit_code == 2
    assert said in done.output
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


@pytest.fixture(scope="module")
def parts_csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table as people have them: the parts of the recipe quality, in one file."""
    data = Recipe.load(MODELS / "quality").module("data")
    runs, parts = data.parts(150, seed=3)
    file = tmp_path_factory.mktemp("table") / "parts.csv"
    with file.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(
            ["Run", "Material", "Moulded at", "serviced_on", "Melt (°C)", "moisture", "weight", "remark", "defect"]
        )
        for run, part in zip(runs, parts, strict=True):
            writer.writerow([
                run, part.material, part.moulded_at, part.serviced_on, f"{part.melt_temperature:.1f}",
                "" if part.moisture is None else f"{part.moisture:.3f}", part.weight, f"seen by {len(run)}{id(part)}",
                part.defect,
            ])  # fmt: skip
    return file


def test_a_tables_columns_become_a_contract_that_is_there_to_be_read(tmp_path: Path, parts_csv: Path) -> None:
    said = run(
        "new", "parts", "--from", f"csv:{parts_csv}", "--label", "defect", "--group", "Run", "--recipes", tmp_path
    )
    for line in (
        "Material: category",
        "Moulded at: date",
        "serviced_on: date",
        "weight: number as text",
        "remark: left out",
    ):
        assert f"  {line}" in said
    assert f"next: shoal trainer import parts --from csv:{parts_csv} --label defect --group Run" in said
    assert "--map material=Material --map 'moulded_at=Moulded at' --map 'melt_c=Melt (°C)'" in said
    inputs = {spec.name: spec.constraint for spec in Recipe.load(tmp_path / "parts").signature.inputs}
    assert list(inputs) == ["material", "moulded_at", "serviced_on", "melt_c", "moisture", "weight"]
    assert inputs["material"].allowed == ("ABS", "PA6", "POM", "PP")
    assert inputs["material"].nullable
    assert inputs["serviced_on"].date == DateFormat(format="%d.%m.%Y", zone="UTC")
    assert inputs["weight"].number == NumberFormat(decimal=",", grouping=".")
    assert inputs["moisture"].nullable
    assert not inputs["melt_c"].nullable


@pytest.mark.timeout(400)
def test_a_recipe_made_for_a_table_trains_on_it_and_serves(tmp_path: Path, parts_csv: Path) -> None:
    run("new", "parts", "--from", f"csv:{parts_csv}", "--label", "defect", "--group", "Run", "--recipes", tmp_path)
    recipe = Recipe.load(tmp_path / "parts")
    columns = Columns(
        tensors={"material": ("Material",), "moulded_at": ("Moulded at",), "melt_c": ("Melt (°C)",)},
        label="defect",
        group="Run",
    )
    done = import_table(recipe, str(tmp_path / "lake"), RowsFrom("csv", str(parts_csv)), columns, now=NOW)
    assert (done.new, done.bad) == (1_200, 0)
    run("train", "parts", "--lake", tmp_path / "lake", "--out", tmp_path / "parts-1", "--recipes", tmp_path)
    with load(tmp_path / "parts-1") as model:
        row = {
            "material": np.array([b""], dtype=object),
            "moulded_at": np.array([b"2025-01-13T07:30:00+01:00"], dtype=object),
            "serviced_on": np.array([b""], dtype=object),
            "weight": np.array([b"1.201,7"], dtype=object),
            "melt_c": np.array([231.5], dtype=np.float32),
            "moisture": np.array([np.nan], dtype=np.float32),
        }
        assert model.infer(row).outputs["probabilities"].shape == (1, 4)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--label", "colour"], "there is no column 'colour'; there are: Run, Material"),
        (["--label", "remark"], "column 'remark' has 1200 different values"),
        (["--label", "defect", "--group", "batch"], "there is no column 'batch'"),
    ],
)
def test_a_table_that_gives_no_recipe_is_said_in_a_sentence(
    tmp_path: Path, parts_csv: Path, arguments: list[str], said: str
) -> None:
    command = ["new", "parts", "--from", f"csv:{parts_csv}", "--recipes", str(tmp_path), *arguments]
    done = CliRunner().invoke(trainer, command)
    assert done.exit_code != 0
    assert said in done.output
    assert not list(tmp_path.iterdir())
