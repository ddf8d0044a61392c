"""Reads a dataset version: samples joined with labels, each table at a version of its own, split so that nothing leaks.

What a version holds is a function of the table versions, the model's name, the moment up to which labels are known and
the split rule alone; their digest is its name, and goes into the lineage of what is trained on it.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from deltalake import DeltaTable
from numpy.typing import NDArray

from edge_agent.contract.lake import IMPORTED, LABELS, SAMPLES
from trainer.data.content import content_digest
from trainer.data.dataset_version import Dataset
from trainer.data.joining import LABEL_COLUMNS, SAMPLE_COLUMNS, Joined, join
from trainer.data.lake import needed_table, read_table
from trainer.data.lake_scan import LakeScan
from trainer.data.loading import Loaded, estimated_bytes, in_memory, on_disk
from trainer.data.recency import current_since
from trainer.data.refusals import refuse_bad, refuse_one_sided, refuse_unlabelled
from trainer.data.replay import KeptRows, kept_rows, replay_masks
from trainer.data.row_file import bytes_of, shapes_of
from trainer.data.row_store import hash_order
from trainer.data.rows import Rows, StoredInputs
from trainer.data.split import Sides, SplitRule, split
from trainer.recipe import Recipe

__all__ = ["Dataset", "default_cache", "read_dataset"]


@dataclass(frozen=True, kw_only=True)
class _Reading:
    """What a dataset is read from."""

    recipe: Recipe
    lake: str
    samples: DeltaTable
    labels: DeltaTable
    scan: LakeScan
    found: Joined
    kept: KeptRows
    rule: SplitRule
    champion: str | None
    labels_until_ms: int | None
    cache: Path


def read_dataset(
    recipe: Recipe,
    lake: str,
    *,
    samples_version: int | None = None,
    labels_version: int | None = None,
    labels_until_ms: int | None = None,
    replay_version: int | None = None,
    champion: str | None = None,
    cache: Path | None = None,
) -> Dataset:
    """The dataset of a model at a version of the lake (None: the newest).

    Args:
        labels_until_ms: Labels given later than this, milliseconds since the epoch, are not known; None: all are.
        replay_version: Delta version of the table of replay slices; -1: before there was one.
        champion: Digest of the package that is to be beaten: its rows are those that may be of today's world.
        cache: Folder for inputs that need more memory than the recipe allows; that of the user unless given.
    Raises:
        DatasetError: There are no samples or labels, one class only, or a row is not what the signature says.
        VersionGone: The version was vacuumed.
    """
    samples = needed_table(recipe, lake, SAMPLES, samples_version)
    labels = needed_table(recipe, lake, LABELS, labels_version)
    scan, table = LakeScan(samples, recipe.name), recipe.file.dataset
    known = read_table(labels, LABEL_COLUMNS, recipe.name)
    found = join(recipe, scan.columns(SAMPLE_COLUMNS), known, until_ms=labels_until_ms)
    refuse_unlabelled(recipe, lake, found, labels_until_ms)
    reading = _Reading(
        recipe=recipe,
        lake=lake,
        samples=samples,
        labels=labels,
        scan=scan,
        found=found,
        kept=kept_rows(lake, recipe.name, replay_version),
        rule=SplitRule(
            by=table.split,
            holdout_share=table.holdout_share,
            judged_rows=table.judged_rows,
            drop_copies=table.duplicates == "drop",
        ),
        champion=champion,
        labels_until_ms=labels_until_ms,
        cache=cache or default_cache(),
    )
    if estimated_bytes(scan, found.places) <= table.memory_mib * 2**20:
        return _read_small(reading)
    return _read_large(reading)


def default_cache() -> Path:
    """Where rows lie that need more memory than they may take, unless another folder is named."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shoal" / "rows"


def _read_small(reading: _Reading) -> Dataset:
    """Everything in memory."""
    found = reading.found
    decoded = in_memory(reading.scan, reading.recipe.signature, found.places)
    refuse_bad(reading.recipe, reading.lake, found.rows, decoded)
    everything = replace(found.rows.take(decoded.fits), inputs=decoded.inputs, sent=decoded.sent)
    asked, with_label = found.asked[decoded.fits], everything.targets >= 0
    rows = replace(everything.take(with_label), probability=asked[with_label])
    digests = [decoded.digests[at] for at in np.flatnonzero(with_label)]
    made = _divide(reading, rows, everything, digests, bytes_of(shapes_of(decoded.inputs)))
    return _dataset(
        reading,
        made,
        rows=rows,
        recent=everything.take(made.today),
        unseen=_unseen(with_label, made.sides)[made.today],
        set_aside=int((~decoded.fits).sum()),
        complaint=decoded.complaint,
    )


def _read_large(reading: _Reading) -> Dataset:
    """Labelled inputs on disk; of today's samples as many in memory as may be judged."""
    found, signature = reading.found, reading.recipe.signature
    labelled = np.flatnonzero(found.rows.targets >= 0)
    with on_disk(reading.scan, signature, found.places[labelled], reading.cache) as loaded:
        refuse_bad(reading.recipe, reading.lake, found.rows.take(labelled), loaded)
        kept = np.ones(len(found.rows), dtype=bool)
        kept[labelled[~loaded.fits]] = False
        everything, asked, places = found.rows.take(kept), found.asked[kept], found.places[kept]
        with_label = everything.targets >= 0
        rows = replace(everything.take(with_label), probability=asked[with_label])
        made = _divide(reading, rows, everything, loaded.digests, bytes_of(loaded.tensors))
        rows = _stored(reading, rows, made.content, loaded)
    wanted = _drawn(everything, made.today, made.judged_rows)
    recent, fits, complaint = _with_inputs(reading, everything, wanted, rows, places)
    return _dataset(
        reading,
        made,
        rows=rows,
        recent=recent,
        unseen=_unseen(with_label, made.sides)[wanted][fits],
        set_aside=int((~loaded.fits).sum() + (~fits).sum()),
        complaint=loaded.complaint or complaint,
    )


def _stored(reading: _Reading, rows: Rows, content: str, loaded: Loaded) -> Rows:
    named = hashlib.sha256(f"{content} {_signature_digest(reading.recipe)}".encode()).hexdigest()[:40]
    store = loaded.store(reading.cache / named, rows.keys, rows.targets)
    places = store.places()
    return replace(rows, inputs=StoredInputs(store, places), sent=StoredInputs(store, places, sent=True))


def _drawn(rows: Rows, mask: NDArray[np.bool_], most: int) -> NDArray[np.int64]:
    """Numbers of the masked rows, at most so many, drawn by the hash of their keys."""
    chosen = np.flatnonzero(mask)
    if len(chosen) <= most:
        return chosen
    return np.sort(chosen[hash_order(rows.take(chosen).keys)[:most]])


def _with_inputs(
    reading: _Reading, everything: Rows, wanted: NDArray[np.int64], rows: Rows, places: NDArray[np.int64]
) -> tuple[Rows, NDArray[np.bool_], str]:
    """Rows with their inputs in memory: those without a label from the lake; what does not fit is left out."""
    with_label = everything.targets >= 0
    number = np.cumsum(with_label) - 1  # among the labelled rows
    known = with_label[wanted]
    stored = rows.take(number[wanted[known]])
    shapes = {name: array.shape[1:] for name, array in stored.inputs.items()}
    fresh = in_memory(reading.scan, reading.recipe.signature, places[wanted[~known]], shapes=shapes)
    fits = known.copy()
    fits[~known] = fresh.fits
    order = np.argsort(np.concatenate([np.flatnonzero(known), np.flatnonzero(~known)[fresh.fits]]))

    def both(old: Any, new: Any) -> dict[str, NDArray[Any]]:
        if not fresh.digests:  # where an axis is open, no rows have no shape
            return dict(old)
        return {name: np.concatenate([old[name], new[name]])[order] for name in old}

    found = replace(
        everything.take(wanted[fits]), inputs=both(stored.inputs, fresh.inputs), sent=both(stored.sent, fresh.sent)
    )
    return found, fits, fresh.complaint


@dataclass(frozen=True)
class _Divided:
    """How rows are divided; masks over the labelled rows but for ``today``, which is over all."""

    sides: Sides
    content: str
    replay: dict[str, NDArray[np.bool_]]
    current: NDArray[np.bool_]
    today: NDArray[np.bool_]
    judged_rows: int


def _divide(reading: _Reading, rows: Rows, everything: Rows, digests: list[bytes], row_bytes: int) -> _Divided:
    recipe, imported = reading.recipe, np.asarray(rows.devices == IMPORTED)
    replay = replay_masks(recipe, rows, reading.kept)
    # Who judges lies in memory.
    fit = int(recipe.file.dataset.memory_mib * 2**20 / max(1, row_bytes))
    rule = replace(reading.rule, judged_rows=max(1, min(reading.rule.judged_rows, fit)))
    sides = split(
        rule,
        groups=rows.groups,
        devices=rows.devices,
        at_ms=rows.at_ms,
        imported=imported,
        replayed=np.logical_or.reduce([np.zeros(len(rows), dtype=bool), *replay.values()]),
        inputs=digests,
    )
    refuse_one_sided(recipe, rows, sides)
    current, today = _current(recipe, rows, everything, reading.champion, sides.holdout)
    content = content_digest(recipe.file.labels, rows, digests, sides, replay)
    return _Divided(sides, content, replay, current, today, rule.judged_rows)


def _dataset(reading: _Reading, made: _Divided, *, rows: Rows, **rest: Any) -> Dataset:
    return Dataset(
        digest=_digest(reading),
        content=made.content,
        signature=_signature_digest(reading.recipe),
        samples_version=reading.samples.version(),
        labels_version=reading.labels.version(),
        labels_until_ms=reading.labels_until_ms,
        rows=rows,
        holdout=made.sides.holdout,
        validation=made.sides.validation,
        idle=made.sides.idle,
        copies=made.sides.copies,
        replay=made.replay,
        replay_version=reading.kept.version,
        current=made.current,
        unmatched=reading.found.unmatched,
        **rest,
    )


def _unseen(with_label: NDArray[np.bool_], sides: Sides) -> NDArray[np.bool_]:
    """Which of all rows are not trained on."""
    unseen = ~with_label
    unseen[np.flatnonzero(with_label)[sides.holdout | sides.idle]] = True
    return unseen


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


def _digest(reading: _Reading) -> str:
    named = {
        "samples": [str(reading.samples.metadata().id), reading.samples.version()],
        "labels": [str(reading.labels.metadata().id), reading.labels.version()],
        "query": {
            "model": reading.recipe.name,
            "labels": "newest labelled_at_ms per device and request",
            "until_ms": reading.labels_until_ms,
        },
        "replay": reading.kept.version,
        "split": reading.rule.as_json() | {"memory_mib": reading.recipe.file.dataset.memory_mib},
    }
    return hashlib.sha256(msgspec.json.encode(named, order="deterministic")).hexdigest()


def _signature_digest(recipe: Recipe) -> str:
    return hashlib.sha256(msgspec.json.encode(recipe.signature, order="deterministic")).hexdigest()
