"""Where the director keeps what it signed: one SQLite file, a device's three documents in one row, a batch per sync.

Three files per device, each synced with its folder, cost more than signing them: 130 devices a second.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from edge_agent.contract.errors import ConfigurationError, DeviceError, StorageFull, StorageNotWritable

KEPT_VERSIONS = 3  # devices may be reading the one before
_SCHEMA = """
CREATE TABLE IF NOT EXISTS devices (
    device TEXT PRIMARY KEY, version INTEGER NOT NULL, expires_s INTEGER NOT NULL, keyid TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS devices_by_expiry ON devices (expires_s);
CREATE TABLE IF NOT EXISTS signed (
    device TEXT NOT NULL, version INTEGER NOT NULL, targets BLOB, snapshot BLOB, timestamp BLOB,
    PRIMARY KEY (device, version)
);
"""


class Signed(NamedTuple):
    """One version of a device's metadata, visible as a whole or not at all.

    Args:
        keyid: The key that signed it; ``expires_s``: Unix time of the document that expires first.
    """

    device: str
    version: int
    expires_s: int
    keyid: str
    targets: bytes
    snapshot: bytes
    timestamp: bytes


class DirectorStore:
    """The file ``director.db``. Safe from any thread; readers do not wait for the writer.

    Args:
        path: Made where it is missing.
    Raises:
        ConfigurationError: The file is damaged.
        StorageFull, StorageNotWritable: The disk refuses.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._errors():
            self._writer, self._reader = self._open(), self._open()
            self._writer.executescript(_SCHEMA)
        self._writing, self._reading = threading.RLock(), threading.Lock()

    def close(self) -> None:
        """Let go of the file; nothing may follow."""
        with self._writing, self._reading:
            self._writer.close()
            self._reader.close()

    def put(self, rows: Sequence[Signed]) -> None:
        """Make these versions the newest of their devices; durable when it returns, all of them or none.

        Raises:
            ConfigurationError, StorageFull, StorageNotWritable: As the constructor.
        """
        with self._errors(), self._writing, self._writer:
            self._writer.execute("BEGIN IMMEDIATE")
            self._writer.executemany(
                "INSERT OR REPLACE INTO signed (device, version, targets, snapshot, timestamp) VALUES (?, ?, ?, ?, ?)",
                [(row.device, row.version, row.targets, row.snapshot, row.timestamp) for row in rows],
            )
            self._writer.executemany(
                "INSERT OR REPLACE INTO devices (device, version, expires_s, keyid) VALUES (?, ?, ?, ?)",
                [(row.device, row.version, row.expires_s, row.keyid) for row in rows],
            )
            self._writer.executemany(
                "DELETE FROM signed WHERE device = ? AND version <= ?",
                [(row.device, row.version - KEPT_VERSIONS) for row in rows],
            )

    def newest(self, device: str) -> tuple[int, bytes | None] | None:
        """The newest version of a device and its targets document; None where there is none."""
        found = self._one(
            "SELECT d.version, s.targets FROM devices d LEFT JOIN signed s ON s.device = d.device "
            "AND s.version = d.version WHERE d.device = ?",
            (device,),
        )
        return (found[0], found[1]) if found is not None else None

    def timestamp(self, device: str) -> tuple[bytes, str] | None:
        """The newest timestamp document of a device, and the key that signed it."""
        found = self._one(
            "SELECT s.timestamp, d.keyid FROM devices d JOIN signed s ON s.device = d.device AND s.version = d.version "
            "WHERE d.device = ?",
            (device,),
        )
        return (found[0], found[1]) if found is not None else None

    def document(self, device: str, version: int, role: str) -> bytes | None:
        """The ``snapshot`` or ``targets`` document of a version that is still kept."""
        column = {"snapshot": "snapshot", "targets": "targets"}[role]
        query = f"SELECT {column} FROM signed WHERE device = ? AND version = ?"  # noqa: S608  one of two names
        found = self._one(query, (device, version))
        return found[0] if found is not None else None

    def devices(self) -> list[str]:
        """All devices, by name."""
        return [row[0] for row in self._all("SELECT device FROM devices ORDER BY device", ())]

    def due(self, before_s: float, keyid: str) -> list[str]:
        """Devices whose documents expire before a time, or are signed by another key than this."""
        query = "SELECT device FROM devices WHERE expires_s < ? OR keyid <> ? ORDER BY expires_s, device"
        return [row[0] for row in self._all(query, (before_s, keyid))]

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=30.0, isolation_level=None, check_same_thread=False)
        weakref.finalize(self, connection.close)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")  # what a device was told must not be forgotten
        return connection

    def _one(self, query: str, values: tuple[object, ...]) -> Any:
        found = self._all(query, values)
        return found[0] if found else None

    def _all(self, query: str, values: tuple[object, ...]) -> list[Any]:
        with self._errors(), self._reading:
            return self._reader.execute(query, values).fetchall()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            text = f"{self._path}: {error}"
            if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_FULL:
                raise StorageFull(text) from error
            if error.sqlite_errorcode & 0xFF in {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN}:
                raise StorageNotWritable(text) from error
            raise DeviceError(text) from error
        except sqlite3.DatabaseError as error:
            raise ConfigurationError(f"{self._path} is damaged ({error}); restore it from a backup") from error
