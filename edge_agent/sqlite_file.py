"""The outbox's SQLite file: how it is opened, and what its errors mean to a person."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

from edge_agent.contract.errors import DeviceError, StorageFull, StorageNotWritable, storage_error

_log = logging.getLogger(__name__)

# ``streams.last`` outlives the messages: a sequence is never given twice, though all of them may be acknowledged.
_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS streams (
    stream TEXT PRIMARY KEY, last INTEGER NOT NULL, unreported INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS messages (
    stream TEXT NOT NULL, sequence INTEGER NOT NULL, made_at_ms INTEGER NOT NULL,
    size_bytes INTEGER NOT NULL, body BLOB NOT NULL,
    PRIMARY KEY (stream, sequence)
);
"""
_ALMOST_FULL_BYTES = 1 << 20


def open_database(path: Path) -> tuple[sqlite3.Connection, Path | None]:
    """The outbox's database, made if absent; a file that is no database any more is set aside, not deleted.

    Returns:
        The connection, and where a damaged file was moved to (None in ordinary life).
    Raises:
        StorageFull, StorageNotWritable: It cannot be opened or made.
    """
    with storage_errors(path):
        try:
            return _open(path), None
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise
            aside = path.with_name(f"{path.name}.damaged-{int(time.time())}")
            _log.error("%s is damaged (%s); moved to %s, and a new one begun", path, error, aside.name)
            path.rename(aside)
            for suffix in ("-wal", "-shm"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
            return _open(path), aside


def _open(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Samples are the users' data: nobody else on the machine reads them. SQLite gives the journal the same mode.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10.0)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")  # a commit in WAL mode is on the disk only with FULL
        connection.execute("PRAGMA journal_size_limit=4194304")
        connection.executescript(_SCHEMA)
    except sqlite3.Error:
        connection.close()
        raise
    return connection


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn what SQLite and the system say about ``path`` into errors of ours.

    Raises:
        StorageFull, StorageNotWritable, DeviceError: By the cause.
    """
    try:
        yield
    except OSError as error:
        raise storage_error(error, str(path)) or DeviceError(f"{path}: {error}") from error
    except sqlite3.DatabaseError as error:
        raise _device_error(error, path) from error


def _device_error(error: sqlite3.DatabaseError, path: Path) -> DeviceError:
    # By text: Python 3.10 does not carry SQLite's result code.
    text = str(error)
    # In WAL mode a full disk may show as an I/O error: the index in shared memory cannot grow.
    if "is full" in text or ("disk I/O error" in text and _is_almost_full(path)):
        return StorageFull(f"{path}: no space left on the device; free some, or point the state folder at another disk")
    if "readonly" in text or "unable to open" in text:
        return StorageNotWritable(f"{path}: not writable by this user; change its owner or mode, or choose another")
    return DeviceError(f"{path}: {text}; check the disk, then restart the agent")


def _is_almost_full(path: Path) -> bool:
    try:
        return shutil.disk_usage(path.parent).free < _ALMOST_FULL_BYTES
    except OSError:
        return False
