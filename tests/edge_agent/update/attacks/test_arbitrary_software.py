"""Arbitrary software installation: the attacker serves a model of their own (TUF 1.5.2)."""

from __future__ import annotations

from pathlib import Path

from securesystemslib.signer import CryptoSigner

from edge_agent.contract.manifest import MANIFEST_FILE
from edge_agent.contract.repository import blob_path
from edge_agent.runtime.package import Package
from tests.edge_agent.update.attacks.thief import director_files, recovers, target, unharmed
from tests.fakes.packages import make_package
from tests.fakes.update_server import UpdateServer, hint
from tests.fakes.updating_device import UpdatingDevice


def test_files_that_are_not_those_signed_are_refused(
    server: UpdateServer, device: UpdatingDevice, first: Package, second: Package
) -> None:
    weights = second.manifest.files["model.onnx"]
    # Of the right length, and a real model besides.
    other = (first.folder / "model.onnx").read_bytes()[: weights.size_bytes].ljust(weights.size_bytes, b"\0")
    server.line.replace[blob_path(weights.sha256)] = other
    desired = server.assign(second)
    assert not device.apply(desired)
    unharmed(device, "expected sha256", weights.sha256[:12], refused=False)
    assert not (device.state / "packages/.parts" / weights.sha256).exists(), "nothing of it stays on the disk"
    recovers(server, device, desired)


def test_a_manifest_that_is_not_the_one_signed_is_refused(
    server: UpdateServer, device: UpdatingDevice, second: Package, tmp_path: Path
) -> None:
    evil = make_package(tmp_path / "evil", version="2", seed=66)
    server.line.replace[blob_path(second.digest)] = (evil.folder / MANIFEST_FILE).read_bytes()
    desired = server.assign(second)
    assert not device.apply(desired)
    unharmed(device, "not what was signed", second.digest, refused=False)
    recovers(server, device, desired)


def test_metadata_of_the_attackers_own_keys_is_refused(
    server: UpdateServer, device: UpdatingDevice, second: Package, tmp_path: Path
) -> None:
    evil = make_package(tmp_path / "evil", version="3", seed=66)
    server.line.replace |= director_files(CryptoSigner.generate_ed25519(), 2, target(evil))
    assert not device.apply(hint(evil, 2))
    unharmed(device, "director repository", "signed by 0/1")
    recovers(server, device, server.assign(second, release=3))
