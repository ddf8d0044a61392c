"""The link's thread outlives every error, and waits longer between attempts that come to nothing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_agent.contract.envelope import encode
from edge_agent.contract.messages import Desired
from edge_agent.contract.topics import Stream
from edge_agent.link import connection, link
from edge_agent.link.backoff import Backoff
from tests.integration.devices_and_server import Device, Embedded, Server, one_event, running, until


@pytest.fixture
def broker() -> Iterator[Embedded]:
    made = Embedded()
    made.start()
    yield made
    made.stop()


def test_an_unexpected_error_in_the_link_does_not_cut_the_device_off(
    broker: Embedded, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server, device = Server(tmp_path, broker.port), Device("d1", tmp_path, broker.port)
    taken: list[Desired] = []

    def on_desired(desired: Desired) -> None:
        taken.append(desired)
        if len(taken) == 1:
            raise RuntimeError("a bug")

    device.link._on_desired = on_desired
    with caplog.at_level(logging.ERROR, logger="edge_agent.link"), running(server, device):
        until(lambda: device.link.connected, "it is linked")
        topic = device.link._topics.desired
        server.link.publish(topic, encode(Desired(revision=1)), retain=True)
        until(lambda: len(taken) == 2, "the wish comes again on a new connection")
        until(lambda: device.link.connected, "it is linked again")
    assert "a bug" in caplog.text


def test_a_broker_that_takes_the_connection_and_never_lets_us_in_is_asked_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(connection, "_READY_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        device = Device("d1", tmp_path, listener.getsockname()[1])
        device.link._backoff = Backoff(0.01, 0.02)
        device.link._keepalive_s = 1  # how often it looks
        device.start()
        taken = []
        for _ in range(3):
            taken.append(listener.accept()[0])
            taken[-1].sendall(b"\x20\x02\x00\x00")  # CONNACK, and no answer to SUBSCRIBE ever
        device.stop()
        for each in taken:
            each.close()
    assert "has not let us in within" in caplog.text


def test_attempts_that_never_led_to_a_link_do_not_begin_the_backoff_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long they take: a network that swallows packets lets each attempt hang for ten seconds."""
    monkeypatch.setattr(link, "_STEADY_S", -1.0)
    device = Device("d1", tmp_path, 1)
    device.link._backoff = backoff = Backoff(0.01, 0.02)
    device.start()
    until(lambda: backoff._attempts >= 5, "five attempts")
    device.stop()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "_DEAF_S", 0.05)


@pytest.mark.usefixtures("impatient")
def test_a_connection_over_which_no_acknowledgement_comes_is_opened_anew(
    broker: Embedded, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server, device = Server(tmp_path, broker.port), Device("d1", tmp_path, broker.port)
    assert broker.broker is not None
    deaf, loop = broker.broker._broker, broker.broker._loop
    with running(server, device):
        until(lambda: device.link.connected, "it is linked")
        assert loop is not None
        # What the broker has of the device's subscriptions is lost, as it was to a bug of one.
        session = deaf._sessions["d1"][0]
        asyncio.run_coroutine_threadsafe(deaf._del_all_subscriptions(session), loop).result(20)
        with caplog.at_level(logging.WARNING, logger="edge_agent.link"):
            device.sample(1)
            device.outbox.append(Stream.EVENTS, one_event())  # which falls due together with it
            until(device.all_acknowledged, "both are acknowledged all the same")
    assert "connecting anew" in caplog.text


@pytest.mark.usefixtures("impatient")
def test_while_the_server_is_away_it_connects_anew_ever_later_whatever_the_broker_has_kept(
    broker: Embedded, tmp_path: Path
) -> None:
    server, device = Server(tmp_path, broker.port), Device("d1", tmp_path, broker.port)
    with running(server):
        until(lambda: server.link.connected, "the server is linked")
        server.link.publish(device.link._topics.desired, encode(Desired(revision=1)), retain=True)
        device.sample(1)
        device.start()
        until(device.all_acknowledged, "all is well")
    device.sample(1)
    least_s = device.link._patient_s
    until(lambda: len(device.desired) >= 3, "it has connected anew twice, and each time heard what is retained")
    assert device.link._patient_s > 3 * least_s
    window_s = device.link._windows[Stream.SAMPLES]._current_timeout_s
    assert window_s > 1.0, "and sends no sooner than it did"
    device.stop()


@pytest.mark.usefixtures("impatient")
def test_a_line_that_is_slow_is_given_its_time(
    broker: Embedded, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = Server(tmp_path, broker.port)
    with running(server), Line(broker.port) as line:
        device = Device("d1", tmp_path, line.port)
        with running(device), caplog.at_level(logging.INFO, logger="edge_agent.link"):
            until(lambda: device.link.connected, "it is linked")
            line.open.clear()
            device.sample(1)
            until(lambda: caplog.text.count("sending again") == 2, "it has sent again twice")
            line.open.set()
            until(device.all_acknowledged, "it has arrived")
    assert "connecting anew" not in caplog.text


class Line:
    """A line to a broker that holds back what a device sends while it is not open."""

    def __init__(self, broker: int) -> None:
        self._broker, self._listener = broker, socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.open = threading.Event()
        self.open.set()
        self._ends: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]

    def __enter__(self) -> Line:  # noqa: PYI034  Python 3.10 has no typing.Self
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self.open.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        for end in self._ends:
            with contextlib.suppress(OSError):  # it has ended already
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(20)
        for end in (*self._ends, self._listener):
            end.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # the end
            while True:
                device = self._listener.accept()[0]
                broker = socket.create_connection(("127.0.0.1", self._broker))
                self._ends += [device, broker]
                for ends in ((device, broker, True), (broker, device, False)):
                    self._threads.append(threading.Thread(target=self._carry, args=ends))
                    self._threads[-1].start()

    def _carry(self, here: socket.socket, there: socket.socket, held: bool) -> None:
        with contextlib.suppress(OSError):  # one of the ends has ended
            while data := here.recv(4096):
                if held:
                    self.open.wait()
                there.sendall(data)
            there.shutdown(socket.SHUT_WR)
