"""``shoal trainer import``, ``dataset``, ``replay`` and ``lake``: the rows that models are made from."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import click
import msgspec

from trainer.errors import DatasetError
from trainer.plain_errors import plainly
from trainer.recipe import Recipe, recipes_folder

_RECIPES = click.option(
    "--recipes",
    envvar="SHOAL_RECIPES",
    show_envvar=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of recipes; those that come with Shoal unless given.",
)
_LAKE = click.option("--lake", required=True, help="Folder or URI of the sample lake.")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_DEBUG = click.option("--debug", is_flag=True, help="Show the traceback of an error too.")


@click.command("import")
@click.argument("model")
@_LAKE
@click.option(
    "--from",
    "source",
    metavar="KIND:WHERE",
    help="sql:URL, parquet:PATH, csv:PATH or delta:PATH[@VERSION]; env:NAME may stand for a database's URL.",
)
@click.option("--query", default="", help="What to ask an SQL database for.")
@click.option("--timeout", "timeout_s", default=300.0, show_default=True, help="Seconds that a query may take.")
@click.option(
    "--map",
    "mapped",
    multiple=True,
    metavar="INPUT=COLUMN[,COLUMN...]",
    help="Which columns make an input; the one of its own name unless given.",
)
@click.option("--label", default="label", show_default=True, help="Column of the class.")
@click.option("--group", help="Column that is the same for rows of one subject; each row is its own unless given.")
@click.option("--key", help="Column that names a row; its content does unless given.")
@click.option("--skip-bad", is_flag=True, help="Leave rows out that break the contract; else one refuses all.")
@click.option(
    "--replace", is_flag=True, help="Take out base rows of an earlier import that the recipe has otherwise now."
)
@_RECIPES
@_DEBUG
@plainly
def import_rows(
    *, model: str, lake: str, source: str | None, replace: bool, recipes: Path | None, **table: Any
) -> None:
    """Write rows into the lake, labels too: those of --from, else the base rows of MODEL's recipe.

    Every row is checked against model.toml before anything is written; rows that are there already are left alone.
    Where the recipe was mended after a bad import, --replace takes the base rows imported before out of the lake's
    newest version and writes the recipe's; rows that devices sent, or that came from a table, stay as they are.

    \b
      shoal trainer import quality --lake data/lake --from parquet:parts.parquet --label fault --key part
      shoal trainer import digits --lake data/lake --from csv:digits.csv --map image=p0,p1,p2 --label digit
      shoal trainer import quality --lake data/lake --from sql:env:MES_URL --query "SELECT * FROM parts" --label fault
    """  # noqa: D301 - click wants the \b itself
    recipe = Recipe.load(recipes_folder(recipes) / model)
    if source is None:
        _import_base(recipe, lake, replace=replace)
        return
    if replace:
        raise click.UsageError("--replace is for base rows; rows of a table are known by their --key")
    from trainer.data.import_table import import_table
    from trainer.data.sources import RowsFrom

    rows = RowsFrom.parse(source, query=table["query"], timeout_s=table["timeout_s"])
    done = import_table(recipe, lake, rows, columns_of(table), now=dt.datetime.now(dt.UTC), skip_bad=table["skip_bad"])
    for complaint in done.complaints:
        click.echo(f"left out: {complaint}", err=True)
    left_out = f", {done.bad} left out" if done.bad else ""
    click.echo(
        f"{model}: {done.rows} rows read{left_out}; {done.new} samples and {done.labelled} labels are new in {lake}"
    )


def columns_of(table: dict[str, Any]) -> Any:
    """The columns of an import as options give them.

    Raises:
        DatasetError: A mapping cannot be read.
    """
    from trainer.data.import_table import Columns

    tensors = {}
    for text in table.get("mapped") or ():
        name, equals, columns = text.partition("=")
        if not (name and equals and columns):
            raise DatasetError(f"--map {text!r}: write INPUT=COLUMN, or INPUT=COLUMN,COLUMN")
        tensors[name.strip()] = tuple(column.strip() for column in columns.split(","))
    return Columns(tensors=tensors, label=table.get("label") or "label", group=table.get("group"), key=table.get("key"))


def _import_base(recipe: Recipe, lake: str, *, replace: bool) -> None:
    from trainer.data.lake import import_base

    model = recipe.name
    done = import_base(recipe, lake, now=dt.datetime.now(dt.UTC), replace=replace)
    if done.replaced:
        click.echo(f"{model}: {done.replaced} rows of an earlier import were taken out of {lake}")
    click.echo(
        f"{model}: {done.new} rows are new in {lake}" if done.new else f"{model}: all rows are in {lake} already"
    )


@click.group()
def dataset() -> None:
    """Look at what models learn from."""


@dataset.command()
@click.argument("model")
@_LAKE
@click.option("--samples-version", type=int, help="Delta version of the samples; the newest unless given.")
@click.option("--labels-version", type=int, help="Delta version of the labels; the newest unless given.")
@click.option(
    "--labels-until", default="", help="Labels given later are not known: 2025-03-01 or 2025-03-01T12:00:00Z."
)
@click.option("--champion", help="Digest of the package whose rows are of today's world.")
@click.option("--examples", default=10, show_default=True, help="Rows to show.")
@_JSON
@_RECIPES
@_DEBUG
@plainly
def show(
    *,
    model: str,
    lake: str,
    samples_version: int | None,
    labels_version: int | None,
    labels_until: str,
    champion: str | None,
    examples: int,
    as_json: bool,
    recipes: Path | None,
) -> None:
    """Show the rows of MODEL: by class, device and side of the split, missing values, ranges, examples."""
    from trainer.data.dataset import read_dataset
    from trainer.data.statistics import as_text, statistics

    recipe = Recipe.load(recipes_folder(recipes) / model)
    found = read_dataset(
        recipe,
        lake,
        samples_version=samples_version,
        labels_version=labels_version,
        labels_until_ms=_moment(labels_until),
        champion=champion,
    )
    told = statistics(recipe, found, examples=examples)
    click.echo(_json(told) if as_json else as_text(told))


@dataset.command()
@click.argument("model", required=False)
@_LAKE
@_JSON
@_DEBUG
@plainly
def versions(*, model: str | None, lake: str, as_json: bool) -> None:
    """List the dataset versions that runs have read, and which package was trained on each; of all models, or one."""
    from trainer.data.records import dataset_records

    found = dataset_records(lake, model)
    if as_json:
        click.echo(_json(found))
        return
    if not found:
        click.echo(f"{lake}: no run has read a dataset of it yet")
    for record in found:
        at = dt.datetime.fromtimestamp(record.recorded_at_ms / 1000, dt.UTC).strftime("%Y-%m-%d %H:%M")
        made = f"package {record.package[:12]} version {record.version}" if record.package else "no package"
        tables = f"samples {record.samples_version}, labels {record.labels_version}"
        rows = record.summary.get("rows", "?")
        click.echo(f"{at}  {record.model}  {record.digest[:12]}  {tables}, {rows} rows  {made}  {record.run}")


@click.group()
def replay() -> None:
    """Rows that no later model may regress on, past incidents among them; they are never trained on."""


@replay.command("add")
@click.argument("model")
@click.argument("name")
@_LAKE
@click.option("--device", "devices", multiple=True, help="May be given repeatedly.")
@click.option("--label", "labels", multiple=True, help="True class; may be given repeatedly.")
@click.option("--group", "groups", multiple=True, help="May be given repeatedly.")
@click.option("--package", "packages", multiple=True, help="Digest of the package that answered.")
@click.option(
    "--request", "requests", multiple=True, metavar="DEVICE/REQUEST", help="One row; may be given repeatedly."
)
@click.option("--since", default="", help="2025-03-01 or 2025-03-01T12:00:00Z, UTC.")
@click.option("--until", default="", help="The first moment that is out.")
@click.option("--wrong-only", is_flag=True, help="Only rows that the device's model answered wrongly.")
@click.option("--why", default="", help="What happened, in words.")
@_RECIPES
@_DEBUG
@plainly
def add(*, model: str, name: str, lake: str, recipes: Path | None, wrong_only: bool, **query: Any) -> None:
    """Keep labelled rows of MODEL in the slice NAME, as they are now."""
    from trainer.data.replay import add_replay
    from trainer.recipe_file import Replay

    recipe = Recipe.load(recipes_folder(recipes) / model)
    try:
        wanted = msgspec.convert({"name": name, **query}, Replay)
    except msgspec.ValidationError as error:
        raise DatasetError(str(error)) from error
    new = add_replay(recipe, lake, wanted, now=dt.datetime.now(dt.UTC), wrong_only=wrong_only)
    click.echo(f"{model}: {new} rows are new in the replay slice '{name}'; no later model is trained on them")


@replay.command("list")
@click.argument("model")
@_LAKE
@_JSON
@_DEBUG
@plainly
def list_slices(*, model: str, lake: str, as_json: bool) -> None:
    """List the slices of MODEL that are kept in the lake; those of model.toml stand there."""
    from trainer.data.replay import kept_rows

    kept = kept_rows(lake, model)
    if as_json:
        click.echo(_json({name: {"rows": sorted(keys), "why": kept.why[name]} for name, keys in kept.keys.items()}))
        return
    for name, keys in sorted(kept.keys.items()):
        click.echo(f"{name}: {len(keys)} rows  {kept.why[name]}")
    if not kept.keys:
        click.echo(f"{lake}: no replay slice of '{model}'")


@replay.command("remove")
@click.argument("model")
@click.argument("name")
@_LAKE
@_DEBUG
@plainly
def remove(*, model: str, name: str, lake: str) -> None:
    """Take the slice NAME of MODEL out of the lake; its rows may be trained on again."""
    from trainer.data.replay import remove_replay

    click.echo(f"{model}: the replay slice '{name}' of {remove_replay(lake, model, name)} rows is gone")


@click.group("lake")
def lake_commands() -> None:
    """Take care of the sample lake."""


@lake_commands.command("tend")
@_LAKE
@click.option("--retain-days", type=float, help="Samples of devices that are older go; none unless given.")
@click.option("--vacuum-days", default=7.0, show_default=True, help="Files that no version of so many days holds go.")
@click.option("--keep-packages", default=20, show_default=True, help="Packages of each model whose data stay readable.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@_JSON
@_DEBUG
@plainly
def tend_lake(*, lake: str, dry_run: bool, as_json: bool, **care: Any) -> None:
    """Drop old samples, merge small files, and remove files that no version needs.

    What the newest packages of each model were trained on stays readable, and so do the rows of replay slices.
    """
    from trainer.data.tending import Care, as_words, tend

    done = tend(
        lake, Care(**care), now=dt.datetime.now(dt.UTC), dry_run=dry_run, say=lambda words: click.echo(words, err=True)
    )
    click.echo(_json(done) if as_json else as_words(done, dry_run=dry_run))


def _moment(text: str) -> int | None:
    from trainer.recipe_file import moment_ms

    try:
        return moment_ms(text)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def _json(value: Any) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()


# What `shoal trainer` takes from here.
commands = [import_rows, dataset, replay, lake_commands]
