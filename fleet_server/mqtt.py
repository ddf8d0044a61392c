"""The server's own connection to the broker: what devices say comes in batches, acknowledged once it is stored."""

from __future__ import annotations

import dataclasses
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any

import paho.mqtt.client as mqtt
import sqlalchemy as sa
from paho.mqtt.enums import CallbackAPIVersion

from edge_agent.contract.errors import ShoalError
from edge_agent.contract.topics import server_subscriptions

_log = logging.getLogger(__name__)

_BATCH = 200
_QUEUE = 20_000  # beyond it messages are left unacknowledged: devices send them again
_STOP_S = 15.0
_RETRY_S = (0.2, 10.0)


@dataclasses.dataclass(frozen=True)
class Received:
    """One message from the broker."""

    topic: str
    payload: bytes
    retained: bool = False


@dataclasses.dataclass(frozen=True)
class _Unacknowledged:
    client: mqtt.Client
    mid: int
    message: Received


class ServerLink:
    """The server's link to the broker of its fleet. It connects by itself, and again whenever the connection ends.

    Args:
        user, password: The server's own; at the embedded broker the user that may do everything.
        client_id: Identity of the session that the broker keeps while the server is down (where it keeps one).
    """

    def __init__(
        self, host: str, port: int, user: str, password: str, fleet: str, *, client_id: str = "shoal-server"
    ) -> None:
        self._host, self._port, self._fleet = host, port, fleet
        self._queue: queue.Queue[_Unacknowledged | None] = queue.Queue()
        self._connected = threading.Event()
        self._stopping = threading.Event()
        self._on_connected: Callable[[], None] | None = None
        self._client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            clean_session=False,
            protocol=mqtt.MQTTv311,
            manual_ack=True,
        )
        self._client.username_pw_set(user, password)
        self._client.reconnect_delay_set(1, 30)
        self._client.max_inflight_messages_set(100)
        self._client.max_queued_messages_set(50_000)
        self._client.on_connect = self._connect_answered
        self._client.on_subscribe = self._subscribed
        self._client.on_disconnect = self._disconnected
        self._client.on_message = self._message_came
        self._receive: Callable[[Sequence[Received]], None] | None = None
        self._worker = threading.Thread(target=self._work, name="ingest", daemon=True)

    @property
    def connected(self) -> bool:
        """Whether the broker has accepted us and our subscriptions."""
        return self._connected.is_set()

    def start(
        self, receive: Callable[[Sequence[Received]], None], *, on_connected: Callable[[], None] | None = None
    ) -> None:
        """Begin to connect; returns at once.

        Args:
            receive: Called in the link's worker thread with what came in. Once it returns, this is acknowledged to the
                broker; if the database fails it is called again with the same messages.
            on_connected: Called in the worker thread after each (re)connection, before what came in over it: the
                place to publish again what a restarted broker has forgotten (retained desired states).
        """
        self._receive, self._on_connected = receive, on_connected
        self._worker.start()
        self._client.connect_async(self._host, self._port, keepalive=30)
        self._client.loop_start()

    def stop(self) -> None:
        """Disconnect; what was taken from the queue is finished first, the rest stays with the devices."""
        self._stopping.set()
        self._queue.put(None)
        if self._worker.ident is not None:
            self._worker.join(_STOP_S)
        self._client.disconnect()
        self._client.loop_stop()

    def wait_connected(self, timeout_s: float) -> bool:
        """Whether there is a connection, at the latest after ``timeout_s``."""
        return self._connected.wait(timeout_s)

    def publish(self, topic: str, payload: bytes, retain: bool = False) -> None:  # noqa: FBT001, FBT002, RUF100
        """Send a message at QoS 1; without a connection it waits in memory for one."""
        sent = self._client.publish(topic, payload, qos=1, retain=retain)
        if sent.rc == mqtt.MQTT_ERR_QUEUE_SIZE:
            _log.warning("message on %s dropped: the broker has been away too long", topic)

    def _connect_answered(self, client: mqtt.Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            _log.error("the broker at %s:%d refuses the server: %s", self._host, self._port, reason)
            return
        # Asked for on every connection: a restarted broker has forgotten the session.
        client.subscribe([(pattern, 1) for pattern in server_subscriptions(self._fleet)])
        self._queue.put(None)

    def _subscribed(self, _client: mqtt.Client, _data: Any, _mid: int, reasons: Any, _properties: Any) -> None:
        if any(reason.is_failure for reason in reasons):
            _log.error("the broker does not let the server hear its devices: check the access rules of its user")
        else:
            self._connected.set()

    def _disconnected(self, _client: mqtt.Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        self._connected.clear()
        if not self._stopping.is_set():
            _log.warning("connection to the broker at %s:%d lost: %s", self._host, self._port, reason)

    def _message_came(self, client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
        if self._queue.qsize() < _QUEUE:
            came = Received(message.topic, bytes(message.payload), message.retain)
            self._queue.put(_Unacknowledged(client, message.mid if message.qos else 0, came))

    def _work(self) -> None:
        while not self._stopping.is_set():
            first = self._queue.get()
            if first is None:  # a mark: just connected, or stopping
                if not self._stopping.is_set() and self._on_connected is not None:
                    self._insist(self._on_connected)
                continue
            batch = self._take_batch(first)
            messages = [one.message for one in batch]
            if self._insist(lambda messages=messages: self._deliver(messages)):  # type: ignore[misc]
                for one in batch:
                    if one.mid:
                        one.client.ack(one.mid, 1)

    def _deliver(self, messages: Sequence[Received]) -> None:
        if self._receive is not None:
            self._receive(messages)

    def _take_batch(self, first: _Unacknowledged) -> list[_Unacknowledged]:
        batch = [first]
        while len(batch) < _BATCH:
            try:
                following = self._queue.get_nowait()
            except queue.Empty:
                break
            if following is None:
                self._queue.put(None)
                break
            batch.append(following)
        return batch

    def _insist(self, work: Callable[[], None]) -> bool:
        """Do ``work`` until it succeeds; False if we are stopped before."""
        delay_s, longest_s = _RETRY_S
        while True:
            try:
                work()
            except (sa.exc.SQLAlchemyError, ShoalError, OSError):
                _log.exception("what devices say cannot be stored; trying again in %.1f s", delay_s)
            except Exception:  # noqa: BLE001  one fault in a handler must not end the server's hearing
                # The devices get no acknowledgement of ours, so they keep these messages and send them again.
                _log.exception("what devices say cannot be handled")
                return True
            else:
                return True
            if self._stopping.wait(delay_s):
                return False
            delay_s = min(longest_s, delay_s * 2)
