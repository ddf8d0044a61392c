from __future__ import annotations

import asyncio
import queue
import socket
import time
from collections.abc import Callable, Iterator
from typing import cast

import paho.mqtt.client as mqtt
import pytest
from amqtt.adapters import BufferWriter
from amqtt.errors import AMQTTError
from amqtt.session import Session
from paho.mqtt.enums import CallbackAPIVersion

from edge_agent.contract.envelope import MAX_PAYLOAD_BYTES
from edge_agent.contract.errors import AddressInUse, ConfigurationError
from edge_agent.contract.topics import DeviceTopics, Stream
from fleet_server.broker.amqtt_broker import FleetBroker, _Handler
from fleet_server.broker.embedded import EmbeddedBroker
from fleet_server.broker.rules import SERVER_USER, TopicRules

RIGHT = "right"
D1, D2 = DeviceTopics("reef", "d1"), DeviceTopics("reef", "d2")


class Client:
    """A paho client that keeps what it hears."""

    def __init__(self, port: int, user: str, *, password: str = RIGHT, client_id: str | None = None) -> None:
        self.heard: queue.Queue[mqtt.MQTTMessage] = queue.Queue()
        self.answers: queue.Queue[bool] = queue.Queue()
        self.granted: queue.Queue[list[bool]] = queue.Queue()
        self.gone: queue.Queue[bool] = queue.Queue()
        self.port = port
        self.client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id or user,
            clean_session=False,
            protocol=mqtt.MQTTv311,
            reconnect_on_failure=False,
        )
        self.client.username_pw_set(user, password)
        self.client.on_connect = lambda *args: self.answers.put(not args[3].is_failure)
        self.client.on_subscribe = lambda *args: self.granted.put([not reason.is_failure for reason in args[3]])
        self.client.on_message = lambda *args: self.heard.put(args[2])
        self.client.on_disconnect = lambda *_: self.gone.put(True)

    def connect(self, keepalive: int = 60) -> bool:
        self.client.connect("127.0.0.1", self.port, keepalive)
        self.client.loop_start()
        return self.answers.get(timeout=20)

    def subscribe(self, *patterns: str) -> list[bool]:
        self.client.subscribe([(pattern, 1) for pattern in patterns])
        return self.granted.get(timeout=20)

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        self.client.publish(topic, payload, qos=1, retain=retain).wait_for_publish(20)

    def hear(self) -> tuple[str, bytes]:
        message = self.heard.get(timeout=20)
        return message.topic, bytes(message.payload)

    def vanish(self) -> None:
        """Break the connection without a word."""
        sock = self.client.socket()
        assert sock
        socket.socket.shutdown(cast("socket.socket", sock), socket.SHUT_RDWR)
        self.gone.get(timeout=20)


Connect = Callable[..., Client]


def _authenticate(user: str, password: str) -> bool:
    return password == RIGHT and user != "revoked"


def _broker(port: int = 0) -> EmbeddedBroker:
    return EmbeddedBroker("127.0.0.1", port, authenticate=_authenticate, fleet="reef")


@pytest.fixture
def broker() -> Iterator[EmbeddedBroker]:
    made = _broker()
    made.start()
    yield made
    made.stop()


@pytest.fixture
def client(broker: EmbeddedBroker) -> Iterator[Connect]:
    made: list[Client] = []

    def make(user: str, **options: str) -> Client:
        made.append(Client(broker.port, user, **options))
        return made[-1]

    yield make
    for one in made:
        one.client.disconnect()
        one.client.loop_stop()


def server(client: Connect, *patterns: str) -> Client:
    hearing = client(SERVER_USER)
    assert hearing.connect()
    assert all(hearing.subscribe(*(patterns or ("#",))))
    return hearing


def test_messages_reach_the_server_in_order(client: Connect) -> None:
    hearing, device = server(client), client("d1")
    assert device.connect()
    for number in range(50):
        device.client.publish(D1.up(Stream.EVENTS), b"%d" % number, qos=1)
    assert [hearing.hear() for _ in range(50)] == [(D1.up(Stream.EVENTS), b"%d" % number) for number in range(50)]


def test_the_largest_payload_passes_and_one_far_beyond_ends_the_connection(client: Connect) -> None:
    hearing, device = server(client), client("d1")
    assert device.connect()
    device.publish(D1.up(Stream.SAMPLES), b"x" * MAX_PAYLOAD_BYTES)
    assert len(hearing.hear()[1]) == MAX_PAYLOAD_BYTES
    device.client.publish(D1.up(Stream.SAMPLES), b"x" * MAX_PAYLOAD_BYTES * 8, qos=1)
    assert device.gone.get(timeout=20)
    assert hearing.heard.empty()


def test_a_wrong_password_a_revoked_device_and_another_client_id_are_refused(client: Connect) -> None:
    assert not client("d1", password="wrong").connect()
    assert not client("revoked").connect()
    assert not client("d1", client_id="d2").connect()
    assert client("d1").connect()


def test_who_fails_to_authenticate_disturbs_nobody(client: Connect) -> None:
    device = client("d1")
    assert device.connect()
    assert device.subscribe(D1.ack) == [True]
    for user in ("d1", SERVER_USER):
        assert not client(user, password="wrong", client_id="d1").connect()
    device.client.publish(D2.up(Stream.EVENTS), b"as the server?", qos=1)
    hearing = server(client)
    hearing.publish(D1.ack, b"still there?")
    assert device.hear() == (D1.ack, b"still there?")
    assert device.gone.empty()


def test_topics_of_others_are_closed(client: Connect) -> None:
    hearing, device = server(client), client("d1")
    assert device.connect()
    patterns = ("#", "fleet/v1/reef/+/down/ack", D2.desired, D1.desired)
    assert device.subscribe(*patterns) == [False, False, False, True]
    device.publish(D2.up(Stream.EVENTS), b"forged")
    device.publish(D1.desired, b"forged")
    device.publish(D1.up(Stream.EVENTS), b"own")
    assert hearing.hear() == (D1.up(Stream.EVENTS), b"own")


def test_a_last_will_on_anothers_topic_is_refused(client: Connect) -> None:
    device = client("d1")
    device.client.will_set(D2.status, b"d2 is gone", qos=1, retain=True)
    assert not device.connect()


def test_the_last_will_is_sent_and_kept_when_a_device_vanishes_but_not_after_a_goodbye(client: Connect) -> None:
    hearing, device = server(client, D1.status), client("d1")
    device.client.will_set(D1.status, b"gone", qos=1, retain=True)
    assert device.connect()
    device.publish(D1.status, b"here", retain=True)
    assert hearing.hear()[1] == b"here"
    device.vanish()
    assert hearing.hear()[1] == b"gone"
    again = client("d1")
    again.client.will_set(D1.status, b"gone", qos=1, retain=True)
    assert again.connect()
    again.publish(D1.status, b"bye", retain=True)
    again.client.disconnect()
    assert hearing.hear()[1] == b"bye"
    hearing.publish(D1.status, b"later")
    assert hearing.hear()[1] == b"later"


def test_retained_messages_come_to_those_who_asked_for_them_only(client: Connect) -> None:
    hearing = server(client, "fleet/v1/reef/+/twin/desired")
    for topics in (D1, D2):
        hearing.publish(topics.desired, topics.device.encode(), retain=True)
        hearing.hear()
    device = client("d1")
    assert device.connect()
    assert device.subscribe(D1.desired, D1.ack) == [True, True]
    assert device.hear() == (D1.desired, b"d1")
    hearing.publish(D1.ack, b"last")
    assert device.hear() == (D1.ack, b"last")  # and no d2 in between
    hearing.publish(D1.desired, b"", retain=True)
    assert device.hear() == (D1.desired, b"")
    fresh = client("d1")
    assert fresh.connect()
    assert fresh.subscribe(D1.desired, D1.ack) == [True, True]
    hearing.publish(D1.ack, b"nothing retained")
    assert fresh.hear() == (D1.ack, b"nothing retained")


def test_a_device_that_connects_again_replaces_its_lingering_connection(client: Connect) -> None:
    hearing, old = server(client, D1.status), client("d1")
    old.client.will_set(D1.status, b"old is gone", qos=1, retain=True)
    assert old.connect()
    assert old.subscribe(D1.ack) == [True]
    new = client("d1")
    assert new.connect()
    assert new.subscribe(D1.ack) == [True]
    assert old.gone.get(timeout=20)
    assert hearing.hear()[1] == b"old is gone"
    for number in range(3):
        hearing.publish(D1.ack, b"%d" % number)
    assert [new.hear()[1] for _ in range(3)] == [b"0", b"1", b"2"]


def test_a_subscription_that_is_handled_when_its_connection_is_over_makes_nobody_deaf(
    client: Connect, broker: EmbeddedBroker
) -> None:
    """What a device sent just before it vanished may be handled after its session is gone: a session of nobody."""
    gone = Session()
    gone.client_id = gone.username = "d1"
    fleet_broker, loop = broker._broker, broker._loop
    assert loop is not None
    subscribed = asyncio.run_coroutine_threadsafe(fleet_broker.add_subscription((D1.ack, 1), gone), loop)
    assert subscribed.result(20) == 0x80
    hearing, device = server(client), client("d1")
    assert device.connect()
    assert device.subscribe(D1.ack) == [True]
    hearing.publish(D1.ack, b"heard")
    assert device.hear() == (D1.ack, b"heard")


def test_who_vanishes_while_the_retained_message_comes_makes_its_next_connection_neither_wait_nor_deaf(
    client: Connect, broker: EmbeddedBroker
) -> None:
    hearing = server(client, D1.status)
    hearing.publish(D1.desired, b"x" * 100_000, retain=True)
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", broker.port)) as vanishing:
            vanishing.sendall(_connect("d1") + _subscribe(D1.desired))
        device = client("d1")
        assert device.connect()
        assert device.subscribe(D1.ack, D1.desired) == [True, True]
        assert device.hear()[0] == D1.desired
        hearing.publish(D1.ack, b"heard")
        assert device.hear() == (D1.ack, b"heard")
        device.client.disconnect()
        device.client.loop_stop()


async def test_what_is_published_to_a_connection_that_ends_meanwhile_waits_for_no_acknowledgement() -> None:
    sending, ended = asyncio.Event(), asyncio.Event()

    class Hanging(BufferWriter):  # type: ignore[misc]  # amqtt ships no types
        async def drain(self) -> None:
            sending.set()
            await ended.wait()

    session = Session()
    session.client_id = "d1"

    async def nobody(_user: str, _password: str) -> bool:
        return False

    handler = _Handler(FleetBroker(nobody, TopicRules("reef", SERVER_USER)).plugins_manager, session)
    handler.writer = Hanging(b"")
    publishing = asyncio.create_task(handler.mqtt_publish("topic", b"data", 1, retain=False))
    await sending.wait()
    ended.set()
    handler._has_ended = True
    with pytest.raises(AMQTTError, match="has ended"):
        await publishing
    with pytest.raises(AMQTTError, match="has ended"):
        await handler.mqtt_publish("topic", b"data", 1, retain=False)


def _connect(client_id: str) -> bytes:
    body = b"\0\4MQTT\4\xc2\0\x1e"  # user name, password, clean session; 30 s of keep-alive
    return _packet(0x10, body + b"".join(_text(text) for text in (client_id, client_id, RIGHT)))


def _subscribe(topic: str) -> bytes:
    return _packet(0x82, b"\0\1" + _text(topic) + b"\1")


def _packet(kind: int, body: bytes) -> bytes:
    assert len(body) < 128
    return bytes([kind, len(body)]) + body


def _text(text: str) -> bytes:
    return len(text).to_bytes(2, "big") + text.encode()


def test_a_silent_connection_ends_after_its_keep_alive_and_its_will_is_sent(
    client: Connect, broker: EmbeddedBroker
) -> None:
    hearing = server(client, D1.status)
    device = client("d1")
    device.client.will_set(D1.status, b"gone", qos=1)
    device.client.connect("127.0.0.1", broker.port, keepalive=1)
    while device.answers.empty():
        device.client.loop(0.1)
    started = time.monotonic()
    assert hearing.hear()[1] == b"gone"  # nobody drives the client: no ping is sent
    assert time.monotonic() - started < 20


def test_a_revoked_device_can_be_disconnected(client: Connect, broker: EmbeddedBroker) -> None:
    device = client("d1")
    assert device.connect()
    broker.disconnect("d1")
    broker.disconnect("never-heard-of")
    assert device.gone.get(timeout=20)


def test_garbage_on_the_port_disturbs_nobody(client: Connect, broker: EmbeddedBroker) -> None:
    hearing, device = server(client), client("d1")
    assert device.connect()
    for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"\x10\xff\xff\xff\x7f", b"", b"\x00" * 100, b"\x10\x04\x00\x04MQTT"):
        with socket.create_connection(("127.0.0.1", broker.port), timeout=5) as raw:
            raw.sendall(garbage)
    device.publish(D1.up(Stream.EVENTS), b"still works")
    assert hearing.hear()[1] == b"still works"


def test_a_taken_port_is_named(broker: EmbeddedBroker) -> None:
    with pytest.raises(AddressInUse, match=f"127.0.0.1:{broker.port} is taken"):
        _broker(broker.port).start()


def test_an_impossible_address_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"cannot listen on 203\.0\.113\.7:0"):
        EmbeddedBroker("203.0.113.7", 0, authenticate=_authenticate, fleet="reef").start()


def test_it_comes_back_at_the_same_port(broker: EmbeddedBroker) -> None:
    port = broker.port
    first = Client(port, "d1")
    assert first.connect()
    broker.stop()
    assert first.gone.get(timeout=20)
    first.client.loop_stop()
    again = _broker(port)
    again.start()
    second = Client(port, "d1")
    assert second.connect()
    second.client.disconnect()
    second.client.loop_stop()
    again.stop()
