"""Fast-forward: versions are counted up so far that the true ones look old for ever (TUF 1.5.2, recovery 5.3.11)."""

from __future__ import annotations

from pathlib import Path

from edge_agent.runtime.package import Package
from fleet_server.updates.director import load_signer
from tests.edge_agent.update.attacks.thief import (
    DIRECTOR_PATH,
    director_files,
    image_files,
    new_director,
    new_image_keys,
    target,
    unharmed,
)
from tests.fakes.packages import make_package
from tests.fakes.update_server import UpdateServer, hint
from tests.fakes.updating_device import UpdatingDevice
from trainer.publish.keys import DIRECTOR

FAR = 1_000_000


def test_a_director_that_counted_far_ahead_is_undone_by_new_keys(
    server: UpdateServer, device: UpdatingDevice, first: Package, second: Package
) -> None:
    stolen = load_signer(server.keys.path(DIRECTOR))
    server.line.replace |= director_files(stolen, FAR, target(second, release=2**62))
    device.update(hint(second, 2**62))
    assert device.version == "2", "a director may choose among what is released"
    server.line.leave()
    desired = server.assign(first)
    assert not device.apply(desired)
    unharmed(device, "director", f"must be >= {FAR}", version="2")
    director = new_director(server)
    assert director.release_of("camera-1", "digits") == desired.models["digits"].release
    device.update(desired)
    assert device.version == "1"
    # From here on the counter holds again, under the new keys.
    server.line.replace |= director_files(stolen, 2 * FAR, target(second, release=2**62 + 1))
    server.line.answers.clear()
    assert not device.apply(hint(second, 2**62 + 1))
    unharmed(device, "director", "signed by 0/1")


def test_image_versions_that_were_counted_far_ahead_are_undone_by_new_keys(
    server: UpdateServer, device: UpdatingDevice, second: Package, tmp_path: Path
) -> None:
    server.line.replace |= image_files(server, FAR)
    device.update(server.assign(second))
    server.line.leave()
    third = make_package(tmp_path / "built/3", version="3")
    server.publisher.publish(third)
    desired = server.assign(third)
    assert not device.apply(desired)
    unharmed(device, "image", f"must be >= {FAR}", version="2")
    server.line.replace |= new_image_keys(server)
    device.update(desired)
    assert device.version == "3"


def test_a_far_version_that_no_valid_key_signed_changes_nothing(
    server: UpdateServer, device: UpdatingDevice, second: Package
) -> None:
    desired = server.assign(second)
    data = server.director.metadata("camera-1", "timestamp.json")
    assert data is not None
    server.line.replace[f"{DIRECTOR_PATH}timestamp.json"] = data.replace(b'"version":2', b'"version":%d' % FAR)
    assert not device.apply(desired)
    unharmed(device, "director")
    server.line.leave()
    device.update(desired)
    assert device.version == "2"
