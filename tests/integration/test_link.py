"""The device's link when things are not as they should be."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_agent.contract.messages import Hardware, Reported
from edge_agent.contract.topics import Stream
from fleet_server.broker.embedded import EmbeddedBroker
from tests.integration.devices_and_server import FLEET, Device, Embedded, Server, running, secret_of, until


@pytest.fixture
def broker() -> Iterator[Embedded]:
    made = Embedded()
    made.start()
    yield made
    made.stop()


def test_a_refused_device_says_why_once_and_goes_on_trying(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    revoked = {"d1"}
    strict = EmbeddedBroker(
        "127.0.0.1",
        0,
        authenticate=lambda user, password: user not in revoked and password == secret_of(user),
        fleet=FLEET,
    )
    strict.start()
    device = Device("d1", tmp_path, strict.port)
    with caplog.at_level(logging.WARNING, logger="edge_agent.link"), running(device):
        until(lambda: "refuses device d1" in caplog.text, "the refusal is logged")
        time.sleep(1.0)  # several attempts
        assert caplog.text.count("refuses device d1") == 1
        assert not device.link.connected
        revoked.clear()
        until(lambda: device.link.connected, "it is let in without being restarted")
    strict.stop()


def test_it_starts_and_stops_without_any_broker(tmp_path: Path) -> None:
    device = Device("d1", tmp_path, 1)
    device.start()
    device.sample(1)
    device.stop()
    device.open()
    assert device.outbox.size()[0] == 1
    device.stop()  # never started


def test_an_idle_link_costs_nearly_no_processor_time(broker: Embedded, tmp_path: Path) -> None:
    device = Device("d1", tmp_path, broker.port)
    with running(device):
        until(lambda: device.link.connected, "it is linked")
        before = time.process_time()
        time.sleep(2.0)
        assert time.process_time() - before < 0.5  # broker and link together; one that polls burns all of it


def test_an_outbox_restored_from_a_copy_loses_nothing_new(broker: Embedded, tmp_path: Path) -> None:
    server = Server(tmp_path, broker.port)
    device = Device("d1", tmp_path, broker.port)
    with running(server):
        with running(device):
            device.sample(3)
            until(device.all_acknowledged, "the first samples arrive")
        copy = (tmp_path / "d1.db").read_bytes()
        device.open()
        with running(device):
            device.sample(3)
            until(device.all_acknowledged, "three more arrive")
        (tmp_path / "d1.db").write_bytes(copy)
        device.open()
        with running(device):
            device.sample(5)  # under sequences that the server has seen already
            until(lambda: server.samples("d1")[-1:] == [10], "the new ones arrive under a new epoch")
            until(device.all_acknowledged, "and are acknowledged")
    assert server.samples("d1") == list(range(11))
    assert len({progress.epoch for progress in server.ingest.progress()}) == 2


def test_a_server_that_lost_its_database_goes_on_with_what_the_devices_still_have(
    broker: Embedded, tmp_path: Path
) -> None:
    device = Device("d1", tmp_path, broker.port)
    (tmp_path / "first").mkdir()
    first = Server(tmp_path / "first", broker.port)
    with running(device):
        with running(first):
            device.sample(5)
            until(device.all_acknowledged, "the first server has them")
        device.sample(5)
        (tmp_path / "second").mkdir()
        second = Server(tmp_path / "second", broker.port)
        with running(second):
            device.sample(5)
            until(device.all_acknowledged, "the second server takes what is left")
            assert second.samples("d1") == list(range(5, 15))
            assert {p.stream: p.dropped for p in second.ingest.progress()}[Stream.SAMPLES] == 5


def test_only_the_newest_report_counts(broker: Embedded, tmp_path: Path) -> None:
    server, device = Server(tmp_path, broker.port), Device("d1", tmp_path, broker.port)
    hardware = Hardware(architecture="x86_64", system="Linux")
    for revision in range(5):
        device.link.report(Reported(agent_version="1", started_at_ms=1, desired_revision=revision, hardware=hardware))
    with running(server, device):
        until(lambda: "d1" in server.reported, "it reports")
        assert server.reported["d1"].desired_revision == 4
    assert server.online["d1"] is False or not device.link.connected
