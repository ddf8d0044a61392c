"""The installer beside the repository: models that sleep, that a person unloaded, or that do not fit now."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_agent.contract.enrolment import Enrolment
from edge_agent.contract.errors import BudgetExceeded, ModelUnavailable
from edge_agent.contract.messages import Desired, EventKind, UpdateStep
from edge_agent.runtime.budget import MemoryBudget
from edge_agent.runtime.catalogue import Catalogue
from edge_agent.runtime.optimised import OptimisedModels
from edge_agent.runtime.package import Package
from edge_agent.runtime.repository import Repository
from edge_agent.runtime.slots import ModelState, Slots
from edge_agent.update.installer import Installer
from tests.fakes.large_package import MIB, make_large_package
from tests.fakes.packages import INPUT, OUTPUT, PIXELS, make_package
from tests.fakes.pipeline_package import make_pipeline_package, make_scaler_package
from tests.fakes.update_server import UpdateServer, update_server


class Device:
    """An installer and a repository as the agent puts them together, started."""

    def __init__(self, state: Path, enrolment: Enrolment | None, **settings: Any) -> None:
        state.mkdir(parents=True, exist_ok=True)
        self.state, self.now_s = state, 1000.0
        self.events: list[EventKind] = []
        self.slots = Slots()
        cache = OptimisedModels(state / "optimised", own=state)
        self.repository = Repository(self.slots, Catalogue(state / "models"), cache=cache, **settings)
        self.installer = Installer(
            state, enrolment, self.slots, lambda event: self.events.append(event.kind), self.repository.prepare,
            serve=self.repository.serve, monotonic=lambda: self.now_s,
        )  # fmt: skip
        self.repository.follow(self.installer)
        self.installer.start()
        self.repository.start()

    def watch(self, seconds: float = 3600.0) -> None:
        self.now_s += seconds
        self.installer.watch()

    def update(self, desired: Desired) -> None:
        self.installer.apply(desired)
        self.watch()
        assert self.installer.apply(desired), self.installer.reported()

    def sleep(self, model: str = "digits") -> None:
        loaded = self.slots.get(model)
        assert self.slots.unload(model, reason="idle", idle_since=loaded.last_used)

    def infer(self) -> Any:
        with self.slots.lease("digits") as loaded:
            return loaded.backend.infer({INPUT: np.full((1, PIXELS), 0.5, np.float32)})[OUTPUT]

    def states(self) -> dict[str, ModelState]:
        return {f"{entry.name} {entry.version}": entry.state for entry in self.repository.index()}

    def close(self) -> None:
        self.installer.close()
        self.repository.close()
        self.slots.close()


@pytest.fixture
def new_device(tmp_path: Path) -> Iterator[Callable[..., Device]]:
    made: list[Device] = []

    def new(enrolment: Enrolment | None = None, **settings: Any) -> Device:
        made.append(Device(tmp_path / "state", enrolment, **settings))
        return made[-1]

    yield new
    for device in made:
        device.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[UpdateServer]:
    with update_server(tmp_path / "server") as running:
        yield running


def _published(server: UpdateServer, folder: Path, *versions: str) -> list[Package]:
    packages = [make_package(folder / version, version=version, seed=int(version)) for version in versions]
    for package in packages:
        server.publisher.publish(package)
    return packages


def _published_large(server: UpdateServer, folder: Path, *versions: str) -> list[Package]:
    """Versions of "digits" with 4 MiB of weights."""
    packages = [
        make_large_package(folder / version, name="digits", version=version, seed=int(version), weights_mib=4)
        for version in versions
    ]
    for package in packages:
        server.publisher.publish(package)
    return packages


def test_a_model_on_probation_that_a_person_unloads_is_watched_and_reported_with_its_counts(
    server: UpdateServer, tmp_path: Path, new_device: Callable[..., Device]
) -> None:
    first, second = _published(server, tmp_path / "built", "1", "2")
    device = new_device(server.enrolment())
    device.update(server.assign(first))
    device.installer.apply(server.assign(second))
    assert device.states() == {"digits 1": ModelState.UNLOADED, "digits 2": ModelState.READY}
    for _ in range(2):
        device.slots.get("digits").statistics.answered(1, 1, 1, 1)
    device.slots.get("digits").statistics.failed(1000)
    device.repository.unload("digits")
    reported = device.installer.reported()["digits"]
    assert (reported.version, reported.requests, reported.failed) == ("2", 3, 1)
    device.watch(0.1)
    assert device.installer.reported()["digits"].step is UpdateStep.FAILED
    assert device.slots.get("digits").version == "1", "rolled back, and so loaded"
    assert device.states() == {"digits 1": ModelState.READY}


def test_a_sleeping_model_is_reported_updated_and_woken_with_its_counts(
    server: UpdateServer, tmp_path: Path, new_device: Callable[..., Device]
) -> None:
    first, second = _published(server, tmp_path / "built", "1", "2")
    device = new_device(server.enrolment())
    device.update(server.assign(first))
    device.slots.get("digits").statistics.failed(1000)
    device.sleep()
    reported = device.installer.reported()["digits"]
    assert (reported.version, reported.package, reported.requests, reported.failed) == ("1", first.digest, 1, 1)
    device.repository.wake("digits")
    assert device.installer.reported()["digits"].requests == 1
    device.sleep()
    device.update(server.assign(second))
    assert device.slots.get("digits").version == "2"
    assert device.states() == {"digits 2": ModelState.READY}


def test_the_last_known_good_version_can_be_loaded_beside_the_one_on_probation_and_serves_on_after_a_roll_back(
    server: UpdateServer, tmp_path: Path, new_device: Callable[..., Device]
) -> None:
    first, second = _published(server, tmp_path / "built", "1", "2")
    device = new_device(server.enrolment())
    device.update(server.assign(first))
    before = device.infer()
    device.installer.apply(server.assign(second))
    beside = device.repository.load("digits", "1")
    assert device.slots.get("digits").version == "2"
    device.slots.get("digits").statistics.failed(1000)
    device.watch(0.1)
    assert device.slots.versions("digits") == ["1"]
    np.testing.assert_array_equal(device.infer(), before)
    assert beside.retired, "the installer has loaded it anew"


def test_an_installed_model_that_does_not_fit_a_new_budget_stays_installed_and_says_why(
    tmp_path: Path, new_device: Callable[..., Device]
) -> None:
    package = make_large_package(tmp_path / "large", weights_mib=4)
    device = new_device()
    device.installer.preinstall(package.folder)
    device.close()
    poor = new_device(memory=MemoryBudget(2 * MIB))
    assert poor.states() == {"large 1": ModelState.UNAVAILABLE}
    with pytest.raises(ModelUnavailable, match=r"needs about 7\.0 MiB"):
        poor.slots.get("large")
    with pytest.raises(BudgetExceeded):
        poor.repository.load("large")
    assert EventKind.ROLLED_BACK not in poor.events
    assert poor.installer.reported()["large"].package == package.digest
    poor.close()
    rich = new_device(memory=MemoryBudget(64 * MIB))
    assert rich.states() == {"large 1": ModelState.READY}


def test_going_back_is_not_refused_for_lack_of_memory(
    server: UpdateServer, tmp_path: Path, new_device: Callable[..., Device]
) -> None:
    packages = [
        make_large_package(
            tmp_path / "built" / version, name="digits", version=version, seed=int(version), weights_mib=4
        )
        for version in ("1", "2")
    ]
    for package in packages:
        server.publisher.publish(package)
    budget = MemoryBudget(64 * MIB)
    device = new_device(server.enrolment(), memory=budget)
    device.update(server.assign(packages[0]))
    device.installer.apply(server.assign(packages[1]))
    budget.limit_bytes = budget.used_bytes  # as if another model had been loaded since
    device.slots.get("digits").statistics.failed(1000)
    device.watch(0.1)
    assert device.slots.get("digits").version == "1"
    assert len(list((device.state / "optimised").iterdir())) == 1, "the bad one's optimised model is gone"


def test_an_update_that_does_not_fit_is_not_held_against_the_package(
    server: UpdateServer, tmp_path: Path, new_device: Callable[..., Device]
) -> None:
    packages = [
        make_large_package(
            tmp_path / "built" / version, name="digits", version=version, seed=int(version), weights_mib=4
        )
        for version in ("1", "2")
    ]
    for package in packages:
        server.publisher.publish(package)
    budget = MemoryBudget(10 * MIB)
    device = new_device(server.enrolment(), memory=budget)
    device.update(server.assign(packages[0]))
    desired = server.assign(packages[1])
    assert not device.installer.apply(desired), "it is tried again later"
    reported = device.installer.reported()["digits"]
    assert (reported.step, reported.version) == (UpdateStep.FAILED, "1")
    assert "it would fit without version '1'" in reported.reason
    budget.limit_bytes = 64 * MIB
    device.update(desired)
    assert device.slots.get("digits").version == "2"


def test_an_update_that_cannot_be_written_down_gives_its_memory_back(
    server: UpdateServer, tmp_path: Path, new_device: Callable[..., Device]
) -> None:
    first, second = _published_large(server, tmp_path / "built", "1", "2")
    memory = MemoryBudget()
    device = new_device(server.enrolment(), memory=memory)
    device.update(server.assign(first))
    before, obstacle = memory.used_bytes, device.state / ".slots.json.new"
    assert before > 0

    def spoil(_model: str, step: UpdateStep) -> None:
        if step is UpdateStep.STAGED:
            obstacle.mkdir()

    device.installer._journal._after_step = spoil
    desired = server.assign(second)
    for _ in range(2):
        assert not device.installer.apply(desired)
        obstacle.rmdir()
    assert memory.used_bytes == before
    assert device.slots.get("digits").version == "1"
    device.installer._journal._after_step = lambda _model, _step: None
    device.update(desired)
    assert device.slots.get("digits").version == "2"


def test_installed_pipelines_start_after_their_steps_also_where_these_come_from_the_folder(
    tmp_path: Path, new_device: Callable[..., Device]
) -> None:
    device = new_device()
    for package in (make_package(tmp_path / "digits"), make_scaler_package(tmp_path / "scaler")):
        device.installer.preinstall(package.folder)
    device.installer.preinstall(make_pipeline_package(tmp_path / "a-reader").folder)
    device.close()
    # As if the pipeline had been installed first: the journal keeps the order of installation.
    journal = device.state / "slots.json"
    again = new_device()
    assert set(again.states().values()) == {ModelState.READY}
    again.close()
    text = journal.read_text()
    assert text.index('"digits"') < text.index('"reader"')
    records = json.loads(text)
    scaler = records["models"].pop("scaler")
    records["models"] = dict(reversed(records["models"].items()))
    del records["sha256"]  # as a person leaves it who has changed something
    journal.write_text(json.dumps(records))
    assert scaler
    make_scaler_package(device.state / "models/scaler")
    mixed = new_device()
    assert mixed.states() == {
        "digits 1": ModelState.READY, "reader 1": ModelState.READY, "scaler 1": ModelState.READY,
    }  # fmt: skip
    assert EventKind.ROLLED_BACK not in mixed.events
    assert mixed.slots.default_version("reader") == "1"
