"""Writes a recipe for a table: a contract of what its first rows hold, and a network that fits any such contract."""

from __future__ import annotations

import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

from trainer.data.sources import RowsFrom
from trainer.new.columns import Layout, lay_out, quoted
from trainer.new.recipe_folder import check_new
from trainer.recipe import Recipe

_MODEL = Path(__file__).parent / "table" / "model.py"
_LOOKED_AT = 20_000
_HEAD = """\
# What the model takes and gives, how it learns, and what it must show before it is released (docs/recipes.md).
# Made from the first rows of a table: read it, and say what you know better.
name = "{model}"
title = {title}
slices = ["device", "class"]

"""
_REST = """\
[training]
epochs = 40
learning_rate = 5e-3
finetune_epochs = 20
finetune_learning_rate = 1e-3
batch_size = 128
patience = 8

# Model gets these as `options`; one that it never reads is an error.
[training.options]
width = 64
dropout = 0.1

# What a model must show before it is released. Accuracies lie in 0..1.
[gates]
min_accuracy = {floor}

"""


@dataclass(frozen=True, kw_only=True)
class TableSource:
    """Where the rows are, and which column is what.

    Args:
        group, key: Columns; empty where there are none.
    """

    rows: RowsFrom
    label: str
    group: str = ""
    key: str = ""


def write_table_recipe(folder: Path, source: TableSource) -> tuple[Recipe, Layout]:
    """A recipe for the table, called as its folder.

    Raises:
        RecipeError: The folder is there already, or its name is none.
        DatasetError: The table cannot be read, or no recipe can be made of it.
    """
    check_new(folder)
    table = source.rows.head(_LOOKED_AT)
    layout = lay_out(table, label=source.label, besides=(source.group, source.key))
    counts = table[source.label].value_counts().field("counts").to_pylist()
    folder.mkdir(parents=True)
    (folder / "model.toml").write_text(_model_toml(folder.name, layout, most_frequent=max(counts) / len(table)))
    (folder / "README.md").write_text(_readme(folder.name, source, layout))
    shutil.copyfile(_MODEL, folder / "model.py")
    return Recipe.load(folder), layout


def import_command(model: str, source: TableSource, layout: Layout) -> str:
    """What to type next; the lake and the recipes' folder still to be added."""
    words = ["shoal", "trainer", "import", model, "--from", f"{source.rows.kind}:{source.rows.where}"]
    if source.rows.query:
        words += ["--query", source.rows.query]
    words += ["--label", source.label]
    for option, column in (("--group", source.group), ("--key", source.key)):
        words += [option, column] if column else []
    for each in layout.columns:
        words += ["--map", f"{each.name}={each.source}"] if each.name != each.source else []
    return shlex.join(words)


def _model_toml(model: str, layout: Layout, *, most_frequent: float) -> str:
    title = quoted(f"Tells {', '.join(layout.classes[:6])}")
    parts = [_HEAD.format(model=model, title=title)]
    for each in layout.columns:
        shape = ", ".join(str(axis) for axis in each.shape)
        about = ", ".join(f"{name} = {value}" for name, value in each.constraint.items())
        constraint = f"constraint = {{ {about} }}\n" if about else ""
        heard = f"# Column {quoted(each.source)}.\n" if each.source != each.name else ""
        parts.append(
            f'{heard}[[inputs]]\nname = "{each.name}"\ndatatype = "{each.datatype}"\nshape = [{shape}]\n{constraint}\n'
        )
    labels = ", ".join(quoted(label) for label in layout.classes)
    parts.append(
        f'[[outputs]]\nname = "probabilities"\ndatatype = "FP32"\nshape = [-1, {len(layout.classes)}]\n'
        f'labels = [{labels}]\n\n[task]\nkind = "classification"\noutput = "probabilities"\n\n'
    )
    # Who always says the most frequent class is right that often: a model must do better.
    parts.append(_REST.format(floor=round(min(most_frequent + 0.01, 1.0), 2)))
    watched = [(each.name, "element") for each in layout.columns if each.kind == "number" and each.shape == (-1,)]
    watched += [("probabilities", name) for name in ("confidence", "margin", "class")]
    parts.append(
        "\n".join(f'[[monitoring.features]]\ntensor = "{name}"\nprojection = "{how}"\n' for name, how in watched)
    )
    return "".join(parts)


def _readme(model: str, source: TableSource, layout: Layout) -> str:
    lines = [
        f"# {model}",
        "",
        "What goes in and comes out, what the model is meant for and what not, where its data come from, what it is",
        "known to do badly: these words become the first part of every version's model card.",
        "",
        "| input | column | what |",
        "|---|---|---|",
        *(f"| `{each.name}` | {each.source} | {each.kind} |" for each in layout.columns),
        "",
        *(f"- Column '{name}' is left out: {why}." for name, why in layout.left_out),
        f"- **Output** `probabilities`: float32[N, {len(layout.classes)}], in the order {', '.join(layout.classes)}.",
        f"- **Data**: `{import_command(model, source, layout)} --lake LAKE`",
        "",
    ]
    return "\n".join(lines)
