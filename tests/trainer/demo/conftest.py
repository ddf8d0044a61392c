"""An agent's serving half over a real socket, with the digits model, so that cameras have somebody to ask."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from edge_agent.contract.manifest import FileEntry, Manifest
from edge_agent.runtime.package import Package
from edge_agent.runtime.package_writer import write_package
from tests.fakes.serving_device import EVERYTHING, Device, serving


@pytest.fixture
def device(champion: Package, tmp_path: Path) -> Iterator[Device]:
    def asking_for_labels(entries: dict[str, FileEntry]) -> Manifest:
        return msgspec.structs.replace(champion.manifest, files=entries, sampling=EVERYTHING)

    files = {name: champion.path(name) for name in champion.manifest.files}
    (tmp_path / "models").mkdir()
    write_package(tmp_path / "models" / "champion", files=dict(files), manifest=asking_for_labels)
    with serving(tmp_path) as device:
        yield device
