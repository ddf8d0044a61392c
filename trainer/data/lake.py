"""The lake as the trainer sees it: tables of samples and labels at a version, and the base rows it begins with."""

from __future__ import annotations

import datetime as dt
import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import CommitProperties, DeltaTable, WriterProperties, write_deltalake
from deltalake.exceptions import DeltaError, TableNotFoundError

from edge_agent.contract.lake import (
    IMPORTED,
    LABEL_COLUMNS,
    LABELS,
    LOG_RETENTION,
    ROW_GROUP_ROWS,
    SAMPLE_COLUMNS,
    SAMPLES,
)
from trainer.data.base_rows import base_rows
from trainer.errors import DatasetError, VersionGone
from trainer.recipe import Recipe

# What the readers of local folders and of object stores say of a file that is not there.
_GONE = ("No such file", "Object at location", "NoSuchKey")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_CONFIGURATION = {"delta.logRetentionDuration": LOG_RETENTION}
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
        raise DatasetError(f"{uri}{at}: cannot be read: {_said(error)}{_other_version(uri, version)}") from error


def unreadable(table: DeltaTable, error: Exception) -> DatasetError:
    """What to say of a table whose files cannot be read."""
    said, version, where = _said(error), table.version(), table.table_uri.rstrip("/")
    if isinstance(error, FileNotFoundError) or any(words in said for words in _GONE):
        return VersionGone(
            f"{where} at version {version}: files of it are gone ({said}): it was vacuumed, or they were removed by "
            "hand; take a newer version, or put them back from a backup. `shoal trainer lake tend` keeps the versions "
            "that packages were trained on; `shoal trainer dataset versions` lists them"
        )
    return DatasetError(
        f"{where} at version {version}: cannot be read: {said}; where a file is damaged, put it back from a "
        "backup, or take a version from before it was written"
    )


def needed_table(recipe: Recipe, lake: str, name: str, version: int | None = None) -> DeltaTable:
    """A table without which there is no dataset.

    Raises:
        DatasetError: It is not there yet, or cannot be read.
    """
    found = open_table(lake, name, version)
    if found is None:
        raise DatasetError(
            f"{lake}: has no table '{name}' yet; import base data (`shoal trainer import {recipe.name} "
            "--lake ...`) or let devices send some"
        )
    return found


def append_table(lake: str, name: str, rows: pa.Table) -> None:
    """Append to a table of the lake, which is made where it is not there yet.

    Raises:
        DatasetError: The lake cannot be written.
    """
    uri = f"{lake.rstrip('/')}/{name}"
    try:
        write_deltalake(uri, rows, mode="append", configuration=_CONFIGURATION)
    except (DeltaError, OSError) as error:
        raise DatasetError(f"{uri}: cannot be written: {_said(error)}") from error


def read_table(table: DeltaTable, columns: list[str], model: str | None) -> pa.Table:
    """Some columns of a model's rows (None: of all models), as Arrow.

    Raises:
        DatasetError: A column is missing, or a file of the table is.
    """
    known = {field.name for field in table.schema().fields}
    if missing := sorted(set(columns) - known):
        raise DatasetError(f"{table.table_uri}: has no columns {missing}; it was not written by Shoal")
    try:
        chosen = None if model is None else [("model", "=", model)]
        found = table.to_pyarrow_table(columns=columns, filters=chosen)
    except (DeltaError, OSError, pa.ArrowException) as error:
        raise unreadable(table, error) from error
    return found


def _said(error: Exception) -> str:
    return " ".join(_COLOUR.sub("", str(error)).split())[:300]


def _other_version(uri: str, version: int | None) -> str:
    """What versions there are, where one was asked for that is not."""
    if version is None:
        return ""
    try:
        newest = DeltaTable(uri).version()
    except (DeltaError, OSError):
        return ""
    return f"; the newest version is {newest}" + ("" if version > newest else ", and of old ones the log may be gone")


@dataclass(frozen=True)
class Imported:
    """What an import did: rows that are new, and rows of an earlier import that were taken out."""

    new: int
    replaced: int = 0


def import_base(recipe: Recipe, lake: str, *, now: dt.datetime, replace: bool = False) -> Imported:
    """Write the recipe's base rows into the lake, samples first; rows that are there already are left alone.

    Nothing is written before every row was checked.

    Args:
        now: When they are said to have been seen, UTC.
        replace: Take out what was imported of this model before where it is not what the recipe has now. Older versions
            of the lake keep it.
    Raises:
        RecipeError: The recipe has no ``data.py``, or a row is not what ``model.toml`` says; it names the row.
        DatasetError: The lake cannot be read or written; or it holds other imported rows, and ``replace`` is not set.
    """
    base = base_rows(recipe)
    wanted = dict(zip(base.requests, base.rows(), strict=True))
    mine = base_prefix(recipe.name)
    samples = imported(lake, SAMPLES, recipe.name, "inputs", prefix=mine)
    labels = imported(lake, LABELS, recipe.name, "label", prefix=mine)
    other = _differing(wanted, samples, labels)
    if other and not replace:
        raise DatasetError(
            f"{lake}: {len(other)} imported rows of '{recipe.name}' are not what the recipe has now (the first: "
            f"{other[0]}); nothing was written. To take them out and let the recipe's rows stand: shoal trainer import "
            f"{recipe.name} --lake ... --replace"
        )
    for name, columns, known in ((SAMPLES, SAMPLE_COLUMNS, samples), (LABELS, LABEL_COLUMNS, labels)):
        rows = [
            _row(recipe.name, request, row, now, columns)
            for request, row in wanted.items()
            if other or request not in known
        ]
        if rows:
            append(lake, name, rows, instead_of=recipe.name if other and known else None)
    there = (samples.keys() & labels.keys()) - set(other)
    return Imported(new=len(wanted.keys() - there), replaced=len(other))


def _differing(
    wanted: dict[str, tuple[bytes, str, str]], samples: dict[str, bytes], labels: dict[str, str]
) -> list[str]:
    """Requests in the lake that the recipe has otherwise, or has not."""
    wrong = {request for request, inputs in samples.items() if wanted.get(request, (b"", "", ""))[0] != inputs}
    wrong |= {request for request, label in labels.items() if wanted.get(request, (b"", "", ""))[1] != label}
    return sorted(wrong)


def _row(
    model: str, request: str, row: tuple[bytes, str, str], now: dt.datetime, columns: Iterable[str]
) -> dict[str, Any]:
    """A base row with some columns of either table."""
    (inputs, label, group), at_ms = row, int(now.timestamp() * 1000)
    known: dict[str, Any] = {
        "request_id": request, "device": IMPORTED, "model": model, "package": "", "at_ms": at_ms,
        "day": now.strftime("%Y-%m-%d"), "reason": "import", "inclusion_probability": 1.0, "prediction": "",
        "confidence": 0.0, "margin": 0.0, "group": group, "inputs": inputs, "outputs": b"\x80", "label": label,
        "source": IMPORTED, "labelled_at_ms": at_ms,
    }  # fmt: skip
    return {column: known[column] for column in columns}


def append(
    lake: str,
    table: str,
    rows: list[dict[str, Any]],
    *,
    properties: CommitProperties | None = None,
    instead_of: str | None = None,
) -> None:
    """Append rows with the columns of the contract to a table of the lake, which is made where it is not there yet.

    Args:
        instead_of: Name of a model whose base rows go in the same commit.
    Raises:
        DatasetError: The lake cannot be written.
    """
    schema, uri = _schema(table), f"{lake.rstrip('/')}/{table}"
    try:
        if instead_of is None:
            write_deltalake(
                uri,
                pa.Table.from_pylist(rows, schema=schema),
                mode="append",
                partition_by=_PARTITION[table] or None,
                configuration=_CONFIGURATION,
                commit_properties=properties,
            )
        else:
            write_deltalake(
                uri,
                pa.Table.from_pylist(rows, schema=schema),
                mode="overwrite",
                predicate=f"device = '{IMPORTED}' AND model = '{instead_of}' "
                f"AND starts_with(request_id, '{base_prefix(instead_of)}')",
                commit_properties=properties,
            )
    except (DeltaError, OSError) as error:
        raise DatasetError(f"{uri}: cannot be written: {error}") from error


def append_batches(lake: str, table: str, batches: Iterable[list[dict[str, Any]]]) -> int:
    """Append rows as :func:`append` does, in one commit, while they are made; what a row has besides is left out.

    Returns:
        How many rows; without any there is no commit.
    Raises:
        DatasetError: The lake cannot be written.
    """
    schema, uri, written = _schema(table), f"{lake.rstrip('/')}/{table}", 0

    def made() -> Iterator[pa.RecordBatch]:
        nonlocal written
        for rows in batches:
            if rows:
                written += len(rows)
                yield pa.RecordBatch.from_pylist([{name: row[name] for name in schema.names} for row in rows], schema)

    found = made()
    first = next(found, None)
    if first is None:
        return 0
    try:
        write_deltalake(
            uri,
            pa.RecordBatchReader.from_batches(schema, itertools.chain([first], found)),
            mode="append",
            partition_by=_PARTITION[table] or None,
            configuration=_CONFIGURATION,
            writer_properties=WriterProperties(max_row_group_size=ROW_GROUP_ROWS, compression="SNAPPY"),
        )
    except (DeltaError, OSError, pa.ArrowException) as error:
        raise DatasetError(f"{uri}: cannot be written: {_said(error)}") from error
    return written


def base_prefix(model: str) -> str:
    """How the request ids of a recipe's base rows begin."""
    return f"{model}-base-"


def imported(lake: str, name: str, model: str, column: str, *, prefix: str = "") -> dict[str, Any]:
    """A column of the model's imported rows, by request; those alone whose request begins with ``prefix``."""
    table = open_table(lake, name, None)
    if table is None:
        return {}
    newest = "at_ms" if name == SAMPLES else "labelled_at_ms"
    found = read_table(table, ["request_id", "device", column, newest], model)
    found = found.filter(pc.and_(pc.equal(found["device"], IMPORTED), pc.starts_with(found["request_id"], prefix)))
    found = found.sort_by(newest)
    return dict(zip(found["request_id"].to_pylist(), found[column].to_pylist(), strict=True))


def _schema(table: str) -> pa.Schema:
    columns = SAMPLE_COLUMNS if table == SAMPLES else LABEL_COLUMNS
    return pa.schema([(name, getattr(pa, kind)()) for name, kind in columns.items()])
