"""The replay set: labelled rows, past incidents among them, that no later model is trained on or may regress on.

A slice is named in the recipe (``[[replay]]`` in model.toml, by a query) or in the lake's table ``replay`` (by the keys
of its rows, as they were when it was added). A slice named in both holds the rows of both.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError
from numpy.typing import NDArray

from edge_agent.contract.lake import LABELS, SAMPLES
from trainer.data.joining import LABEL_COLUMNS, SAMPLE_COLUMNS, join
from trainer.data.lake import append_table, needed_table, open_table, read_table
from trainer.data.lake_scan import LakeScan
from trainer.data.rows import Rows
from trainer.errors import DatasetError
from trainer.recipe import Recipe
from trainer.recipe_file import Replay, moment_ms

REPLAY = "replay"
NO_TABLE = -1
_SCHEMA = pa.schema([
    ("model", pa.string()), ("name", pa.string()), ("device", pa.string()), ("request_id", pa.string()),
    ("why", pa.string()), ("added_at_ms", pa.int64()),
])  # fmt: skip


@dataclass(frozen=True)
class KeptRows:
    """Rows of replay slices that are named in the lake.

    Args:
        version: Of the table; :data:`NO_TABLE` where there is none yet.
        keys: ``DEVICE/REQUEST`` by slice.
        why: By slice.
    """

    version: int
    keys: dict[str, set[str]]
    why: dict[str, str]


def kept_rows(lake: str, model: str, version: int | None = None) -> KeptRows:
    """The slices of a model in the lake at a version of the table (None: the newest; -1: before there was one).

    Raises:
        DatasetError: The table cannot be read.
    """
    table = None if version == NO_TABLE else open_table(lake, REPLAY, version)
    if table is None:
        return KeptRows(NO_TABLE, {}, {})
    found = KeptRows(table.version(), {}, {})
    for row in read_table(table, _SCHEMA.names, model).to_pylist():
        found.keys.setdefault(row["name"], set()).add(f"{row['device']}/{row['request_id']}")
        found.why[row["name"]] = row["why"] or ""
    return found


def replay_masks(recipe: Recipe, rows: Rows, kept: KeptRows) -> dict[str, NDArray[np.bool_]]:
    """Which rows belong to which slice, bool[N] by name.

    Raises:
        DatasetError: A slice has none: what it was to keep safe is not looked at any more.
    """
    masks = {table.name: chosen(rows, table, recipe.file.labels) for table in recipe.file.replay}
    keys = np.array(rows.keys, dtype=object)
    for name, wanted in kept.keys.items():
        found = np.fromiter((key in wanted for key in keys), bool, len(keys))
        masks[name] = masks[name] | found if name in masks else found
    gone = sorted(name for name, mask in masks.items() if not mask.any())
    if gone:
        raise DatasetError(
            f"'{recipe.name}': the replay slice {', '.join(gone)} matches no labelled row, so nothing would see that a "
            "model regresses on it; mend [[replay]] in model.toml, or label its rows"
        )
    return dict(sorted(masks.items()))


def chosen(rows: Rows, query: Replay, labels: tuple[str, ...]) -> NDArray[np.bool_]:
    """Labelled rows that meet every condition that is given, bool[N].

    Raises:
        DatasetError: A label is no class.
    """
    if unknown := sorted(set(query.labels) - set(labels)):
        raise DatasetError(f"replay '{query.name}': {', '.join(unknown)} is no class; there are: {', '.join(labels)}")
    mask = rows.targets >= 0
    given: list[tuple[tuple[str, ...], NDArray[Any]]] = [
        (query.devices, rows.devices),
        (query.groups, rows.groups),
        (query.packages, rows.packages),
        (query.labels, np.array([*labels, ""], dtype=object)[rows.targets]),
        (query.requests, np.array(rows.keys, dtype=object) if query.requests else rows.devices),
    ]
    for wanted, values in given:
        if wanted:
            mask = mask & np.isin(values.astype(str), wanted)
    since, until = moment_ms(query.since), moment_ms(query.until)
    if since is not None:
        mask = mask & (rows.at_ms >= since)
    if until is not None:
        mask = mask & (rows.at_ms < until)
    return mask


def add_replay(recipe: Recipe, lake: str, query: Replay, *, now: dt.datetime, wrong_only: bool = False) -> int:
    """Keep the labelled rows that a query finds now in a slice of the lake, which may be there already.

    Args:
        wrong_only: Only rows that the device's model answered wrongly.
    Returns:
        How many rows are new in it.
    Raises:
        DatasetError: The query finds no labelled row, or the lake cannot be read or written.
    """
    samples, labels = needed_table(recipe, lake, SAMPLES), needed_table(recipe, lake, LABELS)
    known = read_table(labels, LABEL_COLUMNS, recipe.name)
    rows = join(recipe, LakeScan(samples, recipe.name).columns(SAMPLE_COLUMNS), known, until_ms=None).rows
    mask = chosen(rows, query, recipe.file.labels)
    if wrong_only:
        truth = np.array([*recipe.file.labels, ""], dtype=object)[rows.targets]
        mask &= (rows.predictions != truth) & (rows.predictions != "")
    if not mask.any():
        raise DatasetError(
            f"{lake}: no labelled row of '{recipe.name}' is in the slice '{query.name}', of "
            f"{int((rows.targets >= 0).sum())} labelled rows; look at devices, labels, since and until (times are UTC)"
        )
    there = kept_rows(lake, recipe.name).keys.get(query.name, set())
    found = rows.take(mask)
    fresh = [at for at, key in enumerate(found.keys) if key not in there]
    if fresh:
        columns = {
            "model": [recipe.name] * len(fresh),
            "name": [query.name] * len(fresh),
            "device": [str(found.devices[at]) for at in fresh],
            "request_id": [str(found.requests[at]) for at in fresh],
            "why": [query.why] * len(fresh),
            "added_at_ms": [int(now.timestamp() * 1000)] * len(fresh),
        }
        append_table(lake, REPLAY, pa.table(columns, schema=_SCHEMA))
    return len(fresh)


def remove_replay(lake: str, model: str, name: str) -> int:
    """Take a slice out of the newest version of the lake; datasets of older versions keep it.

    Returns:
        How many rows it had.
    Raises:
        DatasetError: There is none of that name in the lake.
    """
    kept = kept_rows(lake, model)
    if name not in kept.keys:
        raise DatasetError(
            f"{lake}: has no replay slice '{name}' of '{model}'; it has: {', '.join(sorted(kept.keys)) or 'none'} (one "
            "that model.toml names is removed there)"
        )
    table: DeltaTable | None = open_table(lake, REPLAY, None)
    if table is not None:
        try:
            table.delete(f"model = '{model}' AND name = '{name}'")
        except (DeltaError, OSError) as error:
            raise DatasetError(f"{table.table_uri}: cannot be written: {error}") from error
    return len(kept.keys[name])
