"""A SQLite file of the agent: how it is opened, set aside when damaged, and what its errors mean to a person."""

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

_ALMOST_FULL_BYTES = 1 << 20


class DamagedDatabase(DeviceError):
    """The file is no database any more, or a page of it is spoilt."""


def open_database(path: Path, schema: str, *, synchronous: str) -> tuple[sqlite3.Connection, Path | None]:
    """A database in autocommit mode, for any thread; made if absent, and begun anew where the file is damaged.

    On a disk that is full or broken it is one in memory, which is lost at the end: a device serves its models whatever
    its disk does. :func:`is_in_memory` tells.

    Args:
        schema: Statements that make what is not there yet.
        synchronous: ``FULL``: a commit is on the disk when it returns; ``NORMAL``: a power cut may take the last ones.
    Returns:
        The connection, and where a damaged file was moved to (None in ordinary life).
    Raises:
        StorageNotWritable: This user may not open or make it.
    """
    try:
        try:
            return _open(path, schema, synchronous), None
        except DamagedDatabase as error:
            return begin_anew(path, schema, synchronous=synchronous, error=error)
    except StorageNotWritable:
        raise
    except DeviceError as error:
        return open_in_memory(schema, instead_of=error), None


def open_in_memory(schema: str, *, instead_of: DeviceError) -> sqlite3.Connection:
    """A database that is gone with this process.

    Args:
        instead_of: Why there is none on the disk; said in the log.
    """
    _log.error("%s; until the agent starts again, what would go there is kept in memory", instead_of)
    connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    connection.executescript(schema)
    return connection


def is_in_memory(connection: sqlite3.Connection) -> bool:
    """Whether a database has no file, and will be gone with this process."""
    return not any(file for _, _, file in connection.execute("PRAGMA database_list"))


def begin_anew(path: Path, schema: str, *, synchronous: str, error: DamagedDatabase) -> tuple[sqlite3.Connection, Path]:
    """Set a damaged file aside, not deleted, and make a new one; the old one's connection must be closed.

    Raises:
        StorageFull, StorageNotWritable, DeviceError: It cannot be moved or made.
    """
    aside = path.with_name(f"{path.name}.damaged-{int(time.time())}")
    _log.error("%s; moved to %s, and a new one begun", error, aside.name)
    with storage_errors(path):
        for earlier in path.parent.glob(f"{path.name}.damaged-*"):  # of a dying disk, one is enough to look at
            earlier.unlink()
        path.rename(aside)
        # A log left beside the new file would be played into it.
        for suffix in ("-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
    return _open(path, schema, synchronous), aside


def _open(path: Path, schema: str, synchronous: str) -> sqlite3.Connection:
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # What applications send is their users' data: nobody else on the machine reads it. SQLite gives its journal
        # the same mode.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10.0)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute(f"PRAGMA synchronous={synchronous}")
            connection.execute("PRAGMA journal_size_limit=4194304")
            connection.executescript(schema)
        except sqlite3.Error:
            connection.close()
            raise
    return connection


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All statements of the block, or none of them."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn what SQLite and the system say about ``path`` into errors of ours.

    Raises:
        StorageFull, StorageNotWritable, DamagedDatabase, DeviceError: By the cause.
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
    # In WAL mode a full disk may show otherwise: the log cannot be made, the index in shared memory cannot grow.
    if "is full" in text or (("I/O error" in text or "unable to open" in text) and _is_almost_full(path)):
        return StorageFull(f"{path}: no space left on the device; free some, or point the state folder at another disk")
    if "readonly" in text or "unable to open" in text:
        return StorageNotWritable(f"{path}: not writable by this user; change its owner or mode, or choose another")
    if type(error) is sqlite3.DatabaseError:  # SQLITE_CORRUPT and SQLITE_NOTADB alone have no class of their own
        return DamagedDatabase(f"{path} is damaged ({text})")
    return DeviceError(f"{path}: {text}; check the disk, then restart the agent")


def _is_almost_full(path: Path) -> bool:
    try:
        return shutil.disk_usage(path.parent).free < _ALMOST_FULL_BYTES
    except OSError:
        return False
