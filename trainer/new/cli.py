"""``shoal trainer new``: the folder of a recipe."""

from __future__ import annotations

from pathlib import Path

import click

from trainer.plain_errors import plainly


@click.command("new")
@click.argument("model")
@click.option("--like", help="A recipe to copy: a folder, or the name of one that comes with Shoal (bearing, quality).")
@click.option(
    "--from",
    "table",
    metavar="KIND:WHERE",
    help="A table to make it for: csv:, parquet:, delta: or sql:; with --label.",
)
@click.option("--query", default="", help="Of SQL.")
@click.option("--label", default="", help="Column of the table that holds the classes.")
@click.option("--group", default="", help="Column with the subject of each row: its rows stay on one side of a split.")
@click.option("--key", default="", help="Column that names a row.")
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
def new(
    *,
    model: str,
    like: str | None,
    table: str | None,
    query: str,
    label: str,
    group: str,
    key: str,
    recipes: Path,
) -> None:
    """Write the folder of a new recipe called MODEL, which trains as it is: model.toml, model.py, README.md.

    \b
    shoal trainer new pump                                            an example, with its data
    shoal trainer new press --like bearing                            a copy of another recipe
    shoal trainer new parts --from csv:parts.csv --label defect       for a table, with a contract of its columns

    It is yours to change: docs/notebook-to-fleet.md goes from here to a fleet.
    """  # noqa: D301 - click wants the \b itself
    from trainer.new.recipe_folder import EXAMPLE, copy_recipe
    from trainer.recipe import recipes_folder

    if table is not None:
        if like is not None or not label:
            raise click.UsageError("--from needs --label, and no --like")
        _from_table(recipes / model, table, query, label=label, group=group, key=key)
        return
    source = EXAMPLE
    if like is not None:
        source = Path(like) if Path(like).is_dir() else recipes_folder(None) / like
    copy_recipe(source, recipes / model)
    _say_files(recipes / model)


def _from_table(folder: Path, table: str, query: str, *, label: str, group: str, key: str) -> None:
    from trainer.data.sources import RowsFrom
    from trainer.new.table_recipe import TableSource, import_command, write_table_recipe

    source = TableSource(rows=RowsFrom.parse(table, query=query), label=label, group=group, key=key)
    _, layout = write_table_recipe(folder, source)
    _say_files(folder)
    for column in layout.columns:
        click.echo(f"  {column.source}: {column.kind}")
    for name, why in layout.left_out:
        click.echo(f"  {name}: left out, {why}")
    click.echo(f"next: {import_command(folder.name, source, layout)} --lake LAKE")


def _say_files(folder: Path) -> None:
    click.echo(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
