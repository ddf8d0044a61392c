"""Mix-and-match: pieces that are all genuine, but of different times (TUF 1.5.2)."""

from __future__ import annotations

import pytest

from edge_agent.contract.repository import blob_path
from edge_agent.runtime.package import Package
from tests.edge_agent.update.attacks.thief import DIRECTOR_PATH, recovers, unharmed
from tests.fakes.update_server import UpdateServer
from tests.fakes.updating_device import UpdatingDevice


@pytest.mark.parametrize("role", ["snapshot", "targets"])
def test_an_older_part_among_newer_metadata_is_refused(
    server: UpdateServer, device: UpdatingDevice, second: Package, role: str
) -> None:
    old = server.director.metadata("camera-1", f"1.{role}.json")
    assert old is not None
    desired = server.assign(second)
    server.line.replace[f"{DIRECTOR_PATH}2.{role}.json"] = old
    assert not device.apply(desired)
    unharmed(device, "director repository")
    recovers(server, device, desired)


def test_files_of_one_version_in_the_package_of_another_are_refused(
    server: UpdateServer, device: UpdatingDevice, first: Package, second: Package
) -> None:
    desired = server.assign(second)
    for name, entry in second.manifest.files.items():
        server.line.replace[blob_path(entry.sha256)] = (first.folder / name).read_bytes()
    assert not device.apply(desired)
    unharmed(device, "not what was signed", refused=False)
    recovers(server, device, desired)


def test_the_manifest_of_one_version_under_the_name_of_another_is_refused(
    server: UpdateServer, device: UpdatingDevice, first: Package, second: Package
) -> None:
    desired = server.assign(second)
    server.line.replace[blob_path(second.digest)] = (first.folder / "manifest.json").read_bytes()
    assert not device.apply(desired)
    unharmed(device, "not what was signed", second.digest, refused=False)
    recovers(server, device, desired)
