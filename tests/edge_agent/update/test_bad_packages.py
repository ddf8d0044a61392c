"""Packages that are signed and wrong: on load, on the golden samples, with an exception or with the whole process."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from edge_agent.contract.messages import EventKind, UpdateStep
from edge_agent.runtime.package import Package
from edge_agent.runtime.package_writer import write_package
from edge_agent.runtime.pipeline import ModelSource
from edge_agent.runtime.slots import LoadedModel, Slots, load
from edge_agent.update.installer import Installer
from tests.edge_agent.update.conftest import NewDevice
from tests.fakes.packages import make_package
from tests.fakes.update_server import UpdateServer
from tests.fakes.updating_device import UpdatingDevice


class Died(BaseException):
    """Stands for the end of the process: nothing of the agent sees it."""


@pytest.fixture
def bad(server: UpdateServer, tmp_path: Path) -> Package:
    package = make_package(tmp_path / "built", version="13", seed=13)
    server.publisher.publish(package)
    return package


def test_a_version_that_cannot_be_loaded_is_refused_with_the_runtime_s_reason(
    server: UpdateServer, device: UpdatingDevice, tmp_path: Path
) -> None:
    broken = make_package(tmp_path / "built/broken", version="14", seed=14, external_data=True)
    (broken.folder / "model.onnx").write_bytes(b"no model at all")
    again = _resigned(broken)
    server.publisher.publish(again)
    before = device.infer()
    assert device.apply(server.assign(again))
    assert (device.version, device.reported().step) == ("1", UpdateStep.FAILED)
    assert "model.onnx" in device.reported().reason
    np.testing.assert_array_equal(device.infer(), before)
    assert again.digest not in device.packages()


def test_a_version_that_raises_what_nobody_foresaw_on_load_fails_and_is_tried_again_later(
    server: UpdateServer, device: UpdatingDevice, bad: Package, caplog: pytest.LogCaptureFixture
) -> None:
    device.close()

    def short(package: Package, *, slots: ModelSource | None = None) -> LoadedModel:
        if package.digest == bad.digest:
            raise MemoryError("no memory for this one")
        return load(package, slots=slots)

    slots = Slots()
    installer = Installer(device.state, server.enrolment(), slots, device.events.append, short)
    installer.start()
    assert not installer.apply(server.assign(bad))
    reported = installer.reported()["digits"]
    assert (slots.get("digits").version, reported.step) == ("1", UpdateStep.FAILED)
    assert reported.reason == "MemoryError: no memory for this one"
    assert "no memory for this one" in caplog.text
    installer.close()
    slots.close()


def test_a_version_that_takes_the_agent_down_when_it_is_loaded_is_refused_after_the_second_time(
    server: UpdateServer, device: UpdatingDevice, new_device: NewDevice, bad: Package
) -> None:
    device.close()
    desired = server.assign(bad)

    def deadly(package: Package, *, slots: ModelSource | None = None) -> LoadedModel:
        if package.digest == bad.digest:
            raise Died
        return load(package, slots=slots)

    for _ in range(2):
        slots = Slots()
        dying = Installer(device.state, server.enrolment(), slots, device.events.append, deadly)
        dying.start()
        assert slots.get("digits").version == "1"
        with pytest.raises(Died):
            dying.apply(desired)
        slots.close()
    third = new_device()
    assert (third.version, third.reported().step) == ("1", UpdateStep.FAILED)
    assert "died 2 times while it was tested or watched" in third.reported().reason
    assert third.told(EventKind.UPDATE_FAILED)[0].package == bad.digest
    assert third.apply(desired), "not tried again under that release"
    third.update(server.assign(bad, release=9))
    assert third.version == "13", "a newer release tries again"


def _resigned(package: Package) -> Package:
    """The package as its files now are."""
    return write_package(
        package.folder.with_name("resigned"),
        files={name: package.folder / name for name in package.manifest.files},
        manifest=lambda entries: msgspec.structs.replace(package.manifest, files=entries),
    )
