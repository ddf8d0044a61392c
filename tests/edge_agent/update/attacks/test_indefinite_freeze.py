"""Indefinite freeze: a device is kept on old news, valid once (TUF 1.5.2; Uptane: by one repository alone)."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

from edge_agent.runtime.package import Package
from tests.edge_agent.update.attacks.thief import DIRECTOR_PATH, IMAGE_PATH, recovers, unharmed
from tests.edge_agent.update.conftest import NewDevice
from tests.fakes.packages import make_package
from tests.fakes.update_server import UpdateServer
from tests.fakes.updating_device import UpdatingDevice


def frozen(server: UpdateServer, path: str) -> None:
    """From now on the timestamp of today is all that a repository shows."""
    name = "timestamp.json"
    data = server.director.metadata("camera-1", name) if path == DIRECTOR_PATH else server.images.metadata(name)
    assert data is not None
    server.line.replace[path + name] = data


def test_old_news_of_the_director_is_taken_for_none_and_told_when_it_expires(
    server: UpdateServer, new_device: NewDevice, device: UpdatingDevice, second: Package
) -> None:
    frozen(server, DIRECTOR_PATH)
    desired = server.assign(second)
    assert not device.apply(desired)
    unharmed(device, "release 2 was announced", "has signed 1 so far", refused=False)
    device.close()
    later = new_device(utc_now=lambda: dt.datetime.now(dt.UTC) + dt.timedelta(days=8))
    assert not later.apply(desired)
    unharmed(later, "director", "expired")
    later.close()
    recovers(server, new_device(), desired)


def test_old_news_of_the_image_repository_hides_a_package_and_nothing_else(
    server: UpdateServer, device: UpdatingDevice, second: Package, tmp_path: Path
) -> None:
    third = make_package(tmp_path / "built/3", version="3")
    frozen(server, IMAGE_PATH)
    server.publisher.publish(third)
    desired = server.assign(third)
    assert not device.apply(desired)
    unharmed(device, "digits/3/manifest.json", "image repository does not sign")
    recovers(server, device, desired, version="3")


def test_expired_news_of_the_image_repository_is_told_where_the_director_is_fresh(
    server: UpdateServer, new_device: NewDevice, device: UpdatingDevice, second: Package
) -> None:
    device.close()
    frozen(server, IMAGE_PATH)
    later = dt.datetime.now(dt.UTC) + dt.timedelta(days=8)
    desired = server.assign(second)
    assert server.director.refresh(later) == 1
    one = new_device(utc_now=lambda: later)
    assert not one.apply(desired)
    unharmed(one, "image", "expired")
