"""A server with two releases, and devices that close at the end."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_agent.runtime.package import Package
from tests.fakes.packages import make_package
from tests.fakes.update_server import UpdateServer, update_server
from tests.fakes.updating_device import UpdatingDevice

NewDevice = Callable[..., UpdatingDevice]


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Folders that tests copy: a server that shows both versions, and a device that runs the first."""

    server: Path
    state: Path
    first: Package
    second: Package


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("prepared")
    first = make_package(folder / "built/1", version="1", seed=1)
    second = make_package(folder / "built/2", version="2", seed=2)
    with update_server(folder / "server") as server:
        server.publisher.publish(first)
        server.publisher.publish(second)
        device = UpdatingDevice(folder / "state", server.enrolment())
        device.update(server.assign(first))
        device.close()
    return Prepared(folder / "server", folder / "state", first, second)


@pytest.fixture
def first(prepared: Prepared) -> Package:
    return prepared.first


@pytest.fixture
def second(prepared: Prepared) -> Package:
    return prepared.second


@pytest.fixture
def server(tmp_path: Path, prepared: Prepared) -> Iterator[UpdateServer]:
    """Shows versions 1 and 2; its director has assigned 1 to camera-1, as release 1."""
    shutil.copytree(prepared.server, tmp_path / "server")
    with update_server(tmp_path / "server") as running:
        yield running


@pytest.fixture
def new_device(tmp_path: Path, server: UpdateServer) -> Iterator[NewDevice]:
    """Makes devices; a second one of the same name is the first after a restart."""
    made: list[UpdatingDevice] = []

    def new(name: str = "camera-1", **settings: Any) -> UpdatingDevice:
        device = UpdatingDevice(tmp_path / "devices" / name, server.enrolment(name), **settings)
        made.append(device)
        return device

    yield new
    for device in made:
        device.close()


@pytest.fixture
def device(tmp_path: Path, prepared: Prepared, new_device: NewDevice) -> UpdatingDevice:
    """camera-1, which serves version 1, committed; version 2 is published, but not assigned."""
    shutil.copytree(prepared.state, tmp_path / "devices/camera-1", symlinks=True)
    installed = new_device()
    assert installed.version == "1"
    return installed
