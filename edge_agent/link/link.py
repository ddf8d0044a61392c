"""The link: a thread that keeps a connection to the broker, sends what waits in the outbox and hears the server."""

from __future__ import annotations

import functools
import logging
import random
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from edge_agent.contract.enrolment import Enrolment
from edge_agent.contract.envelope import decode, encode
from edge_agent.contract.errors import DeviceError, MessageError, NetworkError
from edge_agent.contract.messages import Ack, Desired, Reported, Status
from edge_agent.contract.topics import DeviceTopics, Stream
from edge_agent.link.backoff import Backoff
from edge_agent.link.wake import Wake
from edge_agent.link.window import Window
from edge_agent.outbox.outbox import Outbox

if TYPE_CHECKING:
    from paho.mqtt.client import MQTTMessageInfo

    from edge_agent.link.connection import Connection

_log = logging.getLogger(__name__)

_STEADY_S = 10.0  # a connection that lasted so long was no accident: the backoff begins again
_STOP_S = 15.0
# The broker has taken what was sent again, and yet nobody acknowledges it: it may have lost what this device subscribed
# to. The connection is opened anew; each time that this changes nothing, for the server is away, the next is later.
_DEAF_S = 15.0
_LONGEST_DEAF_S = 3600.0


class Link:
    """The device's link to its server.

    Args:
        on_desired: Called in the link's thread with each desired state; it must not block (put it in a queue).
        window: Makes the sliding window of one stream.
        backoff: Delays between attempts to connect.
    """

    def __init__(
        self,
        enrolment: Enrolment,
        outbox: Outbox,
        *,
        on_desired: Callable[[Desired], None],
        window: Callable[[], Window] = Window,
        backoff: Backoff | None = None,
        keepalive_s: int = 30,
    ) -> None:
        # Only here is MQTT needed: 6 MB that a device which has not enrolled does not spend, whoever imports this.
        from edge_agent.link.connection import Connection

        self._enrolment, self._outbox, self._on_desired = enrolment, outbox, on_desired
        self._topics = DeviceTopics(enrolment.fleet, enrolment.device)
        self._windows = {stream: window() for stream in Stream}
        self._epoch = outbox.epoch
        self._backoff = backoff or Backoff(1.0, 60.0)
        self._keepalive_s = keepalive_s
        self._reported: bytes | None = None
        self._reported_sent: bytes | None = None
        self._last_trouble = ""
        self._connected = False
        self._linked_at: float | None = None
        self._last: dict[Stream, MQTTMessageInfo] = {}  # of each stream, what was sent last
        self._taken_at: float | None = None  # when the broker had taken all that was sent again, in vain so far
        # Drawn, for a fleet is not to come back all at once.
        self._patient_s = self._least_patient_s = random.uniform(1.0, 2.0) * _DEAF_S
        self._stopping = threading.Event()
        self._wake = Wake()
        self._connection = functools.partial(Connection, enrolment, wake=self._wake, keepalive_s=keepalive_s)
        self._thread = threading.Thread(target=self._run, name="link", daemon=True)
        self.bytes_up = 0
        self.bytes_down = 0

    @property
    def connected(self) -> bool:
        """Whether the broker has accepted us and our subscriptions."""
        return self._connected

    def start(self) -> None:
        """Begin to connect; returns at once, and never gives up."""
        self._outbox.listen(self._wake.set)
        self._thread.start()

    def stop(self) -> None:
        """Say goodbye and end the thread; what is not acknowledged stays in the outbox."""
        self._stopping.set()
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(_STOP_S)
        if not self._thread.is_alive():
            self._wake.close()

    def report(self, reported: Reported) -> None:
        """Publish what the device is (retained), now or as soon as there is a connection; only the newest counts."""
        self._reported = encode(reported)
        self._wake.set()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._linked_at = None
            try:
                will = encode(Status(online=False, at_ms=_now_ms()))
                with self._connection(will=will) as connection:
                    self._serve(connection)
            except (OSError, NetworkError) as error:
                self._trouble(f"no link to the server: {error}")
            except Exception:  # noqa: BLE001 - a device that nobody can reach any more is the worst end
                _log.exception("the link ended in an unexpected error; it is opened again")
            finally:
                self._connected = False
            if self._was_steady():
                self._backoff.reset()
            self._stopping.wait(self._backoff.next_s())

    def _was_steady(self) -> bool:
        return self._linked_at is not None and time.monotonic() - self._linked_at > _STEADY_S

    def _serve(self, connection: Connection) -> None:
        connection.open()
        for window in self._windows.values():
            window.restart(hasten=not self._is_deaf)
        self._reported_sent = self._taken_at = None
        self._last.clear()
        while not self._stopping.is_set():
            for topic, payload in connection.turn(self._patience_s()):
                self.bytes_down += len(topic) + len(payload)
                self._take(topic, payload)
            if not connection.ready:
                continue
            if not self._connected:
                self._connected = True
                self._linked_at = time.monotonic()
                self._last_trouble = ""
                _log.info("linked to the broker at %s:%d", self._enrolment.broker.host, self._enrolment.broker.port)
                online = encode(Status(online=True, at_ms=_now_ms()))
                self._publish(connection, self._topics.status, online, retain=True)
            if (reported := self._reported) is not None and reported is not self._reported_sent:
                self._publish(connection, self._topics.reported, reported, retain=True)
                self._reported_sent = reported
            self._send_streams(connection)
        if connection.ready:
            connection.say_goodbye(encode(Status(online=False, at_ms=_now_ms())))

    def _patience_s(self) -> float:
        """How long nothing needs to be done unless something comes in: until the next resend or keep-alive."""
        due = [window.due_at for window in self._windows.values() if window.due_at is not None]
        until_due_s = min(due) - time.monotonic() if due else self._keepalive_s
        return max(0.0, min(until_due_s, self._keepalive_s / 4))

    def _send_streams(self, connection: Connection) -> None:
        now = time.monotonic()
        try:
            for stream, window in self._windows.items():
                if window.rewind_if_due(now):
                    self._check_that_it_hears(stream, now)
                    _log.info("stream %s: not acknowledged beyond %d; sending again", stream.value, window.sent)
                if window.room == 0:
                    continue
                for message in self._outbox.pending(
                    stream, after=window.sent, limit=window.room, limit_bytes=window.room_bytes
                ):
                    self._last[stream] = self._publish(connection, self._topics.up(stream), message.payload)
                    window.send(message.sequence, len(message.payload), now)
        except DeviceError as error:
            self._trouble(f"the outbox cannot be read: {error}")

    def _check_that_it_hears(self, stream: Stream, now: float) -> None:
        """When a stream is to be sent again: end a connection over which no acknowledgement comes."""
        if not has_arrived(self._last[stream]):  # a slow line: nothing is to be expected yet
            self._taken_at = None
        elif self._taken_at is None:
            self._taken_at = now
        elif now - self._taken_at > self._patient_s:
            silent_s, self._patient_s = now - self._taken_at, min(_LONGEST_DEAF_S, self._patient_s * 2)
            raise NetworkError(
                f"the broker takes what is sent, but for {silent_s:.0f} s the server has acknowledged nothing: "
                "connecting anew"
            )

    @property
    def _is_deaf(self) -> bool:
        """Whether the last connection was ended for want of acknowledgements, and none has come since."""
        return self._patient_s > self._least_patient_s

    def _publish(self, connection: Connection, topic: str, payload: bytes, *, retain: bool = False) -> MQTTMessageInfo:
        self.bytes_up += len(topic) + len(payload)
        return connection.publish(topic, payload, retain=retain)

    def _take(self, topic: str, payload: bytes) -> None:
        try:
            if topic == self._topics.ack:
                self._acknowledge(decode(payload, Ack))
            elif topic == self._topics.desired and payload:
                self._on_desired(decode(payload, Desired))
        except MessageError as error:
            self._trouble(f"message on {topic} ignored: {error}")

    def _acknowledge(self, ack: Ack) -> None:
        self._taken_at, self._patient_s = None, self._least_patient_s
        try:
            self._outbox.acknowledge(ack)
        except DeviceError as error:
            # Nothing is lost by it: the server has them, and will say so again when they are sent again.
            self._trouble(f"acknowledged messages stay in the outbox: {error}")
        if self._outbox.epoch != self._epoch:
            self._epoch = self._outbox.epoch
            for window in self._windows.values():
                window.restart(forget=True)
        elif ack.epoch == self._epoch:
            now = time.monotonic()
            for stream, window in self._windows.items():
                if stream.value in ack.watermarks:
                    window.acknowledge(ack.watermarks[stream.value], now)

    def _trouble(self, text: str) -> None:
        """Log a trouble once, not at every attempt."""
        if text != self._last_trouble:
            self._last_trouble = text
            _log.warning("%s", text)


def has_arrived(sent: MQTTMessageInfo) -> bool:
    """Whether the broker has taken a message; also of one that could not be handed over, for which there is no wait."""
    return sent.rc != 0 or sent.is_published()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
