"""Checks before the download: pure, and on a device."""

from __future__ import annotations

from pathlib import Path

import msgspec

from edge_agent.contract.manifest import Resources
from edge_agent.contract.repository import blob_path
from edge_agent.runtime.package_writer import write_package
from tests.fakes.packages import make_package
from tests.fakes.update_server import UpdateServer
from tests.fakes.updating_device import UpdatingDevice


def test_a_model_that_needs_more_memory_than_there_is_is_not_downloaded(
    server: UpdateServer, device: UpdatingDevice, tmp_path: Path
) -> None:
    built = make_package(tmp_path / "built/small", version="8", seed=8)
    files: dict[str, bytes | Path] = {name: built.path(name) for name in built.manifest.files}
    huge = write_package(
        tmp_path / "built/huge",
        files=files,
        manifest=lambda entries: msgspec.structs.replace(
            built.manifest, files=entries, resources=Resources(memory_bytes=1 << 60)
        ),
    )
    server.publisher.publish(huge)
    assert device.apply(server.assign(huge))
    assert "of memory, the whole machine has" in device.reported().reason
    assert server.line.asked(blob_path(huge.manifest.files["model.onnx"].sha256)) == []
