"""Numbered messages that wait on the disk until the server has committed them.

Each stream is numbered from 1. ``append`` returns once its message is on the disk. ``pending`` gives messages to send,
as often as asked; ``acknowledge`` forgets what the server has. At its limit the outbox drops the least important stream
first (the order of :class:`Stream`), the oldest first within it, and says so in an event.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from edge_agent.contract.envelope import MAX_PAYLOAD_BYTES, Envelope, Message, encode
from edge_agent.contract.errors import DeviceError, MessageError, StorageFull
from edge_agent.contract.messages import Ack, Event, EventKind
from edge_agent.contract.topics import Stream
from edge_agent.sqlite_file import (
    DamagedDatabase,
    begin_anew,
    is_in_memory,
    open_database,
    open_in_memory,
    storage_errors,
    transaction,
)

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
# Two names of 63 letters, an epoch, the numbers and the field names take less than this.
ENVELOPE_BYTES = 512
MAX_BODY_BYTES = MAX_PAYLOAD_BYTES - ENVELOPE_BYTES
DEFAULT_LIMIT_BYTES = 256 * 1024 * 1024
_MEMORY_LIMIT_BYTES = 16 * 1024 * 1024  # where the disk refuses
_ROW_BYTES = 64  # what SQLite keeps beside a body: its key in table and index


@dataclasses.dataclass(frozen=True)
class Pending:
    """A message to send: ``payload`` is the envelope."""

    sequence: int
    payload: bytes


@dataclasses.dataclass
class _Counters:
    last: int = 0  # newest sequence given
    unreported: int = 0  # dropped, and no event has said so yet
    messages: int = 0
    size_bytes: int = 0


_Ledger = dict[Stream, _Counters]


class Outbox:
    """The outbox of one device. All methods may be called from any thread.

    Args:
        path: The database file; made if absent.
        limit_bytes: What the waiting messages may take together.
        clock: Unix time in milliseconds.
        report_interval_s: Least time between two events about dropped messages.
    Raises:
        StorageNotWritable: This user may not open or make the file. On a full disk the outbox is one in memory.
    """

    def __init__(
        self,
        path: Path,
        *,
        fleet: str,
        device: str,
        limit_bytes: int = DEFAULT_LIMIT_BYTES,
        clock: Callable[[], int] | None = None,
        report_interval_s: float = 60.0,
    ) -> None:
        self._path, self._fleet, self._device, self._limit_bytes = path, fleet, device, limit_bytes
        self._clock = clock or _now_ms
        self._report_interval_s = report_interval_s
        self._reported_at = -math.inf  # on the monotonic clock: the other may be set while we run
        self._lock = threading.RLock()
        self._listeners: list[Callable[[], None]] = []
        self._lost: dict[Stream, int] = {}
        self._database, damaged = open_database(path, _SCHEMA, synchronous="FULL")
        self._ledger: _Ledger = {stream: _Counters() for stream in Stream}
        try:
            try:
                self._epoch = self._load()
            except DamagedDatabase as error:  # a spoilt page shows only when it is read
                self._database.close()
                self._database, damaged = begin_anew(path, _SCHEMA, synchronous="FULL", error=error)
                self._epoch = self._load()
            except StorageFull as error:  # a new one cannot even note its epoch
                self._database.close()
                self._database = open_in_memory(_SCHEMA, instead_of=error)
                self._epoch = self._load()
            if damaged:
                text = f"the outbox was damaged; what waited in it is in {damaged.name}"
                self.append(Stream.EVENTS, Event(kind=EventKind.STORAGE, at_ms=self._clock(), reason=text))
            if is_in_memory(self._database):
                self._limit_bytes = min(limit_bytes, _MEMORY_LIMIT_BYTES)
                text = f"{path} cannot be opened: reports wait in memory, and are lost with a restart"
                self.append(Stream.EVENTS, Event(kind=EventKind.STORAGE, at_ms=self._clock(), reason=text))
        except DeviceError:
            self._database.close()
            raise

    @property
    def epoch(self) -> str:
        """Identifier of this numbering: made with the database, renewed if the database went back in time."""
        return self._epoch

    def append(self, stream: Stream, body: Message) -> int:
        """Put a message at the end of ``stream``; it is on the disk when this returns.

        Returns:
            Its sequence, even if it had to be dropped at once because all that waits is more important.
        Raises:
            MessageError: The body is larger than ``MAX_BODY_BYTES``.
            StorageFull, StorageNotWritable, DeviceError: It is not stored: keep it and come again, or give it up and
                say so by :meth:`count_lost`.
        """
        return self.append_all([(stream, body)])[0]

    def append_all(self, messages: Sequence[tuple[Stream, Message]]) -> list[int]:
        """:meth:`append` for several messages with one sync of the disk: all of them are stored, or none is."""
        bodies = [(stream, _encode_body(stream, body)) for stream, body in messages]
        with self._lock:
            with self._transaction() as ledger:
                for stream, count in self._lost.items():
                    ledger[stream].unreported += count
                sequences = [self._store(ledger, stream, body) for stream, body in bodies]
                self._report_drops(ledger)
            self._lost.clear()
        for listener in self._listeners:
            listener()
        return sequences

    def count_lost(self, stream: Stream, count: int = 1) -> None:
        """Report, with what is dropped here, ``count`` records that were given up before they came here."""
        with self._lock:
            self._lost[stream] = self._lost.get(stream, 0) + count

    def pending(self, stream: Stream, *, after: int, limit: int, limit_bytes: int = 1 << 20) -> list[Pending]:
        """The next messages of ``stream`` beyond sequence ``after``, oldest first.

        Each names as ``previous`` the message before it that is *still here* (0 if none is): what lies between was
        acknowledged or dropped, so that the server takes it; a message that the broker lost is still here, so that the
        server sees it missing.

        Args:
            limit, limit_bytes: At most this many, and no more once that many bytes are reached (but at least one).
        """
        with self._lock, storage_errors(self._path):
            before = "SELECT coalesce(max(sequence), 0) FROM messages WHERE stream = ? AND sequence <= ?"
            (previous,) = self._database.execute(before, (stream.value, after)).fetchone()
            rows = self._database.execute(
                "SELECT sequence, made_at_ms, body FROM messages WHERE stream = ? AND sequence > ? "
                "ORDER BY sequence LIMIT ?",
                (stream.value, after, limit),
            )
            found: list[Pending] = []
            taken_bytes = 0
            for sequence, made_at_ms, body in rows:
                envelope = Envelope(
                    fleet=self._fleet,
                    device=self._device,
                    epoch=self._epoch,
                    stream=stream,
                    sequence=sequence,
                    previous=previous,
                    sent_at_ms=made_at_ms,
                    body=msgspec.Raw(body),
                )
                found.append(Pending(sequence, encode(envelope)))
                previous = sequence
                taken_bytes += len(body)
                if taken_bytes >= limit_bytes:
                    break
            rows.close()
            return found

    def acknowledge(self, ack: Ack) -> None:
        """Forget what the server has committed. An acknowledgement of another epoch is ignored.

        One beyond what was ever sent means that this file went back in time (a restored copy): the numbers it would
        give next are taken, so a new epoch begins, and all that waits is sent again under it.
        """
        known = {Stream(name): mark for name, mark in ack.watermarks.items() if name in _STREAM_NAMES}
        with self._lock:
            if ack.epoch != self._epoch:
                return
            if any(mark > self._ledger[stream].last for stream, mark in known.items()):
                self._begin_epoch()
                return
            with self._transaction() as ledger:
                for stream, mark in known.items():
                    self._forget(ledger, stream, mark)
                self._report_drops(ledger)

    def size(self) -> tuple[int, int]:
        """How many messages wait, and how many bytes they take."""
        with self._lock:
            counters = self._ledger.values()
            return sum(c.messages for c in counters), sum(c.size_bytes for c in counters)

    def listen(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` after each append, in the appending thread; it must not block."""
        self._listeners.append(listener)

    def close(self) -> None:
        """Close the file; nothing may be called afterwards."""
        with self._lock:
            self._database.close()

    def _load(self) -> str:
        with self._transaction() as ledger:
            for name, last, unreported in self._database.execute("SELECT stream, last, unreported FROM streams"):
                ledger[Stream(name)] = _Counters(last=last, unreported=unreported)
            totals = "SELECT stream, count(*), sum(size_bytes) FROM messages GROUP BY stream"
            for name, messages, size_bytes in self._database.execute(totals):
                ledger[Stream(name)].messages, ledger[Stream(name)].size_bytes = messages, size_bytes
            fresh = ("epoch", uuid.uuid4().hex)
            self._database.execute("INSERT INTO meta (name, value) VALUES (?, ?) ON CONFLICT DO NOTHING", fresh)
            (epoch,) = self._database.execute("SELECT value FROM meta WHERE name = 'epoch'").fetchone()
        return str(epoch)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[_Ledger]:
        """A transaction, with a copy of the counters that becomes the truth only with the commit."""
        ledger = {stream: dataclasses.replace(counters) for stream, counters in self._ledger.items()}
        with storage_errors(self._path), transaction(self._database):
            yield ledger
            rows = [(stream.value, c.last, c.unreported) for stream, c in ledger.items() if c != self._ledger[stream]]
            self._database.executemany(
                "INSERT OR REPLACE INTO streams (stream, last, unreported) VALUES (?, ?, ?)", rows
            )
        self._ledger = ledger

    def _store(self, ledger: _Ledger, stream: Stream, body: bytes) -> int:
        counters = ledger[stream]
        counters.last += 1
        size_bytes = len(body) + _ROW_BYTES
        if not self._make_room(ledger, stream, size_bytes):
            counters.unreported += 1
            return counters.last
        self._database.execute(
            "INSERT INTO messages (stream, sequence, made_at_ms, size_bytes, body) VALUES (?, ?, ?, ?, ?)",
            (stream.value, counters.last, self._clock(), size_bytes, body),
        )
        counters.messages += 1
        counters.size_bytes += size_bytes
        return counters.last

    def _make_room(self, ledger: _Ledger, stream: Stream, size_bytes: int) -> bool:
        """Drop what is not more important than ``stream`` until the message fits; False if it never would."""
        excess = sum(counters.size_bytes for counters in ledger.values()) + size_bytes - self._limit_bytes
        if excess <= 0:
            return True
        streams = list(Stream)
        victims = streams[streams.index(stream) :][::-1]
        if sum(ledger[victim].size_bytes for victim in victims) < excess:
            return False
        for victim in victims:
            if excess > 0:
                excess -= self._drop_oldest(ledger, victim, excess)
        return True

    def _drop_oldest(self, ledger: _Ledger, stream: Stream, at_least_bytes: int) -> int:
        freed_bytes = dropped = last = 0
        select = "SELECT sequence, size_bytes FROM messages WHERE stream = ? ORDER BY sequence"
        rows = self._database.execute(select, (stream.value,))
        for sequence, size_bytes in rows:
            freed_bytes, dropped, last = freed_bytes + size_bytes, dropped + 1, sequence
            if freed_bytes >= at_least_bytes:
                break
        rows.close()
        self._forget(ledger, stream, last)
        ledger[stream].unreported += dropped
        return freed_bytes

    def _forget(self, ledger: _Ledger, stream: Stream, until: int) -> None:
        key = (stream.value, until)
        totals = "SELECT count(*), coalesce(sum(size_bytes), 0) FROM messages WHERE stream = ? AND sequence <= ?"
        count, size_bytes = self._database.execute(totals, key).fetchone()
        if count:
            ledger[stream].size_bytes -= size_bytes
            ledger[stream].messages -= count
            self._database.execute("DELETE FROM messages WHERE stream = ? AND sequence <= ?", key)

    def _report_drops(self, ledger: _Ledger) -> None:
        dropped = {stream.value: c.unreported for stream, c in ledger.items() if c.unreported}
        now = time.monotonic()
        if not dropped or now - self._reported_at < self._report_interval_s:
            return
        for counters in ledger.values():
            counters.unreported = 0
        total = sum(dropped.values())
        limit = f"the outbox may take {self._limit_bytes} bytes, a message {MAX_PAYLOAD_BYTES}"
        reason = f"{total} messages dropped: {limit}, or the disk was full"
        event = Event(kind=EventKind.OUTBOX_DROPPED, at_ms=self._clock(), reason=reason, detail=dict(dropped))
        _log.warning("%s: %s", self._path, reason)
        self._reported_at = now
        self._store(ledger, Stream.EVENTS, encode(event))

    def _begin_epoch(self) -> None:
        epoch = uuid.uuid4().hex
        reason = f"the outbox is older than what the server has of it (a restored copy?): epoch {epoch} begins"
        _log.warning("%s: %s", self._path, reason)
        event = Event(kind=EventKind.STORAGE, at_ms=self._clock(), reason=reason)
        with self._transaction() as ledger:
            self._database.execute("UPDATE meta SET value = ? WHERE name = 'epoch'", (epoch,))
            self._store(ledger, Stream.EVENTS, encode(event))
        self._epoch = epoch


_STREAM_NAMES = frozenset(stream.value for stream in Stream)


def _encode_body(stream: Stream, body: Message) -> bytes:
    data = encode(body)
    if len(data) > MAX_BODY_BYTES:
        raise MessageError(
            f"a message of stream {stream.value} has {len(data)} bytes, at most {MAX_BODY_BYTES} travel: split it"
        )
    return data


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
