"""Numbered messages in, effects exactly once: a message's effects and its watermark are one transaction.

A message that cannot be understood, or whose handler refuses it, is set aside and counts as taken: its stream goes on.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import sqlalchemy as sa

from edge_agent.contract.envelope import Envelope, Message, decode
from edge_agent.contract.errors import ConfigurationError, MessageError
from edge_agent.contract.messages import Ack, Event, LabelBatch, MetricsReport, ProfileReport, SampleBatch
from edge_agent.contract.topics import DeviceTopics, Stream, parse
from fleet_server.clock import Clock, now_ms
from fleet_server.database import Database
from fleet_server.ingest.quarantine import put_aside
from fleet_server.ingest.tables import set_aside, watermarks
from fleet_server.ingest.watermarks import BEYOND_ALL, Marks, Verdict

_log = logging.getLogger(__name__)

Handler = Callable[[sa.Connection, Envelope, Any], None]

BODIES: Mapping[Stream, type[Message]] = {
    Stream.EVENTS: Event,
    Stream.LABELS: LabelBatch,
    Stream.METRICS: MetricsReport,
    Stream.PROFILES: ProfileReport,
    Stream.SAMPLES: SampleBatch,
}


def chain(*handlers: Handler) -> Handler:
    """A handler that calls several in turn, in the one transaction."""

    def all_of_them(connection: sa.Connection, envelope: Envelope, body: Any) -> None:
        for handler in handlers:
            handler(connection, envelope, body)

    return all_of_them


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamProgress:
    """How far one stream has come; ``dropped`` messages never came: the device gave them up at its limit.

    Args:
        forked: The device's outbox went back in time; what it has comes under a new epoch.
    """

    device: str
    epoch: str
    stream: Stream
    sequence: int
    dropped: int
    forked: bool
    updated_at_ms: int


class IngestService:
    """Takes the devices' messages.

    Args:
        handlers: What each stream's message does, within the transaction; every stream needs one. A handler that raises
            anything but an error of the database's connection makes its message be set aside, without effect.
        accepts: Whether a device may still speak; a revoked one with a live connection is not heard.
    Raises:
        ConfigurationError: A stream has no handler: its messages would be acknowledged and lost.
    """

    def __init__(
        self,
        db: Database,
        handlers: Mapping[Stream, Handler],
        *,
        accepts: Callable[[str], bool] | None = None,
        clock: Clock = now_ms,
    ) -> None:
        if missing := [stream.value for stream in Stream if stream not in handlers]:
            raise ConfigurationError(f"no handler for the streams {', '.join(missing)}: what they bring would be lost")
        self._db, self._handlers, self._clock = db, dict(handlers), clock
        self._accepts = accepts or bool
        self.counts: collections.Counter[str] = collections.Counter()
        """Since the start, by what became of a message: a :class:`Verdict`'s value, ``set-aside`` or ``refused``."""

    def take(self, topic: str, payload: bytes) -> Ack | None:
        """:meth:`take_all` for one message."""
        acks = self.take_all([(topic, payload)])
        return acks[0][1] if acks else None

    def take_all(self, messages: Iterable[tuple[str, bytes]]) -> list[tuple[DeviceTopics, Ack]]:
        """Take messages in one transaction.

        Args:
            messages: (topic, payload) of ``up/STREAM`` topics, in the order in which they came.
        Returns:
            What to acknowledge, per device and epoch, now that it is committed.
        Raises:
            sqlalchemy.exc.DBAPIError: The database fails; nothing was taken, try again.
        """
        seen: collections.Counter[str] = collections.Counter()
        acks: dict[tuple[DeviceTopics, str], dict[str, int]] = {}
        accepts = functools.cache(self._accepts)  # it may ask the database: once per device and batch is enough
        with self._db.write() as connection:
            marks = Marks(connection)
            for topic, payload in messages:
                envelope = self._open(connection, topic, payload, accepts, seen)
                if envelope is None:
                    continue
                mark = marks.of(envelope)
                verdict = mark.judge(envelope)
                seen[verdict.value] += 1
                if verdict is Verdict.NEXT:
                    self._handle(connection, topic, payload, envelope, seen)
                    mark.advance(envelope)
                whose = (DeviceTopics(envelope.fleet, envelope.device), envelope.epoch)
                acks.setdefault(whose, {})[envelope.stream.value] = mark.acknowledged
            marks.write(self._clock())
        self.counts.update(seen)
        return [(topics, Ack(epoch=epoch, watermarks=marks)) for (topics, epoch), marks in acks.items()]

    def put_aside(self, topic: str, payload: bytes, reason: str) -> None:
        """Set aside what came on another topic than a stream's and cannot be used."""
        with self._db.write() as connection:
            self._put_aside(connection, topic, payload, reason, self.counts)

    def positions(self) -> list[tuple[str, Ack]]:
        """Per device the watermarks of the epoch that it used last: what a restarted server tells the devices."""
        newest: dict[str, Ack] = {}
        for progress in self.progress():  # oldest first
            ack = newest.get(progress.device)
            same = ack is not None and ack.epoch == progress.epoch
            known = ack.watermarks if ack is not None and same else {}
            newest[progress.device] = Ack(
                epoch=progress.epoch,
                watermarks={**known, progress.stream.value: BEYOND_ALL if progress.forked else progress.sequence},
            )
        return list(newest.items())

    def progress(self) -> list[StreamProgress]:
        """How far every stream of every device has come, the longest unchanged first."""
        with self._db.read() as connection:
            columns = [watermarks.c[field.name] for field in dataclasses.fields(StreamProgress)]
            rows = connection.execute(sa.select(*columns).order_by(watermarks.c.updated_at_ms))
            return [StreamProgress(**{**row, "stream": Stream(row["stream"])}) for row in rows.mappings()]

    def set_aside_count(self) -> int:
        """How many messages could not be taken, repeats not counted."""
        with self._db.read() as connection:
            return int(connection.execute(sa.select(sa.func.count()).select_from(set_aside)).scalar_one())

    def _open(
        self,
        connection: sa.Connection,
        topic: str,
        payload: bytes,
        accepts: Callable[[str], bool],
        seen: collections.Counter[str],
    ) -> Envelope | None:
        try:
            topics, rest = parse(topic)
            if not accepts(topics.device):
                seen["refused"] += 1
                return None
            envelope = decode(payload, Envelope)
            _check(envelope, topics, rest)
        except MessageError as error:
            self._put_aside(connection, topic, payload, str(error), seen)
            return None
        return envelope

    def _handle(
        self, connection: sa.Connection, topic: str, payload: bytes, envelope: Envelope, seen: collections.Counter[str]
    ) -> None:
        try:
            with connection.begin_nested():  # a handler that fails halfway leaves nothing behind
                body = decode(bytes(envelope.body), BODIES[envelope.stream])
                self._handlers[envelope.stream](connection, envelope, body)
        except (sa.exc.OperationalError, sa.exc.InterfaceError):
            raise  # the database fails, not the message: all is tried again
        except Exception as error:  # noqa: BLE001  whatever it is, the device's next messages must not wait for it
            _log.warning("%s, sequence %d: set aside", topic, envelope.sequence, exc_info=error)
            self._put_aside(connection, topic, payload, f"{type(error).__name__}: {error}", seen)

    def _put_aside(
        self, connection: sa.Connection, topic: str, payload: bytes, reason: str, seen: collections.Counter[str]
    ) -> None:
        seen["set-aside"] += 1
        try:
            device = parse(topic)[0].device
        except MessageError:
            device = ""
        put_aside(connection, device=device, topic=topic, payload=payload, reason=reason, now_ms=self._clock())


def _check(envelope: Envelope, topics: DeviceTopics, rest: str) -> None:
    """Refuse an envelope that contradicts its topic, which the broker has checked, or cannot be true.

    Raises:
        MessageError: It does.
    """
    if (envelope.fleet, envelope.device) != (topics.fleet, topics.device):
        raise MessageError(f"it says device {envelope.fleet}/{envelope.device}, its topic another")
    if rest != f"up/{envelope.stream.value}":
        raise MessageError(f"it says stream {envelope.stream.value}, its topic another")
    if envelope.sequence >= 1 << 62:  # what it adds up to must still fit the database's 64 bits
        raise MessageError(f"{envelope.sequence} is no sequence")
    if not envelope.epoch.isalnum() or len(envelope.epoch) > 64:
        raise MessageError(f"epoch {envelope.epoch[:80]!r} is none")
