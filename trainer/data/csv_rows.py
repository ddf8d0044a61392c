"""The rows of a CSV file as Arrow batches: every column as text, so that one wrong cell costs one row and no more."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa
from pyarrow import csv

from trainer.errors import DatasetError

_BLOCK_BYTES = 4 << 20


def csv_rows(
    fs: Any,
    path: str,
    *,
    delimiter: str = ",",
    encoding: str = "utf-8",
    missing: Sequence[str] = ("",),
    on_bad_line: Callable[[int, str], None],
) -> Iterator[pa.RecordBatch]:
    """The rows of a file with a header line; ``.gz``, ``.bz2`` and ``.zst`` are unpacked.

    Args:
        fs: An Arrow file system; ``path`` lies within it.
        missing: Cells that stand for a missing value.
        on_bad_line: Told the number of a data row (0 is the first) that has too many or too few cells, and why; it is
            left out of the batches.
    Raises:
        DatasetError: The file is not there, is empty, or is no text of that encoding.
    """

    def bad(row: Any) -> str:
        # The header is line 1; a parser that was given no number cannot tell.
        number = -1 if row.number is None else int(row.number) - 2
        on_bad_line(number, f"the line has {row.actual_columns} cells, the header {row.expected_columns}")
        return "skip"

    reading = csv.ReadOptions(use_threads=False, encoding=encoding, block_size=_BLOCK_BYTES)
    parsing = csv.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=bad)
    try:
        names = _header(fs, path, reading, delimiter)
        converting = csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()),
            null_values=list(missing),
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        )
        with fs.open_input_stream(path) as stream:
            yield from csv.open_csv(stream, reading, parsing, converting)
    except (OSError, pa.ArrowException, UnicodeError) as error:
        raise DatasetError(f"{path}: cannot be read as CSV: {error}") from error


def _header(fs: Any, path: str, reading: csv.ReadOptions, delimiter: str) -> list[str]:
    def skip(_row: Any) -> str:
        return "skip"

    parsing = csv.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=skip)
    with fs.open_input_stream(path) as stream, csv.open_csv(stream, reading, parsing) as reader:
        names: list[str] = reader.schema.names
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DatasetError(f"{path}: the header names columns twice: {', '.join(twice)}")
    return names
