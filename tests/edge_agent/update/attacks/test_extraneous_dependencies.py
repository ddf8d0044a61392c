"""Extraneous dependencies: the attacker has more installed than was asked for (TUF 1.5.2).

A package depends on nothing: its manifest names all of it. What could be added is a file, a second package, or a model.
"""

from __future__ import annotations

import json
from pathlib import Path

from edge_agent.contract.manifest import MANIFEST_FILE
from edge_agent.contract.repository import blob_path
from edge_agent.runtime.package import Package
from fleet_server.updates.director import load_signer
from tests.edge_agent.update.attacks.thief import director_files, recovers, target, unharmed
from tests.fakes.packages import make_package
from tests.fakes.update_server import UpdateServer, hint
from tests.fakes.updating_device import UpdatingDevice
from trainer.publish.keys import DIRECTOR


def test_a_file_added_to_a_manifest_is_neither_believed_nor_fetched(
    server: UpdateServer, device: UpdatingDevice, second: Package
) -> None:
    manifest = json.loads((second.folder / MANIFEST_FILE).read_bytes())
    manifest["files"]["extra.so"] = {"sha256": "e" * 64, "size_bytes": 10}
    server.line.replace[blob_path(second.digest)] = json.dumps(manifest).encode()
    desired = server.assign(second)
    assert not device.apply(desired)
    unharmed(device, "not what was signed", refused=False)
    assert server.line.asked(blob_path("e" * 64)) == []
    recovers(server, device, desired)


def test_a_second_package_of_a_model_is_refused(
    server: UpdateServer, device: UpdatingDevice, second: Package, tmp_path: Path
) -> None:
    third = make_package(tmp_path / "built/3", version="3")
    server.publisher.publish(third)
    signer = load_signer(server.keys.path(DIRECTOR))
    server.line.replace |= director_files(signer, 2, target(second), target(third))
    assert not device.apply(hint(second, 2))
    unharmed(device, "names 2 packages of digits", "digits/2/", "digits/3/")


def test_only_what_was_asked_for_is_fetched(server: UpdateServer, device: UpdatingDevice, second: Package) -> None:
    device.update(server.assign(second))
    files = {entry.sha256 for entry in second.manifest.files.values()} | {second.digest}
    asked = {path for _, path, _ in server.line.requests if path.startswith(blob_path(""))}
    assert asked <= {blob_path(sha256) for sha256 in files}
