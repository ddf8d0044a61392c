"""The lake's own book of dataset versions: what was read, and which package was trained on it.

It tells a person what a model has learnt from, tells the upkeep which versions of the tables must stay readable, and
finds the data of a model again by the digest in its lineage.
"""

from __future__ import annotations

import datetime as dt
from typing import Any

import msgspec
import pyarrow as pa

from trainer.data.dataset_version import Dataset
from trainer.data.lake import append_table, open_table, read_table

DATASETS = "datasets"
_SCHEMA = pa.schema([
    ("digest", pa.string()), ("content", pa.string()), ("model", pa.string()), ("samples_version", pa.int64()),
    ("labels_version", pa.int64()), ("replay_version", pa.int64()), ("labels_until_ms", pa.int64()),
    ("champion", pa.string()), ("run", pa.string()), ("package", pa.string()), ("version", pa.string()),
    ("summary", pa.string()), ("recorded_at_ms", pa.int64()),
])  # fmt: skip


class DatasetRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A dataset version that a run has read.

    Args:
        digest, content: As :class:`trainer.data.dataset_version.Dataset` has them.
        champion: The package that was to be beaten: with it today's rows are found again.
        package, version: What was released from it; empty where nothing was.
        summary: Counts of its rows.
    """

    digest: str
    content: str
    model: str
    samples_version: int
    labels_version: int
    replay_version: int = -1
    labels_until_ms: int | None = None
    champion: str | None = None
    run: str = ""
    package: str = ""
    version: str = ""
    summary: dict[str, Any] = msgspec.field(default_factory=dict)
    recorded_at_ms: int = 0


def record_dataset(
    lake: str,
    model: str,
    dataset: Dataset,
    *,
    now: dt.datetime,
    run: str = "",
    champion: str | None = None,
    package: str = "",
    version: str = "",
) -> DatasetRecord:
    """Write into the lake's book that a run has read a dataset version, and what came of it.

    Args:
        package, version: Digest and version of what was released; empty where nothing was.
    Raises:
        DatasetError: The lake cannot be written.
    """
    record = DatasetRecord(
        digest=dataset.digest,
        content=dataset.content,
        model=model,
        samples_version=dataset.samples_version,
        labels_version=dataset.labels_version,
        replay_version=dataset.replay_version,
        labels_until_ms=dataset.labels_until_ms,
        champion=champion,
        run=run,
        package=package,
        version=version,
        summary=dataset.summary(),
        recorded_at_ms=int(now.timestamp() * 1000),
    )
    row = msgspec.structs.asdict(record) | {"summary": msgspec.json.encode(record.summary).decode()}
    append_table(lake, DATASETS, pa.Table.from_pylist([row], schema=_SCHEMA))
    return record


def dataset_records(lake: str, model: str | None = None) -> list[DatasetRecord]:
    """All that the book says, the newest first; of one model or of all.

    Raises:
        DatasetError: The lake cannot be read.
    """
    table = open_table(lake, DATASETS, None)
    if table is None:
        return []
    rows = read_table(table, _SCHEMA.names, model).to_pylist()
    found = [
        DatasetRecord(**{**row, "summary": msgspec.json.decode(row["summary"] or "{}"), "champion": row["champion"]})
        for row in rows
    ]
    return sorted(found, key=lambda record: record.recorded_at_ms, reverse=True)


def find_record(lake: str, model: str, digest: str) -> DatasetRecord | None:
    """The newest entry of a dataset version, by the digest in a package's lineage; None where the book has none."""
    return next((record for record in dataset_records(lake, model) if record.digest == digest), None)
