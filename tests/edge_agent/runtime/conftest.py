"""A repository over a folder of real packages."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_agent.runtime.catalogue import Catalogue, Known
from edge_agent.runtime.package import Package
from edge_agent.runtime.repository import Policy, Repository
from edge_agent.runtime.slots import IndexEntry, LoadedModel, Slots
from tests.fakes.packages import make_package


@dataclasses.dataclass
class Device:
    """A repository over the folder ``models``."""

    slots: Slots
    repository: Repository
    models: Path

    def add(self, version: str, *, folder: str = "", name: str = "digits", **settings: Any) -> Package:
        place = self.models / (folder or f"{name}-{version}")
        return make_package(place, version=version, name=name, **{"seed": int(version[0]), **settings})

    def exchange(self, folder: str, package: Package) -> None:
        """Put a package in another's place, as a person would."""
        shutil.rmtree(self.models / folder, ignore_errors=True)
        shutil.copytree(package.folder, self.models / folder)

    def entry(self, version: str = "1", name: str = "digits") -> IndexEntry:
        return next(each for each in self.repository.index() if (each.name, each.version) == (name, version))

    def states(self) -> dict[str, str]:
        return {f"{entry.name} {entry.version}": entry.state.value for entry in self.repository.index()}


NewDevice = Callable[..., Device]


@pytest.fixture
def new_device(tmp_path: Path) -> Iterator[NewDevice]:
    made: list[Device] = []

    def new(policy: Policy = "latest", **settings: Any) -> Device:
        slots = Slots()
        repository = Repository(slots, Catalogue(tmp_path / "models"), policy=policy, **settings)
        made.append(Device(slots, repository, tmp_path / "models"))
        return made[-1]

    yield new
    for device in made:
        device.repository.close()
        device.slots.close()


@pytest.fixture
def device(new_device: NewDevice) -> Device:
    return new_device()


class Fleet:
    """What an installer would say."""

    def __init__(self, *packages: Known) -> None:
        self.packages = list(packages)

    def installed(self) -> list[Known]:
        return self.packages


def put_to_sleep(device: Device, model: str = "digits") -> LoadedModel:
    loaded = device.slots.get(model)
    assert device.slots.unload(model, loaded.version, reason="idle", idle_since=loaded.last_used) is loaded
    return loaded
