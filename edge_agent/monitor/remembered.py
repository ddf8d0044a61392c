"""Requests that may still get a label: all recent ones in memory, the sampled ones on disk too."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edge_agent.monitor.ids import Ids
from edge_agent.monitor.predictions import Predictions, predictions_of
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
        sampled: Whether the row goes home; those on disk do.
    """

    package: str
    prediction: str
    confidence: float
    inclusion_probability: float
    at_ms: int
    expires_ms: int
    sampled: bool = False


@dataclasses.dataclass(slots=True, eq=False)
class AnsweredRows:
    """Rows answered one after the other, kept as columns: few of them are ever asked for again.

    Args:
        class_name: Gives a class's name by its index.
        lifetime_ms: How long after its answer a row takes feedback.
        ids: Each request's id, and when it was answered on a steady clock; a row of several is called ``ID/INDEX``.
        sizes: Each request's number of rows; empty where all have one.
        now: One moment in seconds on that clock, and in Unix time in milliseconds.
        rows: How many there are.
        found: What was said of each; or the probabilities, which are looked at when somebody asks.
        asked: By row: the probability with which a chosen row was asked for a label; the others are absent.
    """

    package: str
    class_name: Callable[[int], str]
    lifetime_ms: int
    ids: Ids
    sizes: list[int]
    now: tuple[float, int]
    rows: int
    found: Predictions | Sequence[NDArray[Any]]
    asked: dict[int, float]
    _places: dict[str, tuple[int, float]] | None = None

    def __len__(self) -> int:
        return self.rows

    def find(self, row_id: str) -> Answered | None:
        """What is remembered of the row; of one id used twice the later one's."""
        if len(self.ids) == len(self) == 1:  # at a slow pace each row comes by itself
            ((request_id, at_s),) = self.ids.timed()
            return self._answered(0, at_s) if row_id == request_id else None
        place = self._by_id().get(row_id)
        return None if place is None else self._answered(*place)

    def chosen(self) -> Iterator[tuple[str, Answered]]:
        """The rows that were chosen, with their ids; none whose id a later one has."""
        if not self.asked:
            return
        if not self.sizes:
            for row, row_id, at_s in self.ids.latest(self.asked):
                yield row_id, self._answered(row, at_s)
            return
        for row_id, place in self._by_id().items():
            if place[0] in self.asked:
                yield row_id, self._answered(*place)

    def _by_id(self) -> dict[str, tuple[int, float]]:
        """By id: which row of these, and when it was answered."""
        if self._places is None:
            places: dict[str, tuple[int, float]] = {}
            first = 0
            sizes = self.sizes or itertools.repeat(1)
            for (request_id, at_s), rows in zip(self.ids.timed(), sizes, strict=False):
                for row in range(rows):
                    places[request_id if rows == 1 else f"{request_id}/{row}"] = first + row, at_s
                first += rows
            self._places = places
        return self._places

    def _answered(self, row: int, at_s: float) -> Answered:
        found = self.found  # another thread may be here too
        if not isinstance(found, Predictions):
            found = self.found = predictions_of(found)
        now_s, now_ms = self.now
        at_ms = now_ms - int((now_s - at_s) * 1000)
        return Answered(
            package=self.package,
            prediction=self.class_name(int(found.best[row])),
            confidence=float(found.confidence[row]),
            inclusion_probability=self.asked.get(row, 0.0),
            at_ms=at_ms,
            expires_ms=at_ms + self.lifetime_ms,
            sampled=row in self.asked,
        )


class Remembered:
    """Answered requests by model and request id; of one id used twice the later request counts.

    Args:
        path: SQLite file; sampled requests in it survive a restart once :meth:`persist` has returned.
        recent: How many rows are kept in memory at least, the unsampled ones too.
        limit: Most requests kept on disk; the oldest go first.
    Raises:
        StorageFull, StorageNotWritable: The file cannot be made.
    """

    def __init__(self, path: Path, *, recent: int = 10_000, limit: int = 100_000) -> None:
        self._path, self._recent_limit, self._limit = path, recent, limit
        self._recent: collections.deque[tuple[str, AnsweredRows]] = collections.deque()
        self._recent_rows = 0
        self._unwritten: dict[tuple[str, str], Answered] = {}
        self._lock = threading.Lock()
        # A lock of its own: the serving path must not wait for the disk.
        self._database_lock = threading.Lock()
        self._database, _ = open_database(path, _SCHEMA, synchronous="NORMAL")

    def add(self, model: str, rows: AnsweredRows) -> None:
        """Remember rows; cheap, writes nothing yet."""
        with self._lock:
            self._recent.append((model, rows))
            self._recent_rows += len(rows)
            while self._recent_rows - len(self._recent[0][1]) >= self._recent_limit:
                self._recent_rows -= len(self._recent.popleft()[1])
            for row_id, answered in rows.chosen():
                self._unwritten[model, row_id] = answered
                if len(self._unwritten) > self._limit:  # the disk has refused for long
                    del self._unwritten[next(iter(self._unwritten))]

    def find(self, model: str, request_id: str, now_ms: int) -> Answered | None:
        """The request, or None where it is unknown or its time for feedback is over.

        Raises:
            DeviceError: The disk cannot be read.
        """
        with self._lock:
            recent = list(self._recent)
            unwritten = self._unwritten.get((model, request_id))
        # Searched without the lock, which the serving path needs.
        each = (rows.find(request_id) for of_model, rows in reversed(recent) if of_model == model)
        found = next((answered for answered in each if answered is not None), unwritten)
        if found is None:
            found = self._read((model, request_id))
        return found if found is not None and found.expires_ms > now_ms else None

    def persist(self, now_ms: int) -> None:
        """Write what is new, and forget what is too old or too much.

        Raises:
            StorageFull, StorageNotWritable, DeviceError: Nothing was written; it will be tried again the next time.
        """
        with self._lock:
            writing = dict(self._unwritten)
        rows = [(*key, *dataclasses.astuple(answered)[:-1]) for key, answered in writing.items()]
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
        return dataclasses.replace(Answered(*row), sampled=True) if row else None

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
