"""Requests that may still get a label: all recent ones in memory, the sampled ones on disk too."""

from __future__ import annotations

import collections
import dataclasses
import sqlite3
import threading
from pathlib import Path

from edge_agent.contract.errors import DeviceError, StorageFull, StorageNotWritable

_SCHEMA = """
CREATE TABLE IF NOT EXISTS requests (
    model TEXT NOT NULL,
    request_id TEXT NOT NULL,
    package TEXT NOT NULL,
    prediction TEXT NOT NULL,
    confidence REAL NOT NULL,
    inclusion_probability REAL NOT NULL,
    at_ms INTEGER NOT NULL,
    expires_ms INTEGER NOT NULL,
    PRIMARY KEY (model, request_id)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS requests_by_expiry ON requests (expires_ms);
"""


@dataclasses.dataclass(frozen=True)
class Answered:
    """What a label needs to know of the request that it is for.

    Args:
        inclusion_probability: Of having been asked for a label; 0 where it was not asked.
    """

    package: str
    prediction: str
    confidence: float
    inclusion_probability: float
    at_ms: int
    expires_ms: int


class Remembered:
    """Answered requests by model and request id; of one id used twice the later request counts.

    Args:
        path: SQLite file; sampled requests in it survive a restart once :meth:`persist` has returned.
        recent: Most requests kept in memory, the unsampled ones too.
        limit: Most requests kept on disk; the oldest go first.
    Raises:
        StorageFull, StorageNotWritable: The file cannot be made.
    """

    def __init__(self, path: Path, *, recent: int = 10_000, limit: int = 100_000) -> None:
        self._path, self._recent_limit, self._limit = path, recent, limit
        self._recent: collections.OrderedDict[tuple[str, str], Answered] = collections.OrderedDict()
        self._unwritten: dict[tuple[str, str], Answered] = {}
        self._lock = threading.Lock()
        try:
            self._database = self._open()
        except sqlite3.OperationalError as error:
            raise self._storage_error(error) from error
        except sqlite3.DatabaseError:
            # Not a database any more (a worn-out card): what it remembered is lost, the device is not.
            path.replace(path.with_name(f"{path.name}.damaged"))
            self._database = self._open()

    def add(self, model: str, request_id: str, answered: Answered, *, sampled: bool) -> None:
        """Remember a request; cheap, writes nothing yet."""
        key = (model, request_id)
        with self._lock:
            self._recent[key] = answered
            self._recent.move_to_end(key)
            if len(self._recent) > self._recent_limit:
                self._recent.popitem(last=False)
            if sampled:
                self._unwritten[key] = answered
            else:
                self._unwritten.pop(key, None)

    def find(self, model: str, request_id: str, now_ms: int) -> Answered | None:
        """The request, or None where it is unknown or its time for feedback is over."""
        key = (model, request_id)
        with self._lock:
            found = self._recent.get(key) or self._unwritten.get(key)
            if found is None:
                row = self._database.execute(
                    "SELECT package, prediction, confidence, inclusion_probability, at_ms, expires_ms"
                    " FROM requests WHERE model = ? AND request_id = ?",
                    key,
                ).fetchone()
                found = Answered(*row) if row else None
        return found if found is not None and found.expires_ms > now_ms else None

    def persist(self, now_ms: int) -> None:
        """Write what is new, and forget what is too old or too much.

        Raises:
            StorageFull, StorageNotWritable: Nothing was written; it will be tried again the next time.
        """
        with self._lock:
            rows = [(*key, *dataclasses.astuple(answered)) for key, answered in self._unwritten.items()]
            try:
                with self._database:
                    self._database.executemany("INSERT OR REPLACE INTO requests VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
                    self._database.execute("DELETE FROM requests WHERE expires_ms <= ?", (now_ms,))
                    self._trim()
            except sqlite3.OperationalError as error:
                raise self._storage_error(error) from error
            self._unwritten.clear()

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._database.close()

    def _trim(self) -> None:
        (count,) = self._database.execute("SELECT count(*) FROM requests").fetchone()
        if count > self._limit:
            self._database.execute(
                "DELETE FROM requests WHERE (model, request_id) IN"
                " (SELECT model, request_id FROM requests ORDER BY expires_ms LIMIT ?)",
                (count - self._limit,),
            )

    def _open(self) -> sqlite3.Connection:
        database = sqlite3.connect(self._path, check_same_thread=False, timeout=10.0)
        try:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")
            database.executescript(_SCHEMA)
        except sqlite3.Error:
            database.close()
            raise
        return database

    def _storage_error(self, error: sqlite3.OperationalError) -> DeviceError:
        if "full" in str(error):  # SQLITE_FULL; Python 3.10 has no error codes on its exceptions
            return StorageFull(f"{self._path}: no space left on the device; free some")
        return StorageNotWritable(f"{self._path}: {error}; make it writable by this user")
