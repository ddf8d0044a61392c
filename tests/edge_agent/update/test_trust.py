"""What a device refuses, with the reason it reports, while the old model serves on."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import sqlite3
from pathlib import Path

import pytest
from tuf.api.metadata import DelegatedRole, Delegations, Metadata, MetaFile, Snapshot, TargetFile, Targets, Timestamp

from edge_agent.contract.messages import EventKind, UpdateStep
from edge_agent.contract.repository import Assignment, blob_path, director_metadata_path, target_name
from edge_agent.runtime.package import Package
from fleet_server.updates.director import Director, load_signer
from tests.edge_agent.update.conftest import NewDevice
from tests.fakes.packages import make_package
from tests.fakes.update_server import UpdateServer, hint, update_server
from tests.fakes.updating_device import UpdatingDevice
from trainer.publish.image_signing import ImageSigning
from trainer.publish.keys import DIRECTOR, KeyFolder

DIRECTOR_PATH = director_metadata_path("camera-1")


def assert_metadata_refused(device: UpdatingDevice, *words: str) -> None:
    """Refused, reported, and version 1 serves on."""
    (event,) = device.told(EventKind.METADATA_REFUSED)
    for word in words:
        assert word in event.reason
    assert device.reported().step is UpdateStep.FAILED
    assert device.reported().reason == event.reason
    assert device.version == "1"
    assert device.infer().shape == (1, 10)


def test_a_tampered_file_is_refused_deleted_and_not_fetched_again(
    server: UpdateServer, device: UpdatingDevice, first: Package, second: Package
) -> None:
    desired = server.assign(second)
    model = second.manifest.files["model.onnx"]
    server.line.replace[blob_path(model.sha256)] = bytes(model.size_bytes)
    assert device.apply(desired)
    assert (device.version, device.reported().step) == ("1", UpdateStep.FAILED)
    assert f"expected sha256 {model.sha256[:12]}" in device.reported().reason
    assert device.packages() == {first.digest}
    assert device.apply(desired)
    assert len(server.line.asked(blob_path(model.sha256))) == 1


def test_a_file_longer_than_signed_is_cut_off_and_refused(
    server: UpdateServer, device: UpdatingDevice, second: Package
) -> None:
    desired = server.assign(second)
    model = second.manifest.files["model.onnx"]
    server.line.replace[blob_path(model.sha256)] = bytes(50_000_000)
    before = device.installer.bytes_down
    assert device.apply(desired)
    assert device.reported().step is UpdateStep.FAILED
    assert device.installer.bytes_down - before < 1_000_000


def test_a_tampered_manifest_is_refused(server: UpdateServer, device: UpdatingDevice, second: Package) -> None:
    desired = server.assign(second)
    data = (second.folder / "manifest.json").read_bytes()
    server.line.replace[blob_path(second.digest)] = data.replace(b'"seed": 2', b'"seed": 3')
    assert device.apply(desired)
    assert (device.version, device.reported().step) == ("1", UpdateStep.FAILED)


@pytest.mark.parametrize("file", ["timestamp.json", "2.snapshot.json", "2.targets.json"])
def test_tampered_director_metadata_is_refused(
    server: UpdateServer, device: UpdatingDevice, second: Package, file: str
) -> None:
    desired = server.assign(second)
    data = server.director.metadata("camera-1", file)
    assert data is not None
    tampered = json.loads(data)
    tampered["signed"]["expires"] = "2099-01-01T00:00:00Z"
    server.line.replace[DIRECTOR_PATH + file] = json.dumps(tampered).encode()
    assert not device.apply(desired)
    assert_metadata_refused(device, "director")


def test_tampered_image_metadata_is_refused(
    server: UpdateServer, device: UpdatingDevice, second: Package, tmp_path: Path
) -> None:
    third = make_package(tmp_path / "built/3", version="3")
    server.publisher.publish(third)
    desired = server.assign(third)
    data = server.images.metadata("timestamp.json")
    assert data is not None
    tampered = json.loads(data)
    tampered["signed"]["version"] += 1
    server.line.replace["/updates/image/timestamp.json"] = json.dumps(tampered).encode()
    assert not device.apply(desired)
    assert_metadata_refused(device, "image")
    server.line.replace.clear()
    device.update(desired)
    assert device.version == "3", "when the tampering ends, the update goes on by itself"


def test_expired_metadata_is_refused_and_told_once(
    server: UpdateServer, new_device: NewDevice, device: UpdatingDevice, second: Package
) -> None:
    desired = server.assign(second)
    device.close()
    later = new_device(utc_now=lambda: dt.datetime.now(dt.UTC) + dt.timedelta(days=8))
    assert not later.apply(desired)
    assert not later.apply(desired)
    assert_metadata_refused(later, "director", "expired")


def test_expired_image_metadata_is_refused_where_the_director_is_fresh(
    server: UpdateServer, new_device: NewDevice, device: UpdatingDevice, second: Package
) -> None:
    device.close()
    later = dt.datetime.now(dt.UTC) + dt.timedelta(days=8)
    desired = server.assign(second)
    assert server.director.refresh(later) == 1
    refused = new_device(utc_now=lambda: later)
    assert not refused.apply(desired)
    assert_metadata_refused(refused, "image", "expired")


def test_a_clock_that_went_back_does_not_make_expired_metadata_fresh(
    tmp_path: Path, first: Package, second: Package
) -> None:
    start = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)
    with update_server(tmp_path / "server", utc_now=lambda: start) as server:
        server.publisher.publish(first)
        server.publisher.publish(second)
        times = [start + dt.timedelta(days=6)]
        device = UpdatingDevice(tmp_path / "device", server.enrolment(), utc_now=lambda: times[-1])
        device.update(server.assign(first))
        times.append(dt.datetime(2000, 1, 1, tzinfo=dt.UTC))
        desired = server.assign(second)
        device.apply(desired)
        assert device.version == "2", "six days after signing is still fresh"
        assert (device.state / "trust/time").read_text().startswith("2030-01-07"), "the floor did not sink"
        device.close()


def test_rolled_back_director_metadata_is_refused(
    server: UpdateServer, device: UpdatingDevice, first: Package, second: Package, tmp_path: Path
) -> None:
    files = {name: server.director.metadata("camera-1", name) for name in ("timestamp.json", "1.snapshot.json")}
    device.update(server.assign(second))
    device.update(server.assign(first))
    device.events.clear()
    for name, data in files.items():
        assert data is not None
        server.line.replace[DIRECTOR_PATH + name] = data
    assert not device.apply(hint(second, 9))
    assert_metadata_refused(device, "director", "version")


def test_rolled_back_image_metadata_is_refused(
    server: UpdateServer, device: UpdatingDevice, second: Package, tmp_path: Path
) -> None:
    old = server.images.metadata("timestamp.json")
    assert old is not None
    third = make_package(tmp_path / "built/3", version="3")
    server.publisher.publish(third)
    device.update(server.assign(third))
    server.line.replace["/updates/image/timestamp.json"] = old
    assert not device.apply(server.assign(second))
    (event,) = device.told(EventKind.METADATA_REFUSED)
    assert "image" in event.reason
    assert device.version == "3"


def test_a_release_older_than_the_installed_one_is_refused_even_in_newer_metadata(
    server: UpdateServer, device: UpdatingDevice, first: Package, second: Package, tmp_path: Path
) -> None:
    device.update(server.assign(first, release=5))
    device.events.clear()
    with contextlib.closing(sqlite3.connect(tmp_path / "server/repository/director.db", isolation_level=None)) as store:
        store.executescript("DELETE FROM devices; DELETE FROM signed")
    for _ in range(3):  # newer versions than the device has seen
        server.assign(second, release=server.director.release_of("camera-1", "digits") + 1)
    assert not device.apply(hint(second, 6))
    assert_metadata_refused(device, "release 3 of digits is older than release 5")


def test_a_package_that_only_the_director_names_is_refused(
    server: UpdateServer, device: UpdatingDevice, tmp_path: Path
) -> None:
    unsigned = make_package(tmp_path / "built/unsigned", version="66")
    assert not device.apply(server.assign(unsigned))
    assert_metadata_refused(device, "digits/66/manifest.json", "image repository does not sign")


def test_a_package_that_the_two_repositories_know_under_different_digests_is_refused(
    server: UpdateServer, device: UpdatingDevice, second: Package
) -> None:
    assignment = Assignment(device="camera-1", release=2)
    server.director.assign("camera-1", target_name("digits", "2"), 1234, "ab" * 32, assignment)
    assert not device.apply(hint(second, 2))
    assert_metadata_refused(device, "disagree", "1234 bytes")


def test_the_directors_metadata_of_another_device_is_refused(
    server: UpdateServer, device: UpdatingDevice, first: Package, second: Package
) -> None:
    server.assign(first, device="camera-2")
    server.assign(second, device="camera-2")
    for file in ("timestamp.json", "2.snapshot.json", "2.targets.json"):
        data = server.director.metadata("camera-2", file)
        assert data is not None
        server.line.replace[DIRECTOR_PATH + file] = data
    assert not device.apply(hint(second, 2))
    assert_metadata_refused(device, "for device 'camera-2', this is 'camera-1'")


def test_a_stolen_director_key_cannot_delegate(server: UpdateServer, device: UpdatingDevice, second: Package) -> None:
    signer = load_signer(server.keys.path(DIRECTOR))
    expires = (dt.datetime.now(dt.UTC) + dt.timedelta(days=1)).replace(microsecond=0)
    role = DelegatedRole("digits", [signer.public_key.keyid], 1, terminating=True, paths=["digits/*/manifest.json"])
    delegations = Delegations(keys={signer.public_key.keyid: signer.public_key}, roles={"digits": role})
    targets = Metadata(Targets(version=2, expires=expires, delegations=delegations))
    targets.sign(signer)
    snapshot = Metadata(Snapshot(version=2, expires=expires, meta={"targets.json": MetaFile(2)}))
    snapshot.sign(signer)
    timestamp = Metadata(Timestamp(version=2, expires=expires, snapshot_meta=MetaFile(2)))
    timestamp.sign(signer)
    for name, metadata in (("2.targets", targets), ("2.snapshot", snapshot), ("timestamp", timestamp)):
        server.line.replace[f"{DIRECTOR_PATH}{name}.json"] = metadata.to_bytes()
    assert not device.apply(hint(second, 2))
    assert_metadata_refused(device, "delegates")


def test_a_server_with_other_keys_is_not_believed(
    server: UpdateServer, device: UpdatingDevice, second: Package, tmp_path: Path
) -> None:
    keys = KeyFolder(tmp_path / "foreign")
    ImageSigning(keys).create(("digits",))
    foreign = Director(
        tmp_path / "foreign", root=(keys.folder / "director/1.root.json").read_bytes(),
        signer=load_signer(keys.path(DIRECTOR)),
    )  # fmt: skip
    length = (second.folder / "manifest.json").stat().st_size
    for release in (1, 2):
        foreign.assign(
            "camera-1", target_name("digits", "2"), length, second.digest,
            Assignment(device="camera-1", release=release),
        )  # fmt: skip
    data = foreign.metadata("camera-1", "timestamp.json")
    assert data is not None
    server.line.replace[f"{DIRECTOR_PATH}timestamp.json"] = data
    assert not device.apply(hint(second, 2))
    assert_metadata_refused(device, "director")


def test_a_hint_ahead_of_the_director_waits_and_is_no_failure(
    server: UpdateServer, device: UpdatingDevice, second: Package
) -> None:
    device.events.clear()
    assert not device.apply(hint(second, 2))
    assert device.events == []
    assert (device.version, device.reported().step) == ("1", UpdateStep.COMMITTED)
    assert "the director has signed 1 so far" in device.reported().reason
    device.update(server.assign(second))
    assert device.version == "2"


def test_a_manifest_of_another_model_under_a_signed_name_is_refused(
    server: UpdateServer, device: UpdatingDevice, tmp_path: Path, first: Package
) -> None:
    package = make_package(tmp_path / "built/9", version="9")
    server.publisher.publish(package)
    # Signed by all the right keys, but the publisher was careless: 10 is 9.
    length = (package.folder / "manifest.json").stat().st_size
    path = target_name("digits", "10")
    server.signing.add_target("digits", path, length, package.digest)
    for name, data in server.signing.files().items():
        server.line.replace[f"/updates/image/{name}"] = data
    server.director.assign("camera-1", path, length, package.digest, Assignment(device="camera-1", release=2))
    assert device.apply(hint(package, 2))
    assert "its manifest says digits 9" in device.reported().reason
    assert device.version == "1"


def test_the_keys_of_the_image_root_can_be_renewed_while_devices_are_away(
    server: UpdateServer, device: UpdatingDevice, second: Package
) -> None:
    server.signing.renew()
    server.signing.renew()
    server.publisher.refresh()
    assert json.loads(server.images.root)["signed"]["version"] == 3
    device.update(server.assign(second))
    assert device.version == "2"
    root = device.state / "trust/image/root.json"
    assert root.is_symlink()
    assert json.loads(root.read_bytes())["signed"]["version"] == 3


def test_a_target_that_another_models_key_signed_is_not_found(tmp_path: Path, first: Package) -> None:
    with update_server(tmp_path / "server", models=("digits", "faces")) as server:
        server.publisher.publish(first)
        device = UpdatingDevice(tmp_path / "device", server.enrolment())
        device.update(server.assign(first))
        other = make_package(tmp_path / "built/other", version="2", seed=4)
        length = (other.folder / "manifest.json").stat().st_size
        path = target_name("digits", "2")
        roles = server.signing._roles()
        roles["faces"].targets[path] = TargetFile(length, {"sha256": other.digest}, path)
        server.signing._sign_targets("faces", roles["faces"], "publisher/faces", roles)
        server.signing._sign_snapshot(roles)
        for name, data in server.signing.files().items():
            server.line.replace[f"/updates/image/{name}"] = data
        assert not device.apply(server.assign(other))
        assert_metadata_refused(device, "image repository does not sign")
        device.close()
