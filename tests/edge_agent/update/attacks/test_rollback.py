"""Rollback: a device is to go back to what it had, or to metadata it has seen newer (TUF 1.5.2)."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_agent.runtime.package import Package
from fleet_server.updates.director import load_signer
from tests.edge_agent.update.attacks.thief import (
    DIRECTOR_PATH,
    IMAGE_PATH,
    director_files,
    recovers,
    target,
    unharmed,
)
from tests.fakes.packages import make_package
from tests.fakes.update_server import UpdateServer, hint
from tests.fakes.updating_device import UpdatingDevice
from trainer.publish.keys import DIRECTOR


@pytest.mark.parametrize("path", [DIRECTOR_PATH, IMAGE_PATH])
def test_metadata_older_than_seen_is_refused(
    server: UpdateServer, device: UpdatingDevice, second: Package, path: str, tmp_path: Path
) -> None:
    name = "timestamp.json"
    old = server.director.metadata("camera-1", name) if path == DIRECTOR_PATH else server.images.metadata(name)
    assert old is not None
    third = make_package(tmp_path / "built/3", version="3")
    server.publisher.publish(third)
    device.update(server.assign(third))
    desired = server.assign(second)
    server.line.replace[path + name] = old
    assert not device.apply(desired)
    unharmed(device, "must be >=", version="3")
    recovers(server, device, desired)


def test_a_release_that_is_older_than_seen_is_refused_though_its_metadata_is_newer(
    server: UpdateServer, device: UpdatingDevice, first: Package, second: Package
) -> None:
    device.update(server.assign(second, release=5))
    server.line.replace |= director_files(load_signer(server.keys.path(DIRECTOR)), 7, target(first, release=4))
    assert not device.apply(hint(first, 6))
    unharmed(device, "release 4 of digits is older than release 5", version="2")
    server.line.leave()
    for release in range(6, 12):  # past the thief's version
        desired = server.assign(first if release % 2 else second, release=release)
    recovers(server, device, desired, version="1")


def test_an_older_root_is_refused_even_where_the_newer_one_here_is_damaged(
    server: UpdateServer, device: UpdatingDevice, second: Package
) -> None:
    enrolled = server.enrolment()
    server.signing.renew()
    server.publisher.refresh()
    device.update(server.assign(second))
    device.close()
    history = device.state / "trust/image/root_history"
    assert sorted(path.name for path in history.iterdir()) == ["1.root.json", "2.root.json", "anchor"]
    (history / "2.root.json").write_bytes(b"a bit flipped")
    first = server.images.metadata("1.root.json")
    assert first is not None
    again = UpdatingDevice(device.state, enrolled)
    desired = server.assign(second, release=9)

    async def hides(_path: str, send: object) -> None:
        await send({"type": "http.response.start", "status": 404, "headers": []})  # type: ignore[operator]
        await send({"type": "http.response.body", "body": b""})  # type: ignore[operator]

    server.line.answers[f"{IMAGE_PATH}2.root.json"] = hides
    assert not again.apply(desired)
    unharmed(again, "root version 1 is older than version 2, seen before", version="2")
    recovers(server, again, desired)
    again.close()
