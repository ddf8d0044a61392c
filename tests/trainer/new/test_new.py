from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from edge_agent import load
from trainer.cli import trainer
from trainer.recipe import Recipe


def run(*arguments: str | Path) -> str:
    done = CliRunner().invoke(trainer, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done.output


def test_a_new_recipe_trains_and_serves_as_it_is(tmp_path: Path) -> None:
    said = run("new", "pump", "--recipes", tmp_path / "models")
    assert f"{tmp_path / 'models' / 'pump'}: README.md, data.py, model.py, model.toml" in said
    common: list[str | Path] = ["pump", "--lake", tmp_path / "lake", "--recipes", tmp_path / "models"]
    assert "pump: 600 rows are new" in run("import", *common)
    assert "released" in run("train", *common, "--out", tmp_path / "pump-1")
    with load(tmp_path / "pump-1") as model:
        readings = np.array([[60, 4, 30, 8], [75, 6.5, 12, 10], [57, 2.8, 34, 7.5]], dtype=np.float32)
        assert model.infer(readings=readings).outputs["probabilities"].argmax(axis=1).tolist() == [0, 1, 2]


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
