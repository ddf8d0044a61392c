"""``shoal trainer new``: the folder of a recipe."""

from __future__ import annotations

from pathlib import Path

import click

from trainer.plain_errors import plainly


@click.command("new")
@click.argument("model")
@click.option("--like", help="A recipe to copy: a folder, or the name of one that comes with Shoal (bearing, quality).")
@click.option(
    "--recipes",
    envvar="SHOAL_RECIPES",
    show_envvar=True,
    default=Path("models"),
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of recipes in which it shall lie; made where it is not there.",
)
@click.option("--debug", is_flag=True, help="Show the traceback of an error too.")
@plainly
def new(*, model: str, like: str | None, recipes: Path) -> None:
    """Write the folder of a new recipe called MODEL, which trains as it is: model.toml, model.py, data.py, README.md.

    It is yours to change: docs/notebook-to-fleet.md goes from here to a fleet.
    """
    from trainer.new.recipe_folder import EXAMPLE, copy_recipe
    from trainer.recipe import recipes_folder

    source = EXAMPLE
    if like is not None:
        source = Path(like) if Path(like).is_dir() else recipes_folder(None) / like
    recipe = copy_recipe(source, recipes / model)
    click.echo(f"{recipes / model}: {', '.join(sorted(path.name for path in recipe.folder.iterdir()))}")
