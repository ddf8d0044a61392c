"""A dataset version: samples joined with labels, each table at a version of its own, split by group.

What a version holds is a function of the two table versions, the model's name and the split rule alone; their digest is
its name, and goes into the lineage of what is trained on it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from edge_agent.contract.lake import IMPORTED, LABELS, SAMPLES
from edge_agent.contract.messages import SampleReason
from trainer.data.lake import open_table, read_table
from trainer.data.recency import current_since
from trainer.data.rows import DecodedInputs, Rows, decode_inputs, hash_share
from trainer.errors import DatasetError
from trainer.recipe import Recipe

_KEYS = ["device", "request_id"]
_SAMPLE_COLUMNS = [*_KEYS, "package", "at_ms", "reason", "prediction", "group", "inclusion_probability", "inputs"]
_LABEL_COLUMNS = [*_KEYS, "label", "labelled_at_ms", "inclusion_probability"]
_HOLDOUT_SALT = "holdout"
_VALIDATION_SALT = "validation"
_VALIDATION_SHARE = 0.12


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A dataset version.

    Args:
        digest: Its name.
        samples_version, labels_version: Delta versions of the two tables.
        rows: All labelled rows, the oldest first.
        holdout, validation: bool[N]: never trained on; used to stop training early. The rest is trained on.
        current: bool[N]: field rows of today's world.
        recent: Sampled rows of today's world, labelled or not; ``unseen``: bool, those that are not trained on.
        unmatched: Labels whose sample is not in the lake.
        set_aside: Samples that break the signature, and are not used; ``complaint`` says what is wrong with the first.
    """

    digest: str
    samples_version: int
    labels_version: int
    rows: Rows
    holdout: NDArray[np.bool_]
    validation: NDArray[np.bool_]
    current: NDArray[np.bool_]
    recent: Rows
    unseen: NDArray[np.bool_]
    unmatched: int
    set_aside: int = 0
    complaint: str = ""

    @property
    def field(self) -> NDArray[np.bool_]:
        """bool[N]: rows that devices sent, as against imported ones."""
        return np.asarray(self.rows.devices != IMPORTED)

    @property
    def train(self) -> NDArray[np.bool_]:
        """bool[N]: rows that are trained on."""
        return ~(self.holdout | self.validation)

    def summary(self) -> dict[str, Any]:
        """What ``evaluation.json`` and the card say of it."""
        return {
            "digest": self.digest,
            "samples_version": self.samples_version,
            "labels_version": self.labels_version,
            "rows": len(self.rows),
            "imported": int((~self.field).sum()),
            "field": int(self.field.sum()),
            "current": int(self.current.sum()),
            "train": int(self.train.sum()),
            "validation": int(self.validation.sum()),
            "holdout": int(self.holdout.sum()),
            "labels_without_sample": self.unmatched,
            "set_aside": self.set_aside,
        }


def read_dataset(
    recipe: Recipe,
    lake: str,
    *,
    samples_version: int | None = None,
    labels_version: int | None = None,
    champion: str | None = None,
) -> Dataset:
    """The dataset of a model at a version of the lake (None: the newest).

    Args:
        champion: Digest of the package that is to be beaten: its rows are those that may be of today's world.
    Raises:
        DatasetError: There are no samples or labels, or a row is not what the signature says.
    """
    samples, labels = open_table(lake, SAMPLES, samples_version), open_table(lake, LABELS, labels_version)
    for name, found in ((SAMPLES, samples), (LABELS, labels)):
        if found is None:
            raise DatasetError(
                f"{lake}: has no table '{name}' yet; import base data (`shoal trainer import {recipe.name} "
                "--lake ...`) or let devices send some"
            )
    assert samples is not None  # noqa: S101 - the loop above has seen to it
    assert labels is not None  # noqa: S101
    sampled = _unique(read_table(samples, _SAMPLE_COLUMNS, recipe.name), "at_ms")
    labelled = _unique(read_table(labels, _LABEL_COLUMNS, recipe.name), "labelled_at_ms")
    unmatched = len(labelled) - len(labelled.join(sampled.select(_KEYS), keys=_KEYS, join_type="left semi"))
    decoded = decode_inputs(sampled["inputs"].to_pylist(), recipe.signature)
    _refuse_bad(recipe, lake, sampled, decoded)
    sampled = sampled.filter(pa.array(decoded.fits))
    joined = sampled.append_column("row", pa.array(range(len(sampled)), pa.int64())).select([*_KEYS, "row"])
    joined = labelled.join(joined, keys=_KEYS, join_type="inner")
    if not len(joined):
        raise DatasetError(
            f"{lake}: '{recipe.name}' has {len(sampled)} samples and {len(labelled)} labels, but no pair"
        )
    everything, asked = _decode(recipe, sampled, decoded, joined)
    with_label = everything.targets >= 0
    rows = replace(everything.take(with_label), probability=asked[with_label])
    holdout, validation = _split(recipe, rows)
    current, today = _current(recipe, rows, everything, champion, holdout)
    unseen = ~with_label
    unseen[np.flatnonzero(with_label)[holdout]] = True
    return Dataset(
        digest=_digest(recipe, samples, labels),
        samples_version=samples.version(),
        labels_version=labels.version(),
        rows=rows,
        holdout=holdout,
        validation=validation,
        current=current,
        recent=everything.take(today),
        unseen=unseen[today],
        unmatched=unmatched,
        set_aside=int((~decoded.fits).sum()),
        complaint=decoded.complaint,
    )


def _unique(table: pa.Table, newest_by: str) -> pa.Table:
    """One row per device and request: the newest."""
    order = [(newest_by, "ascending"), ("device", "ascending"), ("request_id", "ascending")]
    table = table.take(pc.sort_indices(table, sort_keys=order))
    numbered = table.append_column("row", pa.array(range(len(table)), pa.int64()))
    last = numbered.group_by(_KEYS).aggregate([("row", "max")])["row_max"]
    return table.take(pc.take(last, pc.sort_indices(last)))


def _refuse_bad(recipe: Recipe, lake: str, sampled: pa.Table, decoded: DecodedInputs) -> None:
    """Rows of devices that do not fit are set aside: an older model may have had another signature. Others are refused.

    Raises:
        DatasetError: An imported row, or most of the rows, break the signature.
    """
    bad = np.flatnonzero(~decoded.fits)
    if not len(bad):
        return
    devices = sampled["device"].to_pylist()
    if any(devices[at] == IMPORTED for at in bad):
        raise DatasetError(
            f"{lake}: imported rows of '{recipe.name}' break the signature ({len(bad)} rows; the first: "
            f"{decoded.complaint}); mend the recipe, then `shoal trainer import {recipe.name} --lake ... --replace`"
        )
    if 2 * len(bad) > len(devices):
        first = sampled["request_id"][int(bad[0])]
        raise DatasetError(
            f"{lake}: {len(bad)} of {len(devices)} samples of '{recipe.name}' break the signature in model.toml; the "
            f"first is request {first} of device {devices[bad[0]]}: {decoded.complaint}"
        )


def _decode(
    recipe: Recipe, sampled: pa.Table, decoded: DecodedInputs, joined: pa.Table
) -> tuple[Rows, NDArray[np.float64]]:
    """All samples in memory, the oldest first, with the class index of those that have a label.

    Returns:
        The rows with the probability of being sampled, and that of being asked for a label, float64[N].
    """
    targets = np.full(len(sampled), -1, dtype=np.int64)
    asked = np.ones(len(sampled))
    index = {label: at for at, label in enumerate(recipe.file.labels)}
    at = joined["row"].to_numpy()
    for row, label in zip(at, joined["label"].to_pylist(), strict=True):
        if label not in index:
            device, request = sampled["device"][int(row)], sampled["request_id"][int(row)]
            cure = (
                f"`shoal trainer import {recipe.name} --lake ... --replace`"
                if str(device) == IMPORTED
                else "send feedback with the right one"
            )
            raise DatasetError(
                f"label {label!r} is no class of '{recipe.name}'; it has: {', '.join(index)} (request {request} of "
                f"device {device}; {cure})"
            )
        targets[row] = index[label]
    asked[at] = _probability(joined["inclusion_probability"])
    text = {name: _text(sampled[name]) for name in ("device", "package", "reason", "prediction", "group", "request_id")}
    alone = text["group"] == ""
    groups = np.where(alone, text["device"] + "/" + text["request_id"], text["group"])
    rows = Rows(
        inputs=decoded.inputs,
        sent=decoded.sent,
        targets=targets,
        devices=text["device"],
        groups=groups,
        packages=text["package"],
        predictions=text["prediction"],
        at_ms=sampled["at_ms"].to_numpy(),
        probability=_probability(sampled["inclusion_probability"]),
        uniform=np.asarray(text["reason"] != SampleReason.MARGIN.value, dtype=bool),
    )
    return rows, asked


def _probability(column: pa.ChunkedArray) -> NDArray[np.float64]:
    """Inclusion probabilities; 0 (volunteered) and what is no probability count as certain."""
    found = np.array(column.to_numpy(), dtype=np.float64)
    return np.where((found > 0) & (found <= 1), found, 1.0)


def _text(column: pa.ChunkedArray) -> NDArray[Any]:
    return np.array(["" if value is None else value for value in column.to_pylist()], dtype=object)


def _split(recipe: Recipe, rows: Rows) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which rows are held out, and which stop training early: whole groups, by the hash of their name."""
    share = recipe.file.dataset.holdout_share
    names = sorted(set(rows.groups))
    held = {name for name in names if hash_share(name, _HOLDOUT_SALT) < share}
    stops = {name for name in names if name not in held and hash_share(name, _VALIDATION_SALT) < _VALIDATION_SHARE}
    holdout = np.array([group in held for group in rows.groups], dtype=bool)
    validation = np.array([group in stops for group in rows.groups], dtype=bool)
    if holdout.all() or not holdout.any():
        raise DatasetError(
            f"'{recipe.name}': {len(rows)} labelled rows of {len(names)} groups cannot be split in two; "
            "more groups are needed"
        )
    return holdout, validation


def _current(
    recipe: Recipe, rows: Rows, everything: Rows, champion: str | None, judged: NDArray[np.bool_]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Masks over ``rows`` and over ``everything``: what the champion's devices see today.

    When today began is read off the rows that judge nothing: cut where the champion happened to fail on the held-out
    ones, these would speak for any challenger.
    """
    labels = np.array(recipe.file.labels, dtype=object)
    mine, all_mine = rows.devices != IMPORTED, everything.devices != IMPORTED
    if champion is not None and (mine & (rows.packages == champion)).any():
        mine, all_mine = mine & (rows.packages == champion), all_mine & (everything.packages == champion)
    current, today = np.zeros(len(rows), dtype=bool), np.zeros(len(everything), dtype=bool)
    told = mine & ~judged
    if not told.any():
        return current, today
    correct = np.asarray(rows.predictions[told] == labels[rows.targets[told]], dtype=bool)
    together, begun = current_since(
        rows.at_ms[told], correct, rows.devices[told], days=recipe.file.dataset.current_days
    )
    for device in sorted(set(everything.devices[all_mine])):
        since = begun.get(device, together)
        current |= mine & (rows.devices == device) & (rows.at_ms >= since)
        today |= all_mine & (everything.devices == device) & (everything.at_ms >= since)
    return current, today


def _digest(recipe: Recipe, samples: Any, labels: Any) -> str:
    named = {
        "samples": [str(samples.metadata().id), samples.version()],
        "labels": [str(labels.metadata().id), labels.version()],
        "query": {"model": recipe.name, "labels": "newest labelled_at_ms per device and request"},
        "split": {"by": "group", "holdout": recipe.file.dataset.holdout_share, "validation": _VALIDATION_SHARE},
    }
    return hashlib.sha256(msgspec.json.encode(named, order="deterministic")).hexdigest()
