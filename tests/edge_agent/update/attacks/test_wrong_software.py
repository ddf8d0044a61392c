"""Wrong software installation: genuine, but not the one that was asked for (TUF 1.5.2)."""

from __future__ import annotations

from pathlib import Path

import pytest
from tuf.api.metadata import TargetFile

from edge_agent.contract.errors import ServerRefused
from edge_agent.contract.repository import Assignment, target_name
from edge_agent.runtime.package import Package
from fleet_server.updates.director import load_signer
from tests.edge_agent.update.attacks.thief import director_files, retaken, target, unharmed
from tests.fakes.packages import make_package
from tests.fakes.update_server import UpdateServer, hint
from tests.fakes.updating_device import UpdatingDevice
from trainer.publish.keys import DIRECTOR


def test_a_package_under_another_versions_name_is_refused(
    server: UpdateServer, device: UpdatingDevice, first: Package, second: Package
) -> None:
    signer = load_signer(server.keys.path(DIRECTOR))
    real = target(first)
    under = TargetFile(
        real.length, real.hashes, target_name("digits", "2"), unrecognized_fields=real.unrecognized_fields
    )
    server.line.replace |= director_files(signer, 2, under)
    assert not device.apply(hint(second, 2))
    unharmed(device, "disagree on 'digits/2/manifest.json'")
    retaken(server, device, second)


def test_a_package_that_its_publisher_signed_under_a_wrong_name_is_refused(
    server: UpdateServer, device: UpdatingDevice, second: Package, tmp_path: Path
) -> None:
    package = make_package(tmp_path / "built/9", version="9")
    server.publisher.publish(package)
    length = (package.folder / "manifest.json").stat().st_size
    path = target_name("digits", "10")
    server.signing.add_target("digits", path, length, package.digest)
    for name, data in server.signing.files().items():
        server.line.replace[f"/updates/image/{name}"] = data
    server.director.assign("camera-1", path, length, package.digest, Assignment(device="camera-1", release=2))
    assert device.apply(hint(package, 2))
    unharmed(device, "its manifest says digits 9")
    with pytest.raises(ServerRefused, match="its manifest says digits 9"):
        server.publisher.publish(make_package(tmp_path / "built/11", version="11"))
    device.update(server.assign(second, release=3))
    assert device.version == "2"


def test_what_a_hint_says_is_not_what_is_installed(
    server: UpdateServer, device: UpdatingDevice, first: Package, second: Package
) -> None:
    """The hint comes over the broker, unsigned: it can make a device look, and nothing else."""
    server.assign(first, release=2)
    device.update(hint(second, 2))
    assert device.version == "1", "what the director signed"
