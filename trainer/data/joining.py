"""Samples joined with their labels: all that is known of a model's rows but their inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from edge_agent.contract.lake import IMPORTED
from edge_agent.contract.messages import SampleReason
from trainer.data.lake_scan import PLACE
from trainer.data.rows import Rows
from trainer.errors import DatasetError
from trainer.recipe import Recipe

_KEYS = ["device", "request_id"]
SAMPLE_COLUMNS = [*_KEYS, "package", "at_ms", "reason", "prediction", "group", "inclusion_probability"]
LABEL_COLUMNS = [*_KEYS, "label", "labelled_at_ms", "inclusion_probability"]


@dataclass(frozen=True)
class Joined:
    """All samples of a model, one of each key, the oldest first.

    Args:
        rows: N rows without inputs; their probability is that of being sampled.
        places: int64[N]: where they lie in the lake.
        asked: float64[N]: the probability of being asked for a label.
        labels: Labels of the model, one of each key; ``unmatched``: how many have no sample.
    """

    rows: Rows
    places: NDArray[np.int64]
    asked: NDArray[np.float64]
    labels: int
    unmatched: int


def join(recipe: Recipe, samples: pa.Table, labels: pa.Table, *, until_ms: int | None) -> Joined:
    """Join by device and request; of several samples or labels of one key the newest holds.

    Args:
        until_ms: Labels that were given later are left out.
    Raises:
        DatasetError: A label is no class of the recipe.
    """
    if until_ms is not None:
        labels = labels.filter(pc.less_equal(labels["labelled_at_ms"], until_ms))
    sampled, labelled = _unique(samples, "at_ms"), _unique(labels, "labelled_at_ms")
    numbered = sampled.select(_KEYS).append_column("row", pa.array(np.arange(len(sampled), dtype=np.int64)))
    matched = labelled.join(numbered, keys=_KEYS, join_type="inner")
    text = {name: _text(sampled[name]) for name in ("device", "package", "reason", "prediction", "group", "request_id")}
    targets, asked = np.full(len(sampled), -1, dtype=np.int64), np.ones(len(sampled))
    at = matched["row"].to_numpy()
    targets[at] = _classes(recipe, matched["label"].to_pylist(), at, text)
    asked[at] = _probability(matched["inclusion_probability"])
    rows = Rows(
        inputs={},
        sent={},
        targets=targets,
        devices=text["device"],
        requests=text["request_id"],
        groups=np.where(text["group"] == "", text["device"] + "/" + text["request_id"], text["group"]),
        packages=text["package"],
        predictions=text["prediction"],
        at_ms=sampled["at_ms"].to_numpy(),
        probability=_probability(sampled["inclusion_probability"]),
        uniform=np.asarray(text["reason"] != SampleReason.MARGIN.value, dtype=bool),
    )
    return Joined(rows, sampled[PLACE].to_numpy(), asked, len(labelled), len(labelled) - len(matched))


def _unique(table: pa.Table, newest_by: str) -> pa.Table:
    """One row per device and request: the newest."""
    order = [(newest_by, "ascending"), ("device", "ascending"), ("request_id", "ascending")]
    table = table.take(pc.sort_indices(table, sort_keys=order))
    numbered = table.append_column("row", pa.array(np.arange(len(table), dtype=np.int64)))
    last = numbered.group_by(_KEYS).aggregate([("row", "max")])["row_max"]
    return table.take(pc.take(last, pc.sort_indices(last)))


def _classes(recipe: Recipe, labels: list[Any], at: NDArray[np.int64], text: dict[str, NDArray[Any]]) -> list[int]:
    index = {label: number for number, label in enumerate(recipe.file.labels)}
    for row, label in zip(at, labels, strict=True):
        if label not in index:
            device, request = text["device"][row], text["request_id"][row]
            cure = (
                f"`shoal trainer import {recipe.name} --lake ... --replace`"
                if device == IMPORTED
                else "send feedback with the right one"
            )
            raise DatasetError(
                f"label {label!r} is no class of '{recipe.name}'; it has: {', '.join(index)} (request {request} of "
                f"device {device}; {cure})"
            )
    return [index[label] for label in labels]


def _probability(column: pa.ChunkedArray) -> NDArray[np.float64]:
    """Inclusion probabilities; 0 (volunteered) and what is no probability count as certain."""
    found = np.array(column.to_numpy(), dtype=np.float64)
    return np.where((found > 0) & (found <= 1), found, 1.0)


def _text(column: pa.ChunkedArray) -> NDArray[Any]:
    found = np.empty(len(column), dtype=object)
    found[:] = ["" if value is None else value for value in column.to_pylist()]
    return found
