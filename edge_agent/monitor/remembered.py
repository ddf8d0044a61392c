"""Requests that may still get a label: all recent ones in memory, the sampled ones on disk too."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path

from edge_agent.sqlite_file import DamagedDatabase, begin_anew, open_database, storage_errors, transaction

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
        # A lock of its own: the serving path must not wait for the disk.
        self._database_lock = threading.Lock()
        self._database, _ = open_database(path, _SCHEMA, synchronous="NORMAL")

    def add(self, model: str, request_id: str, answered: Answered, *, sampled: bool) -> None:
        """Remember a request; cheap, writes nothing yet."""
        key = (model, request_id)
        with self._lock:
            self._recent[key] = answered
            self._recent.move_to_end(key)
            if len(self._recent) > self._recent_limit:
                self._recent.popitem(last=False)
            self._unwritten.pop(key, None)
            if sampled:
                self._unwritten[key] = answered
                if len(self._unwritten) > self._limit:  # the disk has refused for long
                    del self._unwritten[next(iter(self._unwritten))]

    def find(self, model: str, request_id: str, now_ms: int) -> Answered | None:
        """The request, or None where it is unknown or its time for feedback is over.

        Raises:
            DeviceError: The disk cannot be read.
        """
        key = (model, request_id)
        with self._lock:
            found = self._recent.get(key) or self._unwritten.get(key)
        if found is None:
            found = self._read(key)
        return found if found is not None and found.expires_ms > now_ms else None

    def persist(self, now_ms: int) -> None:
        """Write what is new, and forget what is too old or too much.

        Raises:
            StorageFull, StorageNotWritable, DeviceError: Nothing was written; it will be tried again the next time.
        """
        with self._lock:
            writing = dict(self._unwritten)
        rows = [(*key, *dataclasses.astuple(answered)) for key, answered in writing.items()]
        with self._database_lock, self._mended(), transaction(self._database):
            self._database.executemany("INSERT OR REPLACE INTO requests VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
            self._database.execute("DELETE FROM requests WHERE expires_ms <= ?", (now_ms,))
            self._trim()
        with self._lock:
            for key, answered in writing.items():
                if self._unwritten.get(key) is answered:  # else it was used again meanwhile
                    del self._unwritten[key]

    def close(self) -> None:
        """Close the file."""
        with self._database_lock:
            self._database.close()

    def _read(self, key: tuple[str, str]) -> Answered | None:
        with self._database_lock, self._mended():
            row = self._database.execute(
                "SELECT package, prediction, confidence, inclusion_probability, at_ms, expires_ms"
                " FROM requests WHERE model = ? AND request_id = ?",
                key,
            ).fetchone()
        return Answered(*row) if row else None

    @contextlib.contextmanager
    def _mended(self) -> Iterator[None]:
        """Errors as ours; a damaged file (a worn-out card) is replaced, for what it remembered is lost anyway."""
        try:
            with storage_errors(self._path):
                yield
        except DamagedDatabase as error:
            self._database.close()
            self._database, _ = begin_anew(self._path, _SCHEMA, synchronous="NORMAL", error=error)
            raise

    def _trim(self) -> None:
        (count,) = self._database.execute("SELECT count(*) FROM requests").fetchone()
        if count > self._limit:
            self._database.execute(
                "DELETE FROM requests WHERE (model, request_id) IN"
                " (SELECT model, request_id FROM requests ORDER BY expires_ms LIMIT ?)",
                (count - self._limit,),
            )
