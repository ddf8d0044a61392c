"""A disk that loses bits of a package between its staging and its test: that is no fault of the release."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from edge_agent.contract.messages import EventKind, UpdateStep
from edge_agent.contract.repository import blob_path
from edge_agent.runtime.package import Package
from tests.edge_agent.update.conftest import NewDevice
from tests.fakes.update_server import UpdateServer
from tests.fakes.updating_device import UpdatingDevice

Rotting = Callable[..., UpdatingDevice]


@pytest.fixture
def rotting(device: UpdatingDevice, new_device: NewDevice, second: Package) -> Rotting:
    """camera-1 after a restart, on a disk that spoils a file of version 2, so often, once it is staged."""
    device.close()

    def new(name: str, *, times: int) -> UpdatingDevice:
        left = [times]

        def spoil(_model: str, step: UpdateStep) -> None:
            if step is UpdateStep.STAGED and left[0]:
                left[0] -= 1
                path = device.state / "packages" / second.digest / name
                data = bytearray(path.read_bytes())
                data[len(data) // 2] ^= 4
                path.unlink()  # it may be shared with another package
                path.write_bytes(data)

        return new_device(after_step=spoil)

    return new


@pytest.mark.parametrize("name", ["model.onnx", "golden.npz", "reference.profile", "manifest.json"])
def test_what_was_spoilt_before_it_was_tested_is_fetched_anew_and_refuses_no_release(
    server: UpdateServer, rotting: Rotting, second: Package, name: str
) -> None:
    desired, device = server.assign(second), rotting(name, times=1)
    assert not device.apply(desired)
    assert (device.version, device.reported().step) == ("1", UpdateStep.FAILED)
    assert "the device's disk has changed what was verified" in device.reported().reason
    assert device.reported().retries
    device.update(desired)
    assert (device.version, device.reported().step) == ("2", UpdateStep.COMMITTED)


def test_of_a_package_that_was_spoilt_only_that_file_is_fetched_anew(
    server: UpdateServer, rotting: Rotting, second: Package
) -> None:
    desired, device = server.assign(second), rotting("golden.npz", times=1)
    device.apply(desired)
    server.line.requests.clear()
    device.update(desired)
    asked = {path for _, path, _ in server.line.requests if path.startswith("/updates/targets/")}
    golden = second.manifest.files["golden.npz"].sha256
    assert asked == {blob_path(golden), blob_path(second.digest)}


def test_a_disk_that_spoils_a_package_each_time_does_not_have_it_fetched_for_ever(
    server: UpdateServer, rotting: Rotting, new_device: NewDevice, second: Package
) -> None:
    desired, device = server.assign(second), rotting("model.onnx", times=100)
    assert not device.apply(desired)
    assert device.apply(desired), "nothing is left to do"
    server.line.requests.clear()
    assert device.apply(desired)
    assert server.line.requests == []
    assert "after the agent's next start" in device.reported().reason
    assert not device.reported().retries
    assert len(device.told(EventKind.UPDATE_FAILED)) == 2
    device.close()
    restarted = new_device()
    restarted.update(desired)
    assert restarted.version == "2"
