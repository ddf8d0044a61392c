"""Vulnerability to key compromises: what each stolen key can do, and what it cannot (docs/security.md)."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest
from securesystemslib.signer import Signer
from tuf.api.metadata import DelegatedRole, Delegations, MetaFile, TargetFile, Targets

from edge_agent.contract.messages import EventKind
from edge_agent.contract.repository import Assignment, target_name
from edge_agent.runtime.package import Package
from fleet_server.updates.director import load_signer
from tests.edge_agent.update.attacks.thief import (
    DIRECTOR_PATH,
    IMAGE_PATH,
    director_files,
    image_files,
    recovers,
    retaken,
    signed_by,
    target,
    unharmed,
)
from tests.fakes.packages import make_package
from tests.fakes.update_server import UpdateServer, hint, update_server
from tests.fakes.updating_device import UpdatingDevice
from trainer.publish.keys import DIRECTOR, model_key


@pytest.fixture
def director_key(server: UpdateServer) -> Signer:
    return load_signer(server.keys.path(DIRECTOR))


@pytest.fixture
def evil(tmp_path: Path) -> Package:
    return make_package(tmp_path / "evil", version="66", seed=66)


def test_a_stolen_director_key_cannot_bring_a_package_of_its_own(
    server: UpdateServer, device: UpdatingDevice, second: Package, evil: Package, director_key: Signer
) -> None:
    server.line.replace |= director_files(director_key, 2, target(evil))
    assert not device.apply(hint(evil, 2))
    unharmed(device, "image repository does not sign")
    retaken(server, device, second)


def test_a_stolen_director_key_cannot_delegate(
    server: UpdateServer, device: UpdatingDevice, second: Package, director_key: Signer
) -> None:
    key = director_key.public_key
    role = DelegatedRole("digits", [key.keyid], 1, terminating=True, paths=["digits/*/manifest.json"])
    delegations = Delegations(keys={key.keyid: key}, roles={"digits": role})
    server.line.replace |= director_files(director_key, 2, delegations=delegations)
    assert not device.apply(hint(second, 2))
    unharmed(device, "delegates")
    retaken(server, device, second)


def test_a_stolen_publisher_key_alone_releases_nothing(
    server: UpdateServer, device: UpdatingDevice, second: Package, evil: Package, director_key: Signer
) -> None:
    """It needs the keys of snapshot and timestamp as well, and a director that names the package."""
    role = server.signing.store.roles()["digits"]
    role.targets[target(evil).path] = TargetFile(target(evil).length, target(evil).hashes, target(evil).path)
    forged = signed_by(role, server.keys.signer(model_key("digits")))  # the version that the snapshot names
    role.version += 1
    newer = signed_by(role, server.keys.signer(model_key("digits")))
    (device.state / "trust/image/digits.json").unlink()  # as on a device that has never seen the true one
    server.line.replace |= director_files(director_key, 2, target(evil))
    for version, data in ((role.version - 1, forged), (role.version, newer)):
        server.line.replace[f"{IMAGE_PATH}{version}.digits.json"] = data
        assert not device.apply(hint(evil, 2))
        unharmed(device, "image")
    retaken(server, device, second)


def test_a_stolen_publisher_key_releases_no_other_model(tmp_path: Path, first: Package, second: Package) -> None:
    with update_server(tmp_path / "server", models=("digits", "faces")) as server:
        for package in (first, second):
            server.publisher.publish(package)
        device = UpdatingDevice(tmp_path / "device", server.enrolment())
        device.update(server.assign(first))
        evil = make_package(tmp_path / "evil", version="66", seed=66)
        role = server.signing.store.roles()["faces"]
        role.targets[target(evil).path] = TargetFile(target(evil).length, target(evil).hashes, target(evil).path)
        role.version += 1
        faces = f"{IMAGE_PATH}{role.version}.faces.json"
        server.line.replace[faces] = signed_by(role, server.keys.signer(model_key("faces")))
        server.line.replace |= image_files(server, 90, {"faces.json": MetaFile(role.version)})
        assert not device.apply(server.assign(evil))
        unharmed(device, "digits/66/manifest.json", "image repository does not sign")
        assert server.line.asked(faces) == [], "the role is not even asked: its paths are others"
        device.close()


def test_all_of_a_publishers_keys_together_release_a_model_only_through_a_director(
    server: UpdateServer, device: UpdatingDevice, second: Package, evil: Package
) -> None:
    role = server.signing.store.roles()["digits"]
    role.targets[target(evil).path] = TargetFile(target(evil).length, target(evil).hashes, target(evil).path)
    role.version += 1
    signed = signed_by(role, server.keys.signer(model_key("digits")))
    server.line.replace[f"{IMAGE_PATH}{role.version}.digits.json"] = signed
    server.line.replace |= image_files(server, 90, {"digits.json": MetaFile(role.version)})
    assert not device.apply(hint(evil, 2))
    unharmed(device, "release 2 was announced", refused=False)


def test_stolen_snapshot_and_timestamp_keys_can_withhold_and_nothing_else(
    server: UpdateServer, device: UpdatingDevice, second: Package, tmp_path: Path
) -> None:
    third = make_package(tmp_path / "built/3", version="3")
    meta = {"digits.json": MetaFile(server.signing.store.roles()["digits"].version)}
    server.publisher.publish(third)
    server.line.replace |= image_files(server, 90, meta)  # as if the third had never been released
    assert not device.apply(server.assign(third))
    unharmed(device, "image repository does not sign")
    device.update(server.assign(second))
    assert device.version == "2", "what was released before is still to be had"


def test_a_stolen_server_can_choose_among_released_packages_and_withhold(
    server: UpdateServer, device: UpdatingDevice, second: Package, evil: Package, director_key: Signer
) -> None:
    """It has the director's key, all files, and answers as it likes; it has no key of the image repository."""
    digest = second.digest
    device.update(server.assign(second))
    until = dt.datetime.now(dt.UTC).replace(microsecond=0) + dt.timedelta(days=1)
    own = Targets(9, expires=until, targets={target(evil).path: target(evil)})
    server.line.replace |= director_files(director_key, 5, target(evil, release=7))
    server.line.replace |= {f"{IMAGE_PATH}9.digits.json": signed_by(own, director_key)}
    assert not device.apply(hint(evil, 7))
    unharmed(device, "image repository does not sign", version="2")
    assert not device.told(EventKind.UPDATE_COMMITTED) or device.reported().package == digest
    server.line.answers["/updates/"] = _nothing
    assert not device.apply(hint(evil, 8))
    unharmed(device, version="2", refused=False)


def test_a_stolen_secret_of_a_device_signs_nothing(
    server: UpdateServer, device: UpdatingDevice, second: Package
) -> None:
    """Whoever has camera-2's secret gets camera-2's metadata, which no other device takes."""
    server.director.assign(
        "camera-2", target_name("digits", "2"), target(second).length, second.digest,
        Assignment(device="camera-2", release=2),
    )  # fmt: skip
    for name in ("timestamp.json", "1.snapshot.json", "1.targets.json"):
        data = server.director.metadata("camera-2", name)
        assert data is not None
        server.line.replace[DIRECTOR_PATH + name] = data
    assert not device.apply(hint(second, 2))
    assert device.version == "1"
    recovers(server, device, server.assign(second))


async def _nothing(_path: str, send: object) -> None:
    await send({"type": "http.response.start", "status": 404, "headers": []})  # type: ignore[operator]
    await send({"type": "http.response.body", "body": b""})  # type: ignore[operator]
