"""Samples taken while server or broker are down, or the agent is killed, arrive all, once, in order, later."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edge_agent.contract.envelope import encode
from edge_agent.contract.messages import Desired, Hardware, Reported
from edge_agent.contract.topics import DeviceTopics, Stream
from fleet_server.ingest.service import IngestService
from tests.integration.devices_and_server import (
    FLEET,
    Broker,
    Device,
    Embedded,
    Mosquitto,
    Server,
    one_event,
    running,
    secret_of,
    until,
)


@pytest.fixture(params=["embedded", pytest.param("mosquitto", marks=pytest.mark.real_parts("mosquitto"))])
def broker(request: pytest.FixtureRequest, program: Callable[[str], Path], tmp_path: Path) -> Iterator[Broker]:
    made: Broker = Embedded() if request.param == "embedded" else Mosquitto(program("mosquitto"), tmp_path)
    made.start()
    yield made
    made.stop()


def everything_arrived(server: Server, device: Device) -> Callable[[], bool]:
    return lambda: device.all_acknowledged() and len(server.samples(device.name)) >= device.taken


def assert_once_in_order(server: Server, device: Device) -> None:
    until(everything_arrived(server, device), f"{device.taken} samples arrive and are acknowledged")
    assert server.samples(device.name) == list(range(device.taken))


def test_samples_arrive_once_and_in_order_from_several_devices(broker: Broker, tmp_path: Path) -> None:
    server = Server(tmp_path, broker.port)
    devices = [Device(name, tmp_path, broker.port) for name in ("d1", "d2")]
    with running(server, *devices):
        for _ in range(5):
            for device in devices:
                device.sample(20)
        for device in devices:
            assert_once_in_order(server, device)
        assert sum(progress.dropped for progress in server.ingest.progress()) == 0


def test_the_largest_message_passes(broker: Broker, tmp_path: Path) -> None:
    server, device = Server(tmp_path, broker.port), Device("d1", tmp_path, broker.port)
    with running(server, device):
        device.sample(3, padding=127 * 1024)
        assert_once_in_order(server, device)


def test_server_down_while_samples_are_taken(broker: Broker, tmp_path: Path) -> None:
    device = Device("d1", tmp_path, broker.port)
    with running(device):
        first = Server(tmp_path, broker.port)
        with running(first):
            device.sample(10)
            assert_once_in_order(first, device)
        device.sample(200)
        until(lambda: device.link.connected, "the device stays linked to the broker")
        second = Server(tmp_path, broker.port)
        with running(second):
            device.sample(10)
            assert_once_in_order(second, device)


def test_broker_down_while_samples_are_taken(broker: Broker, tmp_path: Path) -> None:
    server, device = Server(tmp_path, broker.port), Device("d1", tmp_path, broker.port)
    with running(server, device):
        device.sample(10)
        assert_once_in_order(server, device)
        broker.stop()
        until(lambda: not device.link.connected and not server.link.connected, "both notice")
        device.sample(200)
        broker.start()
        assert_once_in_order(server, device)
        broker.stop()
        device.sample(10)
        broker.start()
        assert_once_in_order(server, device)


def test_an_agent_stopped_and_started_again_sends_the_rest(broker: Broker, tmp_path: Path) -> None:
    server, device = Server(tmp_path, broker.port), Device("d1", tmp_path, broker.port)
    with running(server):
        for _ in range(3):
            device.start()
            device.sample(60)
            device.stop()
            device.open()
        with running(device):
            assert_once_in_order(server, device)


_SAMPLE_FOREVER = """
import pathlib, sys
from tests.integration.devices_and_server import Device
device = Device("d1", pathlib.Path(sys.argv[1]), int(sys.argv[2]))
device.taken = device.outbox._ledger[__import__("edge_agent.contract.topics", fromlist=["Stream"]).Stream.SAMPLES].last
device.start()
while True:
    device.sample(1)
    print(device.taken, flush=True)
"""


def test_an_agent_killed_again_and_again_loses_and_doubles_nothing(
    broker: Broker, tmp_path: Path, repository: Path
) -> None:
    server = Server(tmp_path, broker.port)
    with running(server):
        for wanted in (40, 80, 120):
            command = [sys.executable, "-c", _SAMPLE_FOREVER, str(tmp_path), str(broker.port)]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=repository) as process:
                assert process.stdout
                while int(process.stdout.readline()) < wanted:
                    pass
                process.kill()
        device = Device("d1", tmp_path, broker.port)
        device.taken = device.outbox._ledger[Stream.SAMPLES].last
        assert device.taken >= 120
        until(lambda: server.online.get("d1") is False, "the last will says that it is gone")
        with running(device):
            assert_once_in_order(server, device)


def test_a_database_that_fails_for_a_while_loses_nothing(
    broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, device = Server(tmp_path, broker.port), Device("d1", tmp_path, broker.port)
    take_all, failures = IngestService.take_all, [OSError("disk full")] * 3

    def flaky(self: IngestService, messages: object) -> object:
        if failures:
            raise failures.pop()
        return take_all(self, messages)  # type: ignore[arg-type]

    monkeypatch.setattr(IngestService, "take_all", flaky)
    with running(server, device):
        device.sample(50)
        assert_once_in_order(server, device)
    assert not failures


def test_messages_the_broker_loses_doubles_and_reorders_still_count_once(
    broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, device = Server(tmp_path, broker.port), Device("d1", tmp_path, broker.port)
    take_all, calls = IngestService.take_all, [0]

    def unreliable(self: IngestService, messages: object) -> object:
        came = list(messages)  # type: ignore[call-overload]
        calls[0] += 1
        mangled = [message for n, message in enumerate(came) if (n + calls[0]) % 7]  # every seventh is lost
        mangled += mangled[::-1][:3]  # some come again, later and out of order
        return take_all(self, mangled)

    monkeypatch.setattr(IngestService, "take_all", unreliable)
    with running(server, device):
        for _ in range(3):
            device.sample(20)
        assert_once_in_order(server, device)
        assert server.ingest.counts["repeated"] > 0
        assert sum(progress.dropped for progress in server.ingest.progress()) == 0


def test_what_the_device_dropped_is_told_from_what_the_broker_lost(broker: Broker, tmp_path: Path) -> None:
    device = Device("d1", tmp_path, broker.port)
    device.outbox._limit_bytes = 12_000
    device.sample(30, padding=1000)
    waiting = device.outbox.size()[0]
    server = Server(tmp_path, broker.port)
    with running(server, device):
        until(device.all_acknowledged, "what is left arrives")
        came = server.samples("d1")
        assert came == list(range(30 - len(came), 30))
        assert 0 < len(came) < waiting
        dropped = {p.stream: p.dropped for p in server.ingest.progress()}
        assert dropped[Stream.SAMPLES] == 30 - len(came)
        assert server.heard["d1"] == [1]  # the event that says so


def test_the_twin_reaches_both_sides_even_after_the_broker_forgot_it(broker: Broker, tmp_path: Path) -> None:
    server, device = Server(tmp_path, broker.port), Device("d1", tmp_path, broker.port)
    hardware = Hardware(architecture="x86_64", system="Linux")
    with running(server, device):
        device.link.report(Reported(agent_version="1", started_at_ms=1, desired_revision=0, hardware=hardware))
        until(lambda: "d1" in server.reported and server.online.get("d1") is True, "the device is known and online")
        server.link.publish(DeviceTopics(FLEET, "d1").desired, encode(Desired(revision=7)), True)
        until(lambda: [d.revision for d in device.desired][-1:] == [7], "the device hears what it should be")
        server.reported.clear()
        broker.stop()
        broker.start()
        until(lambda: "d1" in server.reported, "the device reports again by itself")
    assert device.link.bytes_up > 0
    assert device.link.bytes_down > 0


def test_a_device_that_speaks_under_anothers_name_gets_nothing_through(broker: Broker, tmp_path: Path) -> None:
    import paho.mqtt.client as mqtt
    from paho.mqtt.enums import CallbackAPIVersion

    server = Server(tmp_path, broker.port)
    victim = Device("d1", tmp_path, broker.port)
    victim.outbox.append(Stream.EVENTS, one_event())
    forged = victim.outbox.pending(Stream.EVENTS, after=0, limit=1)[0].payload
    heard: list[str] = []
    mallory = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="mallory", protocol=mqtt.MQTTv311)
    mallory.username_pw_set("mallory", secret_of("mallory"))
    mallory.on_message = lambda _client, _data, message: heard.append(message.topic)
    with running(server):
        until(lambda: server.link.connected, "the server hears")  # what nobody resends must not come before
        mallory.connect("127.0.0.1", broker.port)
        mallory.loop_start()
        mallory.subscribe([("#", 1), (f"fleet/v1/{FLEET}/+/down/ack", 1), (f"fleet/v1/{FLEET}/d1/twin/desired", 1)])
        for topic in (
            DeviceTopics(FLEET, "d1").up(Stream.EVENTS),
            DeviceTopics(FLEET, "mallory").up(Stream.EVENTS),  # its own topic, another's envelope
        ):
            mallory.publish(topic, forged, qos=1).wait_for_publish(10)
        until(lambda: server.ingest.set_aside_count() == 1, "the forged envelope is set aside")
        with running(victim):
            until(victim.all_acknowledged, "the victim's own event is taken, as its first")
        mallory.disconnect()
        mallory.loop_stop()
    assert server.heard == {"d1": [1]}
    assert server.ingest.counts["repeated"] == 0
    assert heard == []
