"""Parquet files as input: a file, a folder or a glob, on the local disk or in an object store."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from edge_agent.contract.batch import CsvInput, ParquetInput, RowChoice
from trainer.batch.errors import InputUnreadable
from trainer.batch.inputs.pinned import Pinned
from trainer.batch.moments import Window, filled_in, window_before
from trainer.batch.plan import Piece
from trainer.batch.storage import locate

_FILES = "files"


def pin_parquet(source: ParquetInput, logical_time: str, since: dict[str, Any]) -> Pinned:
    """The files of an input, those that an earlier batch has read left out where new rows are asked for.

    Args:
        since: The watermark of the last batch.
    Raises:
        InputUnreadable: There is no such file, one is no Parquet file, or their columns differ.
    """
    path = filled_in(source.path, logical_time)
    fs, infos = find_files(path, (".parquet", ".parq", ".pq"))
    chosen, watermark = new_files(source, infos, since)
    pieces, schema = [], None
    for info in chosen:
        piece, found = read_footer(fs, info)
        schema = found if schema is None else joined(schema, found, piece.shown)
        pieces.append(piece)
    return Pinned(
        shown=path,
        filesystem=path,
        pieces=tuple(pieces),
        schema=schema,
        watermark=watermark,
        where=window_of(source, logical_time),
    )


def find_files(path: str, suffixes: tuple[str, ...]) -> tuple[Any, list[Any]]:
    """The files of a path, in order of their names: itself, those within the folder, or those that match the glob.

    Raises:
        InputUnreadable: There are none.
    """
    fs, root = locate(path)
    try:
        if any(sign in root for sign in "*?["):
            base = root[: min(root.index(sign) for sign in "*?[" if sign in root)].rpartition("/")[0] or "/"
            selector = pafs.FileSelector(base, recursive=True, allow_not_found=True)
            found = [info for info in fs.get_file_info(selector) if fnmatch.fnmatch(info.path, root)]
        else:
            info = fs.get_file_info(root)
            selector = pafs.FileSelector(root, recursive=True, allow_not_found=True)
            is_folder = info.type == pafs.FileType.Directory
            found = (
                [one for one in fs.get_file_info(selector) if _is_data(one, root, suffixes)] if is_folder else [info]
            )
    except OSError as error:
        raise InputUnreadable(f"{path}: cannot be read: {error}", retry=True) from error
    files = sorted((info for info in found if info.type == pafs.FileType.File), key=lambda info: info.path)
    if not files:
        raise InputUnreadable(f"{path}: there is no such file; give a file, a folder of *{suffixes[0]}, or a glob")
    return fs, files


def new_files(
    source: ParquetInput | CsvInput, infos: Sequence[Any], since: dict[str, Any]
) -> tuple[list[Any], dict[str, Any]]:
    """Files that no earlier batch has read, and the watermark that says so of all.

    A file that was written again counts as new: by its size and its time.
    """
    marks = {info.path: [info.size, info.mtime_ns or 0] for info in infos}
    watermark = {_FILES: {**since.get(_FILES, {}), **marks}}
    if source.rows is not RowChoice.NEW:
        return list(infos), watermark
    known = since.get(_FILES, {})
    return [info for info in infos if known.get(info.path) != marks[info.path]], watermark


def read_footer(fs: Any, info: Any) -> tuple[Piece, pa.Schema]:
    """A file's row groups and columns.

    Raises:
        InputUnreadable: It is no Parquet file.
    """
    try:
        with pq.ParquetFile(fs.open_input_file(info.path)) as file:
            metadata = file.metadata
            groups = tuple(metadata.row_group(at).num_rows for at in range(metadata.num_row_groups))
            return Piece(path=info.path, shown=info.path, groups=groups, size_bytes=info.size), file.schema_arrow
    except (OSError, pa.ArrowException) as error:
        raise InputUnreadable(f"{info.path}: is no Parquet file: {error}") from error


def joined(schema: pa.Schema, found: pa.Schema, shown: str) -> pa.Schema:
    """The columns of both.

    Raises:
        InputUnreadable: A column has another type than in the files before.
    """
    try:
        return pa.unify_schemas([schema.remove_metadata(), found.remove_metadata()], promote_options="permissive")
    except pa.ArrowException as error:
        raise InputUnreadable(f"{shown}: its columns differ from those of the files before it: {error}") from error


def window_of(source: Any, logical_time: str) -> Window | None:
    """The window that an input of ``rows = "window"`` is about."""
    if source.rows is not RowChoice.WINDOW:
        return None
    return window_before(logical_time, source.time, source.window_s)


def _is_data(info: Any, root: str, suffixes: tuple[str, ...]) -> bool:
    inner = info.path[len(root) :].strip("/").split("/")
    return info.path.endswith(suffixes) and not any(name.startswith(("_", ".")) for name in inner)
