"""A copy of an SQLite database beside it, whole after a crash and taken while the database is open."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path

import sqlalchemy as sa

from edge_agent.contract.errors import ConfigurationError, StorageFull, storage_error
from edge_agent.durable import sync_folder


def copy_sqlite(connection: sa.Connection, revision: str) -> Path | None:
    """Keep the file as it is now as ``NAME.before-REVISION``; an older one of that name is replaced.

    Args:
        connection: In a transaction that keeps writers out and has not written.
    Returns:
        The copy, mode 0600; None of a database in memory.
    Raises:
        StorageFull, StorageNotWritable: The disk refuses; no half copy stays.
        ConfigurationError: The file cannot be read.
    """
    (file,) = (row.file for row in connection.exec_driver_sql("PRAGMA database_list") if row.name == "main")
    if not file:
        return None
    source = Path(file)
    copy = source.with_name(f"{source.name}.before-{revision}")
    beside = copy.with_name(f".{copy.name}.new")
    try:
        _write(source, beside)
        beside.replace(copy)
        sync_folder(copy.parent)
    except (OSError, sqlite3.Error) as error:
        beside.unlink(missing_ok=True)
        ours = storage_error(error, str(copy)) if isinstance(error, OSError) else _sqlite_error(error, copy)
        raise ours or error from error
    return copy


def _write(source: Path, copy: Path) -> None:
    # SQLite's own backup: it also takes what is still in the write-ahead log, and leaves alone the locks that a plain
    # open and close of the file in this process would take away (sqlite.org/howtocorrupt.html, 2.2).
    os.close(os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600))
    with (
        contextlib.closing(sqlite3.connect(f"{source.as_uri()}?mode=ro", uri=True)) as reader,
        contextlib.closing(sqlite3.connect(copy)) as writer,
    ):
        reader.backup(writer)
    descriptor = os.open(copy, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sqlite_error(error: sqlite3.Error, copy: Path) -> StorageFull | ConfigurationError:
    if "full" in str(error):
        return StorageFull(f"{copy}: no space left on the device for the copy before an upgrade; free some")
    return ConfigurationError(f"{copy}: the copy before an upgrade could not be made: {error}")
