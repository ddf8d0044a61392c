"""Endless data: answers that never end are to fill memory or disk (TUF 1.5.2)."""

from __future__ import annotations

import pytest
from tuf.api.metadata import MetaFile

from edge_agent.contract.repository import blob_path
from edge_agent.runtime.package import Package
from tests.edge_agent.update.attacks.thief import DIRECTOR_PATH, IMAGE_PATH, endless, image_files, recovers, unharmed
from tests.fakes.update_server import UpdateServer
from tests.fakes.updating_device import UpdatingDevice


@pytest.mark.parametrize(
    ("path", "limit_bytes"),
    [
        (f"{DIRECTOR_PATH}2.root.json", 256_000),
        (f"{DIRECTOR_PATH}timestamp.json", 16_384),
        (f"{DIRECTOR_PATH}2.snapshot.json", 1_000_000),
        (f"{DIRECTOR_PATH}2.targets.json", 4_000_000),
        (f"{IMAGE_PATH}timestamp.json", 16_384),
    ],
)
def test_metadata_that_does_not_end_is_cut_off_at_its_limit(
    server: UpdateServer, device: UpdatingDevice, second: Package, path: str, limit_bytes: int
) -> None:
    desired = server.assign(second)
    server.line.answers[path] = endless()
    before = device.installer.bytes_down
    assert not device.apply(desired)
    unharmed(device, "longer than the", "bytes allowed")
    assert device.installer.bytes_down - before < limit_bytes + 300_000
    recovers(server, device, desired)


def test_a_length_that_stolen_keys_have_signed_is_no_reason_to_read_on(
    server: UpdateServer, device: UpdatingDevice, second: Package
) -> None:
    desired = server.assign(second)
    for name, lie in (
        ("50.snapshot.json", image_files(server, 50, snapshot_length=10**12)),
        ("9.targets.json", image_files(server, 51, {"targets.json": MetaFile(9, length=10**12)})),
    ):
        server.line.replace |= lie
        server.line.answers[IMAGE_PATH + name] = endless()
        before = device.installer.bytes_down
        assert not device.apply(desired)
        unharmed(device, "image", "longer than the", "bytes allowed")
        assert device.installer.bytes_down - before < 5_000_000


def test_a_file_that_does_not_end_is_cut_off_at_the_length_signed(
    server: UpdateServer, device: UpdatingDevice, second: Package
) -> None:
    desired = server.assign(second)
    weights = second.manifest.files["model.onnx"]
    server.line.answers[blob_path(weights.sha256)] = endless()
    before = device.installer.bytes_down
    assert not device.apply(desired)
    unharmed(device, weights.sha256[:12], refused=False)
    assert device.installer.bytes_down - before < 1_000_000
    recovers(server, device, desired)
