"""Checks before the download: pure, and on a device."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from edge_agent.contract.manifest import Requirements, Resources
from edge_agent.contract.messages import Hardware, UpdateStep
from edge_agent.contract.repository import blob_path
from edge_agent.runtime.budget import MemoryBudget
from edge_agent.runtime.package import Package
from edge_agent.runtime.package_writer import write_package
from edge_agent.update import fitness
from edge_agent.update.preparing import Device
from tests.edge_agent.update.conftest import NewDevice
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


def test_what_a_device_lacks_is_told_by_name_and_version() -> None:
    jetson = Hardware(
        architecture="aarch64",
        system="Linux",
        accelerator="tensorrt",
        runtimes={"onnxruntime": "1.9.1", "tensorrt": "10.3"},
    )
    assert fitness.lacking(Requirements(), jetson) == []
    asked = Requirements(
        architectures=("x86_64", "arm"),
        accelerators=("cpu",),
        runtimes={"onnxruntime": "1.18", "cuda": "12", "tensorrt": "10"},
    )
    assert fitness.lacking(asked, jetson) == [
        "runs on 'x86_64' or 'arm'; this machine is aarch64",
        "needs an accelerator of kind 'cpu'; this device has 'tensorrt'",
        "needs cuda 12 or newer; this device has none",
        "needs onnxruntime 1.18 or newer; this device has 1.9.1",
    ]


def test_memory_that_is_missing_is_told_with_how_much() -> None:
    mib = 1 << 20
    assert fitness.memory_lacking(10 * mib, total_bytes=100 * mib, available_bytes=30 * mib) == ("", False)
    reason, for_good = fitness.memory_lacking(50 * mib, total_bytes=100 * mib, available_bytes=30 * mib)
    assert (for_good, "30.0 MiB are available: 36.0 MiB too little" in reason) == (False, True)
    reason, for_good = fitness.memory_lacking(150 * mib, total_bytes=100 * mib, available_bytes=30 * mib)
    assert (for_good, "50.0 MiB too little" in reason) == (True, True)


@pytest.fixture
def asking(server: UpdateServer, tmp_path: Path) -> Package:
    """A package that needs an accelerator."""
    package = make_package(tmp_path / "built/9", version="9", seed=9, requires=Requirements(accelerators=("tensorrt",)))
    server.publisher.publish(package)
    return package


def _files_asked(server: UpdateServer, package: Package) -> list[str]:
    return server.line.asked(blob_path(package.manifest.files["model.onnx"].sha256))


def test_a_package_for_other_hardware_is_not_downloaded_and_tried_again_after_a_start_with_another(
    server: UpdateServer, device: UpdatingDevice, new_device: NewDevice, asking: Package
) -> None:
    hardware = Hardware(architecture="x86_64", system="Linux")
    device.close()
    device = new_device(device=Device(hardware=hardware))
    desired = server.assign(asking)
    assert device.apply(desired)
    assert (device.version, device.reported().step) == ("1", UpdateStep.FAILED)
    assert device.reported().reason == "digits 9 needs an accelerator of kind 'tensorrt'; this device has 'cpu'"
    assert not device.reported().retries
    assert _files_asked(server, asking) == []
    server.line.requests.clear()
    assert device.apply(desired)
    assert server.line.requests == [], "nothing has changed here"
    device.close()
    mended = new_device(device=Device(hardware=msgspec.structs.replace(hardware, accelerator="tensorrt")))
    mended.update(desired)
    assert mended.version == "9"


def test_a_package_that_would_refuse_what_applications_send_is_not_downloaded_until_they_send_otherwise(
    server: UpdateServer, device: UpdatingDevice, new_device: NewDevice, second: Package
) -> None:
    refused = ["input 'image': applications send float64"]
    device.close()
    device = new_device(device=Device(still_fits=lambda _model, _signature: list(refused)))
    desired = server.assign(second)
    assert not device.apply(desired)
    assert "digits 2 does not fit what applications here send: input 'image'" in device.reported().reason
    assert not device.reported().retries
    assert _files_asked(server, second) == []
    refused.clear()
    device.update(desired)
    assert device.version == "2"


def test_a_package_waits_for_memory_beside_what_serves(
    server: UpdateServer, device: UpdatingDevice, new_device: NewDevice, second: Package
) -> None:
    available = [1 << 20]
    device.close()
    device = new_device(device=Device(available_bytes=lambda: available[0]))
    desired = server.assign(second)
    assert not device.apply(desired)
    assert "beside what serves" in device.reported().reason
    assert device.reported().retries
    assert _files_asked(server, second) == []
    available[0] = 1 << 30
    device.update(desired)


def test_a_package_that_models_may_not_take_memory_for_is_not_downloaded(
    server: UpdateServer, device: UpdatingDevice, new_device: NewDevice, second: Package
) -> None:
    device.close()
    device = new_device(device=Device(memory=MemoryBudget(1000)))
    assert not device.apply(server.assign(second))
    assert "(runtime.memory_mib)" in device.reported().reason
    assert device.reported().retries
    assert _files_asked(server, second) == []
