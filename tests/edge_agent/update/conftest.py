"""A server with two releases, and devices that close at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_agent.runtime.package import Package
from tests.fakes.packages import make_package
from tests.fakes.update_server import UpdateServer, update_server
from tests.fakes.updating_device import UpdatingDevice

NewDevice = Callable[..., UpdatingDevice]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[UpdateServer]:
    with update_server(tmp_path / "server") as running:
        yield running


@pytest.fixture
def first(tmp_path: Path) -> Package:
    return make_package(tmp_path / "built/1", version="1", seed=1)


@pytest.fixture
def second(tmp_path: Path) -> Package:
    return make_package(tmp_path / "built/2", version="2", seed=2)


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
def device(server: UpdateServer, new_device: NewDevice, first: Package, second: Package) -> UpdatingDevice:
    """A device that serves version 1, committed; version 2 is published, but not assigned."""
    server.publisher.publish(first)
    server.publisher.publish(second)
    installed = new_device()
    installed.update(server.assign(first))
    assert installed.version == "1"
    return installed
