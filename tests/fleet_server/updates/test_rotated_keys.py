"""Rotated keys on their way through the server to a device."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from tuf.api.metadata import Metadata, Timestamp

from edge_agent.runtime.package import Package
from fleet_server.data_folder import DataFolder
from tests.fakes.packages import make_package
from tests.fakes.update_server import UpdateServer, update_server
from tests.fakes.updating_device import UpdatingDevice
from trainer.publish.cli import keys_commands
from trainer.publish.keys import DIRECTOR


def shoal_keys(*arguments: object) -> None:
    result = CliRunner().invoke(keys_commands, [str(one) for one in arguments])
    assert result.exit_code == 0, result.output + result.stderr


def test_a_device_follows_through_every_rotation_of_the_image_repository(
    server: UpdateServer, package: Package, tmp_path: Path
) -> None:
    server.publisher.publish(package)
    device = UpdatingDevice(tmp_path / "device", server.enrolment())
    try:
        device.update(server.assign(package))
        for role in ("root", "targets", "snapshot", "timestamp", "digits"):
            shoal_keys("rotate", server.keys_folder, role)
            server.publisher.refresh()
        second = make_package(tmp_path / "built/2", version="2", seed=2)
        server.publisher.publish(second)
        device.update(server.assign(second))
        assert device.version == "2"
        assert "5.root.json" in server.images.shown_files(), "four changes of the root"
    finally:
        device.close()


def test_a_device_that_slept_through_two_directors_finds_every_root_that_it_needs(
    server: UpdateServer, package: Package, tmp_path: Path
) -> None:
    server.publisher.publish(package)
    enrolment = server.enrolment()
    device = UpdatingDevice(tmp_path / "device", enrolment)
    device.update(server.assign(package))
    device.close()
    server.stop()
    shoal_keys("revoke", server.keys_folder, "server/director")
    shoal_keys("rotate", server.keys_folder, "director-root")
    data = DataFolder(tmp_path / "data")
    data.prepare()
    data.take_keys(server.keys_folder)
    roots = data.repository / "director-roots"
    assert {path.name for path in roots.iterdir()} == {f"{version}.root.json" for version in (1, 2, 3)}
    shutil.copytree(roots, tmp_path / "server/repository/director-roots", dirs_exist_ok=True)
    with update_server(tmp_path / "server", models=("digits", "faces")) as renewed:
        assert renewed.director.refresh() == 1, "what the old key has signed is signed anew"
        second = make_package(tmp_path / "built/2", version="2", seed=2)
        renewed.publisher.publish(second)
        device = UpdatingDevice(tmp_path / "device", msgspec.structs.replace(enrolment, server=renewed.url))
        device.update(renewed.assign(second))
        assert device.version == "2"
        device.close()


def test_a_running_server_goes_on_with_its_director_key_and_root_until_its_next_start_takes_both(
    server: UpdateServer, package: Package, tmp_path: Path
) -> None:
    server.publisher.publish(package)
    enrolment = server.enrolment()
    device = UpdatingDevice(tmp_path / "device", enrolment)
    device.update(server.assign(package))
    shoal_keys("rotate", server.keys_folder, "director")
    DataFolder(tmp_path / "server").take_keys(server.keys_folder)  # as `shoal server init` does while it runs
    second = make_package(tmp_path / "built/2", version="2", seed=2)
    server.publisher.publish(second)
    device.update(server.assign(second))
    assert device.version == "2"
    assert server.director.metadata("camera-1", "2.root.json") is None
    device.close()
    server.stop()
    with update_server(tmp_path / "server", models=("digits", "faces")) as renewed:
        assert renewed.director.metadata("camera-1", "2.root.json") is not None
        renewed.publisher.publish(third := make_package(tmp_path / "built/3", version="3", seed=3))
        timestamp = renewed.director.metadata("camera-1", "timestamp.json")
        assert timestamp is not None
        keyids = Metadata[Timestamp].from_bytes(timestamp).signatures
        assert list(keyids) == [renewed.keys.signer(DIRECTOR).public_key.keyid], "before `refresh` has come to it"
        assert renewed.director.refresh() == 0
        device = UpdatingDevice(tmp_path / "device", msgspec.structs.replace(enrolment, server=renewed.url))
        device.update(renewed.assign(third))
        assert device.version == "3"
        device.close()


@pytest.mark.parametrize("refused", ["pem", "root"])
def test_a_server_is_given_nothing_of_a_folder_that_lacks_its_part(
    server: UpdateServer, tmp_path: Path, refused: str
) -> None:
    path = server.keys.path(DIRECTOR) if refused == "pem" else server.keys_folder / "director/1.root.json"
    path.unlink()
    data = DataFolder(tmp_path / "data")
    data.prepare()
    with pytest.raises(Exception, match="is missing"):
        data.take_keys(server.keys_folder)
    assert list(data.keys.iterdir()) == []
