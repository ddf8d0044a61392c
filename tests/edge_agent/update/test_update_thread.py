"""The update thread: it retries, watches, and stops."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edge_agent.config import UpdateSettings
from edge_agent.contract.messages import Event, EventKind, UpdateStep
from edge_agent.runtime.package import Package
from edge_agent.runtime.slots import Slots, load
from edge_agent.update.installer import Installer
from edge_agent.update.update_thread import UpdateThread
from tests.edge_agent.update.conftest import Prepared
from tests.fakes.packages import make_package
from tests.fakes.update_server import UpdateServer, hint


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


class _Nothing:
    reason = ""


_nothing = _Nothing()
