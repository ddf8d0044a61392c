"""The upkeep of the lake: small files merged, old samples dropped, files that nobody may ask for again removed.

What a model was trained on stays. The lake's book (:mod:`trainer.data.records`) says which versions of the tables those
are: their files outlive a vacuum, and rows with a label that such a version had stay in the newest version too.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable, WriterProperties, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError

from edge_agent.contract.lake import IMPORTED, LABELS, LOG_RETENTION, ROW_GROUP_ROWS, SAMPLES
from trainer.data.lake import open_table, unreadable
from trainer.data.records import DATASETS, DatasetRecord, dataset_records
from trainer.data.replay import REPLAY
from trainer.errors import DatasetError, VersionGone

_DAY_MS = 86_400_000
_TABLES = (SAMPLES, LABELS, REPLAY, DATASETS)
_KEYS = ["device", "request_id"]
_TRIES = 3
_WRITER = WriterProperties(max_row_group_size=ROW_GROUP_ROWS, compression="SNAPPY")

Say = Callable[[str], None]


@dataclass
class Tended:
    """What was done, or would be.

    Args:
        dropped: Samples past their time, by day; ``pinned``: those that stayed because a model was trained on them.
        merged: Files that were merged, by table; ``removed``: files that the vacuum removed.
        kept: Versions that stay readable, by table.
    """

    dropped: dict[str, int] = field(default_factory=dict)
    pinned: int = 0
    merged: dict[str, int] = field(default_factory=dict)
    removed: dict[str, int] = field(default_factory=dict)
    kept: dict[str, list[int]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Care:
    """How the lake is tended.

    Args:
        retain_days: Samples of devices that are older go; None keeps all. Imported rows have no age.
        vacuum_days: Files that no version of the last so many days holds go; younger ones may still be read by a run.
        keep_packages: Of each model the data of so many of its newest packages stay readable.
    """

    retain_days: float | None = None
    vacuum_days: float = 7.0
    keep_packages: int = 20

    def __post_init__(self) -> None:
        if (self.retain_days is not None and self.retain_days < 0) or self.vacuum_days < 0 or self.keep_packages < 0:
            raise DatasetError("retain_days, vacuum_days and keep_packages must not be below 0")


def tend(lake: str, care: Care, *, now: dt.datetime, dry_run: bool = False, say: Say = lambda _words: None) -> Tended:
    """Drop, merge and remove, in this order; the server and devices may write meanwhile.

    Args:
        dry_run: Say what would be done, and do nothing.
        say: Told what is being done, in words.
    Raises:
        DatasetError: The lake cannot be read or written.
    """
    done = Tended()
    records = kept_records(lake, care.keep_packages)
    done.kept = kept_versions(records)
    if care.retain_days is not None:
        say(f"dropping samples older than {care.retain_days:g} days")
        _drop(lake, records, int(now.timestamp() * 1000 - care.retain_days * _DAY_MS), done, dry_run=dry_run)
    for name in _TABLES:
        table = open_table(lake, name, None)
        if table is None:
            continue
        try:
            if not dry_run:
                say(f"{name}: merging small files")
                done.merged[name] = merge_small_files(table)
            say(f"{name}: looking for files that no version needs")
            done.removed[name] = _vacuum(table, care, done.kept.get(name, []), dry_run=dry_run)
        except (DeltaError, OSError) as error:
            raise unreadable(table, error) from error
    return done


def merge_small_files(table: DeltaTable) -> int:
    """Merge a table's small files into few with small row groups; older versions stay readable.

    Returns:
        How many files were merged.
    """
    keep_log(table)
    return int(table.optimize.compact(writer_properties=_WRITER)["numFilesRemoved"])


def keep_log(table: DeltaTable) -> None:
    """See that the log of old versions stays: without it a version cannot be read though its files are there."""
    if table.metadata().configuration.get("delta.logRetentionDuration") != LOG_RETENTION:
        table.alter.set_table_properties({"delta.logRetentionDuration": LOG_RETENTION})


def kept_records(lake: str, packages: int) -> list[DatasetRecord]:
    """The book's entries of the newest packages of each model; several of one package count once."""
    newest: dict[str, set[str]] = {}
    kept = []
    for record in dataset_records(lake):
        known = newest.setdefault(record.model, set())
        if record.package and (record.package in known or len(known) < packages):
            known.add(record.package)
            kept.append(record)
    return kept


def kept_versions(records: list[DatasetRecord]) -> dict[str, list[int]]:
    """The versions of each table that those entries name."""
    return {
        SAMPLES: sorted({record.samples_version for record in records}),
        LABELS: sorted({record.labels_version for record in records}),
        REPLAY: sorted({record.replay_version for record in records if record.replay_version >= 0}),
    }


def _vacuum(table: DeltaTable, care: Care, kept: list[int], *, dry_run: bool) -> int:
    versions = [version for version in kept if version <= table.version()]
    removed = table.vacuum(
        retention_hours=int(care.vacuum_days * 24),
        dry_run=dry_run,
        enforce_retention_duration=False,
        keep_versions=versions or None,
    )
    return len(removed)


def _drop(lake: str, records: list[DatasetRecord], before_ms: int, done: Tended, *, dry_run: bool) -> None:
    table = open_table(lake, SAMPLES, None)
    if table is None:
        return
    pinned = _pinned(lake, records)
    try:
        ages = table.to_pyarrow_table(columns=["day"], filters=[("at_ms", "<", before_ms), ("device", "!=", IMPORTED)])
        for day in sorted(set(ages["day"].to_pylist())):
            _drop_day(table, day, before_ms, pinned, done, dry_run=dry_run)
    except (DeltaError, OSError, pa.ArrowException) as error:
        raise unreadable(table, error) from error


def _drop_day(table: DeltaTable, day: str, before_ms: int, pinned: pa.Table, done: Tended, *, dry_run: bool) -> None:
    """Write a day's partition anew without the rows that are too old; others may write to the table meanwhile."""
    for attempt in range(_TRIES):
        table.update_incremental()
        columns = None if not dry_run else [*_KEYS, "at_ms"]
        rows = table.to_pyarrow_table(filters=[("day", "=", day)], columns=columns)
        old = pc.and_(pc.less(rows["at_ms"], before_ms), pc.not_equal(rows["device"], IMPORTED))
        aged = rows.filter(old).append_column("row", pa.array(pc.indices_nonzero(old)))
        gone = aged.select([*_KEYS, "row"]).join(pinned, keys=_KEYS, join_type="left anti")
        if not len(gone):
            done.pinned += len(aged)
            return
        if not dry_run:
            keep = pc.invert(pc.is_in(pa.array(range(len(rows)), pa.uint64()), value_set=gone["row"].combine_chunks()))
            try:
                write_deltalake(
                    table,
                    rows.filter(keep),
                    mode="overwrite",
                    predicate=f"day = '{day}'",
                    partition_by=["day"],
                    writer_properties=_WRITER,
                )
            except CommitFailedError:
                if attempt + 1 == _TRIES:
                    raise
                continue
        done.dropped[day] = len(gone)
        done.pinned += len(aged) - len(gone)
        return


def _pinned(lake: str, records: list[DatasetRecord]) -> pa.Table:
    """Keys of the rows that stay whatever their age: labelled ones of kept dataset versions, and replay slices."""
    keys = []
    for version in sorted({record.labels_version for record in records}):
        models = {record.model for record in records if record.labels_version == version}
        try:
            table = open_table(lake, LABELS, version)
            if table is not None:
                found = table.to_pyarrow_table(columns=[*_KEYS, "model"])
                keys.append(found.filter(pc.is_in(found["model"], pa.array(sorted(models)))).select(_KEYS))
        except (DeltaError, OSError, pa.ArrowException) as error:
            raise VersionGone(
                f"{lake}: the labels of version {version}, which a package was trained on, cannot be read, so "
                f"nothing was dropped: {' '.join(str(error).split())[:200]}; restore the lake, or keep fewer packages"
            ) from error
    replay = open_table(lake, REPLAY, None)
    if replay is not None:
        keys.append(replay.to_pyarrow_table(columns=_KEYS))
    schema = pa.schema([(name, pa.string()) for name in _KEYS])
    found = pa.concat_tables([schema.empty_table(), *[table.cast(schema) for table in keys]])
    return found.group_by(_KEYS).aggregate([])


def as_words(done: Tended, *, dry_run: bool) -> str:
    """What was done, for a person."""
    would = "would be " if dry_run else ""
    days = f" of {len(done.dropped)} days, {done.pinned} kept because a model or a replay slice needs them"
    lines = [f"{sum(done.dropped.values())} samples {would}dropped" + (days if done.dropped or done.pinned else "")]
    for name in done.removed:
        merged = f"{done.merged[name]} files merged, " if name in done.merged else ""
        kept = f"; versions that stay: {', '.join(map(str, done.kept[name]))}" if done.kept.get(name) else ""
        lines.append(f"{name}: {merged}{done.removed[name]} files {would}removed{kept}")
    return "\n".join(lines)
