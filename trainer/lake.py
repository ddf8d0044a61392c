"""The lake as the trainer sees it: tables of samples and labels at a version, and the base rows it begins with."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, write_deltalake
from deltalake.exceptions import DeltaError, TableNotFoundError

from edge_agent.contract.lake import IMPORTED, LABEL_COLUMNS, LABELS, SAMPLE_COLUMNS, SAMPLES
from trainer.errors import DatasetError
from trainer.recipe import Recipe
from trainer.rows import encode_row

_PARTITION = {SAMPLES: ["day"], LABELS: []}


def open_table(lake: str, table: str, version: int | None) -> DeltaTable | None:
    """A table of the lake at a version (None: the newest), or None where there is no such table yet.

    Raises:
        DatasetError: The lake cannot be read, or has no such version.
    """
    uri = f"{lake.rstrip('/')}/{table}"
    try:
        return DeltaTable(uri, version=version)
    except TableNotFoundError:
        return None
    except (DeltaError, OSError) as error:
        at = "" if version is None else f" at version {version}"
        raise DatasetError(f"{uri}{at}: cannot be read: {error}") from error


def read_table(table: DeltaTable, columns: list[str], model: str) -> pa.Table:
    """Some columns of a model's rows, as Arrow.

    Raises:
        DatasetError: A column is missing, or a file of the table is.
    """
    known = {field.name for field in table.schema().fields}
    if missing := sorted(set(columns) - known):
        raise DatasetError(f"{table.table_uri}: has no columns {missing}; it was not written by Shoal")
    try:
        found = table.to_pyarrow_table(columns=columns, filters=[("model", "=", model)])
    except (DeltaError, OSError, pa.ArrowException) as error:
        raise DatasetError(f"{table.table_uri} at version {table.version()}: cannot be read: {error}") from error
    return found


def import_base(recipe: Recipe, lake: str, *, now: dt.datetime) -> int:
    """Write the recipe's base rows into the lake, samples first; rows that are there already are left alone.

    Args:
        now: When they are said to have been seen, UTC.
    Returns:
        How many rows were new.
    Raises:
        RecipeError: The recipe has no ``data.py``.
        DatasetError: The lake cannot be read.
    """
    groups, inputs, labels = recipe.module("data").base_rows()
    at_ms, day = int(now.timestamp() * 1000), now.strftime("%Y-%m-%d")
    written = 0
    for name, columns in ((SAMPLES, SAMPLE_COLUMNS), (LABELS, LABEL_COLUMNS)):
        there = _imported(lake, name, recipe.name)
        rows = []
        for at, (group, label) in enumerate(zip(groups, labels, strict=True)):
            request = f"{recipe.name}-base-{group}"
            if request in there:
                continue
            row: dict[str, Any] = {
                "request_id": request, "device": IMPORTED, "model": recipe.name, "package": "", "at_ms": at_ms,
                "day": day, "reason": "import", "inclusion_probability": 1.0, "prediction": "", "confidence": 0.0,
                "margin": 0.0, "group": group, "inputs": b"", "outputs": b"\x80", "label": label, "source": IMPORTED,
                "labelled_at_ms": at_ms,
            }  # fmt: skip
            if name == SAMPLES:
                row["inputs"] = encode_row(inputs, at)
            rows.append({column: row[column] for column in columns})
        if rows:
            append(lake, name, rows)
        written = max(written, len(rows))
    return written


def append(lake: str, table: str, rows: list[dict[str, Any]], *, properties: CommitProperties | None = None) -> None:
    """Append rows with the columns of the contract to a table of the lake, which is made where it is not there yet."""
    columns = SAMPLE_COLUMNS if table == SAMPLES else LABEL_COLUMNS
    schema = pa.schema([(name, getattr(pa, kind)()) for name, kind in columns.items()])
    write_deltalake(
        f"{lake.rstrip('/')}/{table}",
        pa.Table.from_pylist(rows, schema=schema),
        mode="append",
        partition_by=_PARTITION[table] or None,
        commit_properties=properties,
    )


def _imported(lake: str, name: str, model: str) -> set[str]:
    table = open_table(lake, name, None)
    if table is None:
        return set()
    found = read_table(table, ["request_id", "device"], model).to_pydict()
    return {row for row, device in zip(found["request_id"], found["device"], strict=True) if device == IMPORTED}
