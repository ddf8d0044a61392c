from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from trainer.errors import RecipeError
from trainer.recipe import Recipe, find_recipes, load_module


@pytest.fixture
def own(recipes: Path, tmp_path: Path) -> Path:
    """A copy of the recipe to break."""
    return Path(shutil.copytree(recipes / "digits", tmp_path / "digits"))


def test_the_digits_recipe_says_what_it_takes_and_gives(recipe: Recipe) -> None:
    assert [recipe.name for recipe in find_recipes(recipe.folder.parent)] == ["digits"]
    assert recipe.signature.inputs[0].shape == (None, 1, 8, 8)
    assert recipe.signature.inputs[0].constraint.maximum == 16.0
    assert recipe.task.labels == tuple("0123456789")


def test_a_misspelt_setting_is_named(own: Path) -> None:
    file = own / "model.toml"
    file.write_text(file.read_text().replace("min_accuracy", "min_acuracy"))
    with pytest.raises(RecipeError, match=r"model\.toml: .*min_acuracy.*gates"):
        Recipe.load(own)


def test_a_watched_tensor_that_is_none_is_named(own: Path) -> None:
    file = own / "model.toml"
    file.write_text(file.read_text().replace('tensor = "image"', 'tensor = "picture"', 1))
    with pytest.raises(RecipeError, match="'picture' is no input or output"):
        Recipe.load(own)


@pytest.mark.parametrize(
    ("setting", "wrong", "message"),
    [
        ("confidence = 0.9", "confidence = 90", "confidence must lie in 0.5..1, got 90"),
        ("min_improvement = 0.02", "min_improvement = 2.0", "min_improvement must lie in 0..1"),
        ("batch_size = 64", "batch_size = 0", "batch_size must be above 0"),
        ('projection = "std"', 'projection = "mean"', r"two features are called image\.mean"),
    ],
)
def test_a_setting_that_makes_no_sense_is_named(own: Path, setting: str, wrong: str, message: str) -> None:
    file = own / "model.toml"
    file.write_text(file.read_text().replace(setting, wrong, 1))
    with pytest.raises(RecipeError, match=rf"model\.toml: .*{message}"):
        Recipe.load(own)


def test_a_folder_without_a_recipe_says_what_one_is(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="a recipe is a folder with"):
        Recipe.load(tmp_path)


def test_code_that_fails_to_import_is_blamed_by_file(own: Path) -> None:
    (own / "data.py").write_text("import no_such_module\n")
    with pytest.raises(RecipeError, match=r"data\.py: does not import: ModuleNotFoundError"):
        Recipe.load(own).module("data")


def test_the_digest_follows_the_code_and_not_the_prose(own: Path, recipe: Recipe) -> None:
    assert Recipe.load(own).digest == recipe.digest
    (own / "README.md").write_text("other words")
    assert Recipe.load(own).digest == recipe.digest
    (own / "world.py").write_text((own / "world.py").read_text() + "\n")
    assert Recipe.load(own).digest != recipe.digest


def test_a_world_is_the_same_for_the_same_seed_and_stays_in_range(recipe: Recipe) -> None:
    world, images = load_module(recipe.folder / "world.py"), recipe.module("data").load("heldout").images
    for degree in world.DRIFTED.values():
        shown = degree.show(images, np.random.default_rng(3))
        assert shown.shape == images.shape
        assert shown.dtype == np.float32
        assert shown.min() >= 0.0
        assert shown.max() <= 16.0
        assert np.array_equal(shown, degree.show(images, np.random.default_rng(3)))
    assert np.array_equal(world.CLEAR.show(images, np.random.default_rng(3)), images)
