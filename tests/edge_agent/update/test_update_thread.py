"""The update thread: it retries, watches, and stops."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge_agent.config import UpdateSettings
from edge_agent.contract.messages import Event, EventKind, UpdateStep
from edge_agent.runtime.package import Package
from edge_agent.runtime.slots import LoadedModel, Slots, load
from edge_agent.update.installer import Installer
from edge_agent.update.slots_file import SlotsFile
from edge_agent.update.update_thread import UpdateThread
from tests.edge_agent.update.conftest import Prepared
from tests.fakes.packages import make_package
from tests.fakes.update_server import UpdateServer, hint
from tests.fakes.updating_device import UpdatingDevice


class Agent:
    def __init__(self, state: Path, server: UpdateServer) -> None:
        self.slots, self.events = Slots(), list[Event]()
        self.installer = Installer(state, server.enrolment(), self.slots, self.events.append, load)
        self.installer.start()
        self.thread = UpdateThread(self.installer, watch_s=0.02, retry_s=(0.05, 0.2))


@pytest.fixture
def agent(tmp_path: Path, server: UpdateServer, prepared: Prepared) -> Iterator[Agent]:
    state = tmp_path / "state"
    state.mkdir()
    made = Agent(state, server)
    made.thread.start()
    yield made
    made.thread.stop()
    made.slots.close()


def eventually(condition: Callable[[], bool], timeout_s: float = 30) -> None:
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_submitted_wish_is_installed_watched_and_committed_by_itself(
    tmp_path: Path, server: UpdateServer, agent: Agent
) -> None:
    from edge_agent.contract.manifest import Probation

    package = make_package(tmp_path / "built", version="7", probation=Probation(seconds=0.1))
    server.publisher.publish(package)
    agent.thread.submit(server.assign(package))
    eventually(lambda: any(event.kind is EventKind.UPDATE_COMMITTED for event in agent.events))
    assert agent.slots.get("digits").version == "7"


def test_a_wish_that_cannot_be_met_yet_is_tried_again(
    server: UpdateServer, agent: Agent, first: Package, second: Package
) -> None:
    agent.thread.submit(hint(second, 2))  # the director has not signed it yet
    eventually(lambda: "was announced" in agent.installer.reported().get("digits", _nothing).reason)
    server.assign(second)
    eventually(lambda: agent.installer.reported()["digits"].step is UpdateStep.PROBATION)
    assert agent.slots.get("digits").version == "2"


def test_what_waits_for_chance_comes_when_its_wait_is_over_and_not_at_the_next_retry(
    tmp_path: Path, server: UpdateServer, second: Package
) -> None:
    slots, settings = Slots(), UpdateSettings(jitter_s=0.5)
    (tmp_path / "state").mkdir()
    installer = Installer(tmp_path / "state", server.enrolment(), slots, lambda _event: None, load, settings=settings)
    installer.start()
    thread = UpdateThread(installer, watch_s=0.02, retry_s=(3600.0, 3600.0))
    thread.start()
    thread.submit(server.assign(second))
    eventually(lambda: "digits" in {loaded.name for loaded in slots.models()})
    thread.stop()
    slots.close()


def test_an_unexpected_error_in_one_update_does_not_end_the_thread(
    server: UpdateServer, agent: Agent, second: Package, caplog: pytest.LogCaptureFixture
) -> None:
    broken = threading.Event()
    real = agent.installer.apply

    def apply(desired: object) -> bool:
        if not broken.is_set():
            broken.set()
            raise RuntimeError("a bug")
        return real(desired)  # type: ignore[arg-type]

    agent.installer.apply = apply  # type: ignore[method-assign]
    with caplog.at_level(logging.ERROR):
        agent.thread.submit(server.assign(second))
        eventually(lambda: "digits" in {loaded.name for loaded in agent.slots.models()})
    assert "a bug" in caplog.text


@pytest.fixture
def silent() -> Iterator[tuple[str, threading.Event]]:
    """A server that takes connections and never says a word: its URL, and the event of the first connection."""
    asked, connections = threading.Event(), list[socket.socket]()
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def take() -> None:
            with contextlib.suppress(OSError):  # it is closed
                while True:
                    connections.append(listening.accept()[0])
                    asked.set()

        thread = threading.Thread(target=take, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", asked
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()
    for connection in connections:
        connection.close()


def on_probation(device: UpdatingDevice, server: UpdateServer, second: Package, url: str) -> Installer:
    """An installer that begins anew where a device has version 2 on probation, with a server of that URL."""
    device.apply(server.assign(second))
    device.close()
    device.slots = Slots()
    enrolment = msgspec.structs.replace(server.enrolment(), server=url)
    device.installer = Installer(device.state, enrolment, device.slots, device.events.append, load)
    device.installer.start()
    assert device.reported().step is UpdateStep.PROBATION
    return device.installer


def test_a_stop_while_a_server_keeps_silent_is_quick_and_blames_no_package(
    server: UpdateServer, device: UpdatingDevice, second: Package, silent: tuple[str, threading.Event]
) -> None:
    url, asked = silent
    thread = UpdateThread(on_probation(device, server, second, url), watch_s=0.02)
    thread.start()
    thread.submit(hint(second, 9))
    assert asked.wait(30)
    began = time.monotonic()
    thread.stop()
    assert time.monotonic() - began < 5, "a server has 20 s to say something"
    assert SlotsFile(device.state / "slots.json").get("digits").orderly


def test_a_model_that_fails_is_rolled_back_while_a_server_keeps_silent(
    server: UpdateServer, device: UpdatingDevice, second: Package, silent: tuple[str, threading.Event]
) -> None:
    url, asked = silent
    thread = UpdateThread(on_probation(device, server, second, url), watch_s=0.02)
    thread.start()
    thread.submit(hint(second, 9))
    assert asked.wait(30)
    with device.slots.lease("digits") as loaded:
        for _ in range(1000):
            loaded.statistics.failed(1000)
    eventually(lambda: device.version == "1", timeout_s=10)  # a server has 20 s to say something
    thread.stop()


def test_a_stop_in_the_middle_of_a_long_step_blames_no_package(
    server: UpdateServer, device: UpdatingDevice, second: Package
) -> None:
    loading, go_on = threading.Event(), threading.Event()

    def slowly(package: Package, **more: Any) -> LoadedModel:
        if package.digest == second.digest:
            loading.set()
            go_on.wait(60)
        return load(package, **more)

    device.close()
    device.slots = Slots()
    device.installer = Installer(device.state, server.enrolment(), device.slots, device.events.append, slowly)
    device.installer.start()
    thread = UpdateThread(device.installer, watch_s=0.02)
    thread.start()
    thread.submit(server.assign(second))
    assert loading.wait(30)
    thread.stop(timeout_s=0.1)
    record = SlotsFile(device.state / "slots.json").get("digits")
    go_on.set()
    assert (record.step, record.orderly) == (UpdateStep.STAGED, True)
    eventually(lambda: device.version == "2")


class _Nothing:
    reason = ""


_nothing = _Nothing()
