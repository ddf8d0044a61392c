"""How far the streams have come, within one transaction, and the one rule that decides whether a message is new."""

from __future__ import annotations

import dataclasses
import enum

import sqlalchemy as sa

from edge_agent.contract.envelope import Envelope
from edge_agent.contract.topics import Stream
from fleet_server.ingest.tables import watermarks
from fleet_server.upsert import upsert

Key = tuple[str, str, Stream]  # device, epoch, stream


class Verdict(enum.Enum):
    """What a message is, given the watermark of its stream."""

    NEXT = "next"
    REPEATED = "repeated"
    GAP = "gap"


def judge(previous: int, sequence: int, watermark: int) -> Verdict:
    """Whether a message comes next: ``previous <= watermark < sequence``.

    What lies between ``watermark`` and ``sequence`` then no longer exists on the device. A ``previous`` beyond the
    watermark means that a message which still exists there was lost on the way.
    """
    if sequence <= watermark:
        return Verdict.REPEATED
    return Verdict.NEXT if previous <= watermark else Verdict.GAP


@dataclasses.dataclass
class Mark:
    """The watermark of one stream."""

    sequence: int
    dropped: int
    changed: bool = False

    def advance(self, sequence: int) -> None:
        """Everything up to ``sequence`` is taken or gone."""
        self.dropped += sequence - 1 - self.sequence
        self.sequence, self.changed = sequence, True


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
                values = {"sequence": mark.sequence, "dropped": mark.dropped, "updated_at_ms": now_ms}
                upsert(self._connection, watermarks, _columns(device, epoch, stream), values)

    def _read(self, key: Key) -> Mark | None:
        where = [watermarks.c[name] == value for name, value in _columns(*key).items()]
        # The lock keeps two servers on one PostgreSQL from taking the same message; SQLite has one writer anyway.
        select = sa.select(watermarks.c.sequence, watermarks.c.dropped).where(*where).with_for_update()
        row = self._connection.execute(select).one_or_none()
        return Mark(row.sequence, row.dropped) if row is not None else None

    def _begin(self, key: Key) -> Mark:
        nothing = {"sequence": 0, "dropped": 0, "updated_at_ms": 0}
        upsert(self._connection, watermarks, _columns(*key), {}, first=nothing)
        return self._read(key) or Mark(0, 0)


def _columns(device: str, epoch: str, stream: Stream) -> dict[str, str]:
    return {"device": device, "epoch": epoch, "stream": stream.value}
