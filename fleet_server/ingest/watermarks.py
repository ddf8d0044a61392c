"""How far the streams have come, within one transaction, and the one rule that decides whether a message is new."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import struct

import sqlalchemy as sa

from edge_agent.contract.envelope import Envelope
from edge_agent.contract.topics import Stream
from fleet_server.ingest.tables import watermarks
from fleet_server.upsert import upsert

Key = tuple[str, str, Stream]  # device, epoch, stream

# Acknowledged in a forked epoch: beyond anything that the device ever sent, upon which it begins a new epoch and sends
# again what it has.
BEYOND_ALL = (1 << 62) - 1


class Verdict(enum.Enum):
    """What a message is, given the watermark of its stream."""

    NEXT = "next"
    REPEATED = "repeated"
    GAP = "gap"
    FORK = "fork"


def judge(previous: int, sequence: int, watermark: int) -> Verdict:
    """Whether a message comes next: ``previous <= watermark < sequence``.

    What lies between ``watermark`` and ``sequence`` then no longer exists on the device. A ``previous`` beyond the
    watermark means that a message which still exists there was lost on the way.
    """
    if sequence <= watermark:
        return Verdict.REPEATED
    return Verdict.NEXT if previous <= watermark else Verdict.GAP


# Of so many messages the content is remembered: more than a device has under way (edge_agent.link.window).
_REMEMBERED = 64
_FINGERPRINT = struct.Struct("<Q8s")  # sequence, beginning of the digest


def _fingerprint(envelope: Envelope) -> bytes:
    """Of what never changes when a message is sent again (``previous`` may)."""
    return hashlib.sha256(b"%d:" % envelope.sent_at_ms + bytes(envelope.body)).digest()[:8]


@dataclasses.dataclass
class Mark:
    """The watermark of one stream.

    A device whose outbox was restored from a copy gives numbers a second time. It shows when a number comes again with
    another content; its messages would be lost as "repeated", so the epoch is closed.
    """

    sequence: int = 0
    dropped: int = 0
    recent: bytes = b""
    forked: bool = False
    changed: bool = False

    def judge(self, envelope: Envelope) -> Verdict:
        """What a message is; a fork closes the epoch's stream."""
        verdict = judge(envelope.previous, envelope.sequence, self.sequence)
        if verdict is Verdict.REPEATED and not self.forked:
            known = dict(_FINGERPRINT.iter_unpack(self.recent)).get(envelope.sequence)
            if known is not None and known != _fingerprint(envelope):
                self.forked = self.changed = True
        return Verdict.FORK if self.forked else verdict

    def advance(self, envelope: Envelope) -> None:
        """Everything up to this message is taken or gone."""
        self.dropped += envelope.sequence - 1 - self.sequence
        self.sequence, self.changed = envelope.sequence, True
        newest = self.recent + _FINGERPRINT.pack(envelope.sequence, _fingerprint(envelope))
        self.recent = newest[-_REMEMBERED * _FINGERPRINT.size :]

    @property
    def acknowledged(self) -> int:
        """What the device is told."""
        return BEYOND_ALL if self.forked else self.sequence


_STORED = ("sequence", "dropped", "recent", "forked")


class Marks:
    """The watermarks that a transaction touches: read once, locked, written at its end."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection
        self._marks: dict[Key, Mark] = {}

    def of(self, envelope: Envelope) -> Mark:
        """The watermark of the envelope's stream; a stream never heard of begins at 0."""
        key = (envelope.device, envelope.epoch, envelope.stream)
        if key not in self._marks:
            self._marks[key] = self._read(key) or self._begin(key)
        return self._marks[key]

    def write(self, now_ms: int) -> None:
        """Store what has changed."""
        for (device, epoch, stream), mark in self._marks.items():
            if mark.changed:
                values = {name: getattr(mark, name) for name in _STORED} | {"updated_at_ms": now_ms}
                upsert(self._connection, watermarks, _columns(device, epoch, stream), values)

    def _read(self, key: Key) -> Mark | None:
        where = [watermarks.c[name] == value for name, value in _columns(*key).items()]
        # The lock keeps two servers on one PostgreSQL from taking the same message; SQLite has one writer anyway.
        select = sa.select(*(watermarks.c[name] for name in _STORED)).where(*where).with_for_update()
        row = self._connection.execute(select).mappings().one_or_none()
        return Mark(**row) if row is not None else None

    def _begin(self, key: Key) -> Mark:
        nothing = {name: getattr(Mark(), name) for name in _STORED} | {"updated_at_ms": 0}
        upsert(self._connection, watermarks, _columns(*key), {}, first=nothing)
        return self._read(key) or Mark()


def _columns(device: str, epoch: str, stream: Stream) -> dict[str, str]:
    return {"device": device, "epoch": epoch, "stream": stream.value}
