"""CSV files as input: read once into Parquet, every column as text.

Lines of the wrong length are rows set aside, under their own number; the others are counted without them.
"""

from __future__ import annotations

from typing import Any

from edge_agent.contract.batch import CsvInput
from trainer.batch.errors import InputUnreadable
from trainer.batch.inputs.parquet import find_files, new_files, window_of
from trainer.batch.inputs.pinned import Pinned
from trainer.batch.inputs.spool import Spool
from trainer.batch.moments import filled_in
from trainer.batch.storage import Storage
from trainer.data.csv_rows import csv_rows
from trainer.errors import DatasetError


def pin_csv(source: CsvInput, logical_time: str, since: dict[str, Any], folder: Storage) -> Pinned:
    """The rows of the files, those that an earlier batch has read left out where new rows are asked for.

    Args:
        folder: Where they are put down.
    Raises:
        InputUnreadable: A file is not there, or no CSV of that encoding.
    """
    path = filled_in(source.path, logical_time)
    fs, infos = find_files(path, (".csv", ".csv.gz", ".csv.bz2", ".csv.zst", ".tsv", ".txt"))
    chosen, watermark = new_files(source, infos, since)
    spool, complaint = Spool(folder), ""
    for info in chosen:
        bad: list[tuple[int, str]] = []
        rows = csv_rows(
            fs,
            info.path,
            delimiter=source.delimiter,
            encoding=source.encoding,
            missing=source.missing,
            on_bad_line=lambda number, why, into=bad: into.append((number, why)),  # type: ignore[misc]
        )
        try:
            spool.take(rows, info.path)
        except DatasetError as error:
            raise InputUnreadable(str(error)) from error
        spool.take_faults(bad, info.path)
        complaint = complaint or (bad[0][1] if bad else "")
    if complaint and spool.schema is None:
        raise InputUnreadable(f"{path}: no line of it is a row: {complaint}; is `delimiter` right?")
    return Pinned(
        shown=path,
        filesystem=folder.uri,
        pieces=tuple(spool.pieces),
        schema=spool.schema,
        watermark=watermark,
        where=window_of(source, logical_time),
        spool=folder.uri,
    )
