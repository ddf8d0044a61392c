"""One MQTT connection of a device, from CONNECT to its end, driven by one thread.

paho's own threads are not used: with one thread there are no locks, sending reads straight from the outbox, and an
append wakes the same ``select`` that waits for the broker. A new connection begins with a new client, so that nothing
stale is left in paho's queue: what was under way comes again from the outbox.
"""

from __future__ import annotations

import contextlib
import selectors
import time
from types import TracebackType
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from edge_agent.contract.enrolment import Enrolment
from edge_agent.contract.errors import NetworkError
from edge_agent.contract.topics import DeviceTopics
from edge_agent.link.wake import Wake

_CONNECT_TIMEOUT_S = 10.0
_GOODBYE_S = 2.0
# A broker that is busy with the end of our last connection may take the new one and never answer to it.
_READY_S = 20.0


class Connection:
    """A connection to the fleet's broker; a context manager that leaves nothing open.

    Args:
        will: Payload that the broker publishes (retained) on the device's status topic if we vanish.
        wake: Ends a :meth:`turn` early.
    """

    def __init__(self, enrolment: Enrolment, *, will: bytes, wake: Wake, keepalive_s: int) -> None:
        self._enrolment, self._wake, self._keepalive_s = enrolment, wake, keepalive_s
        self._topics = DeviceTopics(enrolment.fleet, enrolment.device)
        self._refused: str | None = None
        self._received: list[tuple[str, bytes]] = []
        self._selector = selectors.DefaultSelector()
        self._ready_by = 0.0
        self.ready = False
        client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id=enrolment.device,
            clean_session=False,
            protocol=mqtt.MQTTv311,
            reconnect_on_failure=False,
        )
        client.username_pw_set(enrolment.device, enrolment.secret)
        client.will_set(self._topics.status, will, qos=1, retain=True)
        client.connect_timeout = _CONNECT_TIMEOUT_S
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        self._client = client

    def __enter__(self) -> Connection:  # noqa: PYI034  Python 3.10 has no typing.Self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._selector.close()
        sock = self._client.socket()
        if sock is not None:
            sock.close()

    def open(self) -> None:
        """Connect and say CONNECT; :attr:`ready` turns true in a later :meth:`turn`.

        Raises:
            OSError: Nobody answers there.
        """
        broker = self._enrolment.broker
        self._ready_by = time.monotonic() + _READY_S
        self._client.connect(broker.host, broker.port, self._keepalive_s)
        self._selector.register(self._wake, selectors.EVENT_READ)
        if (sock := self._client.socket()) is not None:
            self._selector.register(sock, selectors.EVENT_READ)

    def turn(self, timeout_s: float) -> list[tuple[str, bytes]]:
        """Wait for traffic or the wake, at most ``timeout_s``; move what there is to move.

        Returns:
            Messages that came in, as (topic, payload).
        Raises:
            NetworkError: The connection is over.
        """
        sock = self._client.socket()
        if sock is not None:
            writing = selectors.EVENT_WRITE if self._client.want_write() else 0
            self._selector.modify(sock, selectors.EVENT_READ | writing)
            for key, _ in self._selector.select(timeout_s):
                if key.fileobj is self._wake:
                    self._wake.clear()
                else:
                    self._client.loop_read()
                    self._client.loop_write()
            self._client.loop_misc()
        if self._refused is not None:
            raise NetworkError(self._refused)
        received, self._received = self._received, []
        broker = self._enrolment.broker
        if not self.ready and time.monotonic() > self._ready_by:
            raise NetworkError(f"the broker at {broker.host}:{broker.port} has not let us in within {_READY_S:.0f} s")
        if self._client.socket() is None and not received:
            raise NetworkError(f"the connection to the broker at {broker.host}:{broker.port} is lost")
        return received

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> mqtt.MQTTMessageInfo:
        """Hand a message to the client, at QoS 1."""
        return self._client.publish(topic, payload, qos=1, retain=retain)

    def say_goodbye(self, status: bytes) -> None:
        """End the connection in good order: publish ``status`` (retained), wait shortly for it to arrive, leave."""
        said = self.publish(self._topics.status, status, retain=True)
        until = time.monotonic() + _GOODBYE_S
        with contextlib.suppress(NetworkError, OSError):
            # One that could not even be handed over has no news to wait for.
            while said.rc == mqtt.MQTT_ERR_SUCCESS and not said.is_published() and time.monotonic() < until:
                self.turn(0.1)
            self._client.disconnect()
            self.turn(0.0)

    def _on_connect(self, client: mqtt.Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            self._refused = (
                f"the broker refuses device {self._enrolment.device}: {reason} (revoked? then enrol it again)"
            )
            return
        # Asked for on every connection: a restarted broker has forgotten the session.
        client.subscribe([(self._topics.ack, 1), (self._topics.desired, 1)])

    def _on_subscribe(self, _client: mqtt.Client, _data: Any, _mid: int, reasons: Any, _properties: Any) -> None:
        if any(reason.is_failure for reason in reasons):
            self._refused = f"the broker does not let device {self._enrolment.device} subscribe to its own topics"
        else:
            self.ready = True

    def _on_message(self, _client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
        # Only kept here: inside a callback paho does not write, and errors would come out of the wrong call.
        self._received.append((message.topic, bytes(message.payload)))
