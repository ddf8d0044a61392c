"""What model.toml may say of its inputs' values."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from edge_agent.contract.constraint import AxisLimit, DateFormat, NumberFormat, Policy, Rule
from trainer.errors import RecipeError
from trainer.recipe import Recipe


@pytest.fixture
def own(recipes: Path, tmp_path: Path) -> Path:
    """A copy of the recipe to change."""
    return Path(shutil.copytree(recipes / "digits", tmp_path / "digits"))


def with_input(folder: Path, *, datatype: str, shape: str, constraint: str) -> Recipe:
    file = folder / "model.toml"
    more = (
        f'[[inputs]]\nname = "more"\ndatatype = "{datatype}"\nshape = {shape}\nconstraint = {constraint}\n\n[[outputs]]'
    )
    file.write_text(file.read_text().replace("[[outputs]]", more, 1))
    return Recipe.load(folder)


def test_every_constraint_can_be_said_in_a_recipe(own: Path) -> None:
    recipe = with_input(
        own,
        datatype="BYTES",
        shape="[-1, -1]",
        constraint="""{ number = { decimal = ",", grouping = "." }, encoding = "latin-1", max_length = 20, minimum = 0,
          axes = [{ axis = 1, maximum = 9 }], fill = "-1", policies = { range = "clip", number = "fill" } }""".replace(
            "\n", ""
        ),
    )
    limits = recipe.signature.inputs[1].constraint
    assert limits.number == NumberFormat(decimal=",", grouping=".")
    assert limits.axes == (AxisLimit(axis=1, maximum=9),)
    assert limits.policies == {Rule.RANGE: Policy.CLIP, Rule.NUMBER: Policy.FILL}


def test_dates_can_be_said_too_and_images_in_a_files_bytes_are_refused(own: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(own, tmp_path / "other" / "digits"))
    dates = with_input(own, datatype="BYTES", shape="[-1]", constraint='{ date = { zone = "Europe/Berlin" } }')
    assert dates.signature.inputs[1].constraint.date == DateFormat(zone="Europe/Berlin")
    images = '{ image = { formats = ["png", "jpeg"], max_pixels = 9 } }'
    with pytest.raises(RecipeError, match="nothing decodes an image in a file's bytes for it; declare its pixels"):
        with_input(other, datatype="BYTES", shape="[-1]", constraint=images)


@pytest.mark.parametrize(
    ("constraint", "says"),
    [
        ("{ maxlength = 9 }", "unknown field `maxlength`"),
        ("{ image = { max_with = 4 } }", "unknown field `max_with`"),
        ('{ max_length = 9, policies = { lenght = "clip" } }', "'lenght'.*; allowed are: missing, encoding"),
        ('{ max_length = 9, policies = { length = "cut" } }', "'cut'.*; allowed are: reject, clip, fill, flag"),
        ('{ encoding = "utf8" }', "'utf8'.*; allowed are: utf-8, ascii"),
        ('{ image = { formats = ["tiff"] } }', "'tiff'.*; allowed are: png, jpeg"),
        ("{ minimum = 0.0 }", "more: 0.0 bounds no BYTES"),
    ],
)
def test_a_constraint_that_is_misspelt_or_makes_no_sense_is_named(own: Path, constraint: str, says: str) -> None:
    with pytest.raises(RecipeError, match=rf"model\.toml: .*{says}"):
        with_input(own, datatype="BYTES", shape="[-1]", constraint=constraint)
