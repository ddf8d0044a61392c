"""Writes the folder of a new recipe: the example, or a copy of another recipe, under a name of its own."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from edge_agent.contract.names import is_name
from trainer.errors import RecipeError
from trainer.recipe import Recipe

EXAMPLE = Path(__file__).parent / "example"
_NAME = re.compile(r'^name = "[^"]*"$', re.MULTILINE)


def copy_recipe(source: Path, folder: Path) -> Recipe:
    """A recipe like the one in ``source``, called as its folder.

    Args:
        folder: Must not be there yet.
    Raises:
        RecipeError: It is, or its name is none, or the source is no recipe.
    """
    check_new(folder)
    if not (source / "model.toml").is_file():
        raise RecipeError(f"{source}: no recipe here, as it has no model.toml")
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("__pycache__"))
    file = folder / "model.toml"
    # The first is the model's own; those of the tensors come later.
    file.write_text(_NAME.sub(f'name = "{folder.name}"', file.read_text(), count=1))
    return Recipe.load(folder)


def check_new(folder: Path) -> None:
    """Whether a recipe may be written there.

    Raises:
        RecipeError: The folder is there already, or its name is none.
    """
    if not is_name(folder.name):
        raise RecipeError(
            f"{folder.name!r} cannot be a model's name: use a-z, 0-9, '-' and '_', a letter or digit first"
        )
    if folder.exists():
        raise RecipeError(f"{folder} is there already; remove it, or choose another name")
