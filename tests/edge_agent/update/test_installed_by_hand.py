"""Packages that a person installs and removes while no agent runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from edge_agent.contract.errors import ConfigurationError, DeviceError, DigestMismatch, SelfTestFailed
from edge_agent.runtime.package import Package
from edge_agent.runtime.slots import LoadedModel
from tests.fakes.packages import make_package
from tests.fakes.update_server import UpdateServer
from tests.fakes.updating_device import UpdatingDevice


def test_a_package_installed_by_hand_serves_without_server_and_one_that_does_not_start_gives_way_to_the_one_before(
    tmp_path: Path, first: Package, second: Package
) -> None:
    device = UpdatingDevice(tmp_path / "state", None)
    assert device.installer.preinstall(first.folder) == ""
    assert device.installer.preinstall(second.folder) == first.digest
    assert device.installer.preinstall(second.folder) == second.digest
    device.close()
    restarted = UpdatingDevice(tmp_path / "state", None)
    assert restarted.version == "2"
    restarted.close()
    (tmp_path / "state/packages" / second.digest / "model.onnx").write_bytes(b"rotten")
    fallen_back = UpdatingDevice(tmp_path / "state", None)
    assert fallen_back.version == "1"
    fallen_back.close()


def test_a_package_that_rotted_on_the_disk_is_mended_by_installing_it_again(tmp_path: Path, first: Package) -> None:
    device = UpdatingDevice(tmp_path / "state", None)
    device.installer.preinstall(first.folder)
    (tmp_path / "state/packages" / first.digest / "model.onnx").write_bytes(b"rotten")
    device.installer.preinstall(first.folder)
    device.close()
    restarted = UpdatingDevice(tmp_path / "state", None)
    assert restarted.version == "1"
    restarted.close()


def test_what_the_fleet_decides_about_is_neither_replaced_nor_removed_by_hand(
    server: UpdateServer, device: UpdatingDevice, first: Package, second: Package
) -> None:
    device.apply(server.assign(first))
    with pytest.raises(ConfigurationError, match=r"is the business of fleet .*release the package there instead"):
        device.installer.preinstall(second.folder)
    with pytest.raises(ConfigurationError, match="take it from this device there"):
        device.installer.remove("digits")
    assert device.version == "1"


def test_a_model_installed_by_hand_is_removed_with_its_packages(
    tmp_path: Path, first: Package, second: Package
) -> None:
    device = UpdatingDevice(tmp_path / "state", None)
    device.installer.preinstall(first.folder)
    device.installer.preinstall(second.folder)
    with pytest.raises(ConfigurationError, match="no model 'reader' is installed here; installed are: digits"):
        device.installer.remove("reader")
    device.installer.remove("digits")
    assert list((tmp_path / "state/packages").iterdir()) == []
    device.close()
    restarted = UpdatingDevice(tmp_path / "state", None)
    assert restarted.installer.reported() == {}
    restarted.close()


def test_a_damaged_factory_image_is_refused(tmp_path: Path) -> None:
    damaged = make_package(tmp_path / "built/damaged")
    (damaged.folder / "card.md").write_text("other")
    device = UpdatingDevice(tmp_path / "state", None)
    with pytest.raises(DigestMismatch):
        device.installer.preinstall(damaged.folder)
    bad = make_package(tmp_path / "built/bad", golden_is_wrong=True)
    with pytest.raises(SelfTestFailed):
        device.installer.preinstall(bad.folder)
    assert device.installer.reported() == {}
    device.close()


def test_a_package_that_is_copied_over_a_broken_off_download_writes_to_no_file_of_what_serves(
    tmp_path: Path, first: Package, second: Package
) -> None:
    device = UpdatingDevice(tmp_path / "state", None)
    device.installer.preinstall(first.folder)
    packages = tmp_path / "state/packages"
    gathering, shared = packages / f".gathering-{second.digest}", packages / first.digest / "model.onnx"
    gathering.mkdir()
    os.link(shared, gathering / "model.onnx")
    device.installer.preinstall(second.folder)
    device.close()
    assert shared.read_bytes() == (first.folder / "model.onnx").read_bytes()


def test_a_package_that_cannot_be_let_serve_leaves_what_was_installed_before(
    tmp_path: Path, first: Package, second: Package
) -> None:
    def refuse(*_models: LoadedModel, again: Any = ()) -> None:
        raise RuntimeError("the slots are broken")

    device = UpdatingDevice(tmp_path / "state", None)
    device.installer.preinstall(first.folder)
    device.close()
    refusing = UpdatingDevice(tmp_path / "state", None, serve=refuse)
    with pytest.raises(DeviceError, match="could not be let serve: RuntimeError"):
        refusing.installer.preinstall(second.folder)
    assert refusing.packages() == {first.digest}
    refusing.close()
    again = UpdatingDevice(tmp_path / "state", None)
    assert again.version == "1"
    again.close()


def test_a_first_package_that_cannot_be_let_serve_is_not_installed(tmp_path: Path, first: Package) -> None:
    def refuse(*_models: LoadedModel, again: Any = ()) -> None:
        raise RuntimeError("the slots are broken")

    refusing = UpdatingDevice(tmp_path / "state", None, serve=refuse)
    with pytest.raises(DeviceError, match="could not be let serve"):
        refusing.installer.preinstall(first.folder)
    assert refusing.installer.reported() == {}
    assert refusing.packages() == set()
    refusing.close()
