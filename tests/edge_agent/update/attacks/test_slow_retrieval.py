"""Slow retrieval: bytes drip, so that no single wait is too long, and the whole never ends (TUF 1.5.2)."""

from __future__ import annotations

import pytest

from edge_agent.contract.repository import blob_path
from edge_agent.runtime.package import Package
from edge_agent.update import durable_updater, server_files
from tests.edge_agent.update.attacks.thief import DIRECTOR_PATH, dripping, recovers, unharmed
from tests.fakes.update_server import UpdateServer
from tests.fakes.updating_device import UpdatingDevice


@pytest.mark.parametrize("file", ["timestamp.json", "2.root.json"])
def test_metadata_that_drips_is_given_up(
    server: UpdateServer, device: UpdatingDevice, second: Package, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    desired = server.assign(second)
    data = server.director.metadata("camera-1", "timestamp.json")
    assert data is not None
    server.line.answers[DIRECTOR_PATH + file] = dripping(data, every_s=0.05)
    with monkeypatch.context() as patch:
        patch.setattr(durable_updater, "_FILE_S", 0.6)  # instead of a minute
        assert not device.apply(desired)
    unharmed(device, "the connection is too slow", refused=False)
    recovers(server, device, desired)


def test_all_metadata_together_has_a_time_too(
    server: UpdateServer, device: UpdatingDevice, second: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    desired = server.assign(second)
    with monkeypatch.context() as patch:
        patch.setattr(durable_updater.DurableUpdater.__init__, "__kwdefaults__", {"total_s": 0.0})
        patch.setattr("edge_agent.update.tuf_client.TrustedClient.__init__.__kwdefaults__", {"total_s": 0.0,
                      "target_folder": None, "target_url": None})  # fmt: skip
        assert not device.apply(desired)
    unharmed(device, "the metadata took 0 s; the server is too slow", refused=False)
    recovers(server, device, desired)


def test_a_file_that_drips_is_broken_off_and_continued_later(
    server: UpdateServer, device: UpdatingDevice, second: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    desired = server.assign(second)
    weights = second.manifest.files["model.onnx"]
    data = (second.folder / "model.onnx").read_bytes()
    server.line.answers[blob_path(weights.sha256)] = dripping(data, every_s=0.02)
    with monkeypatch.context() as patch:
        patch.setattr(server_files, "_WINDOW_S", 0.5)
        patch.setattr(server_files, "_LEAST_BYTES_PER_S", 1_000.0)
        assert not device.apply(desired)
    unharmed(device, "the connection is too slow", refused=False)
    recovers(server, device, desired)
