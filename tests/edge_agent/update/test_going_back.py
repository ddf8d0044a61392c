"""Starting and rolling back: what serves when the disk, the package or the power spoils it."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_agent.contract.messages import EventKind, UpdateStep
from edge_agent.runtime.package import Package
from edge_agent.runtime.pipeline import ModelSource
from edge_agent.runtime.slots import LoadedModel, Slots, load
from edge_agent.update import slots_file
from edge_agent.update.installer import Installer
from tests.edge_agent.update.conftest import NewDevice
from tests.fakes.packages import make_package
from tests.fakes.update_server import UpdateServer, hint
from tests.fakes.updating_device import UpdatingDevice


def test_a_model_that_fails_on_probation_is_rolled_back_and_the_old_one_answers_as_before(
    server: UpdateServer, device: UpdatingDevice, second: Package, first: Package
) -> None:
    before = device.infer()
    desired = server.assign(second)
    device.apply(desired)
    loaded = device.slots.get("digits")
    for _ in range(2):
        loaded.statistics.answered(1, 1, 1, 1)
    loaded.statistics.failed(1000)
    device.installer.watch()
    assert device.version == "1"
    np.testing.assert_array_equal(device.infer(), before)
    assert device.reported().step is UpdateStep.FAILED
    assert "1 of 3 requests failed" in device.reported().reason
    assert device.told(EventKind.ROLLED_BACK)[0].detail["to"] == first.digest
    assert device.apply(desired), "the same release is not tried again"
    assert device.version == "1"


def test_after_a_roll_back_the_same_package_may_come_with_a_newer_release(
    server: UpdateServer, device: UpdatingDevice, second: Package
) -> None:
    device.apply(server.assign(second))
    device.slots.get("digits").statistics.failed(1000)
    device.installer.watch()
    assert device.version == "1"
    device.update(server.assign(second, release=9))
    assert (device.version, device.reported().step) == ("2", UpdateStep.COMMITTED)


def test_a_restart_without_network_serves_what_was_active(
    server: UpdateServer, device: UpdatingDevice, new_device: NewDevice, second: Package
) -> None:
    device.update(server.assign(second))
    answer = device.infer()
    device.close()
    server.stop()
    restarted = new_device()
    np.testing.assert_array_equal(restarted.infer(), answer)
    assert restarted.version == "2"


def test_a_start_needs_no_network_and_no_fresh_metadata_and_falls_back_when_the_active_package_is_damaged(
    server: UpdateServer, device: UpdatingDevice, new_device: NewDevice, first: Package, second: Package
) -> None:
    device.apply(server.assign(second))  # on probation: version 1 is the last known good one
    device.close()
    server.stop()
    (device.state / "packages" / second.digest / "model.onnx").write_bytes(b"rotten")
    shutil.rmtree(device.state / "trust")
    restarted = new_device()
    assert restarted.version == "1"
    assert restarted.told(EventKind.ROLLED_BACK)[0].package == second.digest


def test_a_committed_package_that_the_disk_spoils_is_replaced_by_its_spare_and_comes_again_with_the_network(
    server: UpdateServer, device: UpdatingDevice, new_device: NewDevice, second: Package
) -> None:
    desired = server.assign(second)
    device.update(desired)
    device.close()
    (device.state / "packages" / second.digest / "model.onnx").write_bytes(b"rotten")
    restarted = new_device()
    assert restarted.version == "1", "with no network"
    assert restarted.told(EventKind.ROLLED_BACK)[0].package == second.digest
    restarted.update(desired)
    assert restarted.version == "2"


def test_the_spare_makes_room_when_the_next_update_begins(
    server: UpdateServer, device: UpdatingDevice, first: Package, second: Package, tmp_path: Path
) -> None:
    device.update(server.assign(second))
    assert device.packages() == {first.digest, second.digest}
    third = make_package(tmp_path / "built", version="3", seed=3)
    server.publisher.publish(third)
    device.apply(server.assign(third))
    assert device.packages() - {".parts"} == {second.digest, third.digest}


def test_a_spoilt_file_that_serving_does_not_need_is_said_and_costs_nothing(
    device: UpdatingDevice, new_device: NewDevice, first: Package
) -> None:
    device.close()
    (device.state / "packages" / first.digest / "card.md").write_bytes(b"rotten")
    restarted = new_device()
    assert (restarted.version, restarted.told(EventKind.ROLLED_BACK)) == ("1", [])
    assert "card.md" in restarted.told(EventKind.STORAGE)[0].reason


def test_a_package_that_kills_the_agent_twice_on_probation_is_rolled_back(
    server: UpdateServer, device: UpdatingDevice, new_device: NewDevice, second: Package
) -> None:
    device.apply(server.assign(second))
    assert new_device().version == "2", "once may be the power plug"
    third_start = new_device()
    assert third_start.version == "1"
    assert "died 2 times" in third_start.told(EventKind.ROLLED_BACK)[0].reason


def test_orderly_restarts_on_probation_are_no_crashes(
    server: UpdateServer, device: UpdatingDevice, new_device: NewDevice, second: Package
) -> None:
    device.apply(server.assign(second))
    device.installer.close()
    for _ in range(4):
        restarted = new_device()
        assert restarted.version == "2"
        restarted.installer.close()


def test_a_committed_package_that_the_disk_spoilt_is_fetched_again(
    server: UpdateServer, device: UpdatingDevice, new_device: NewDevice, first: Package
) -> None:
    answer = device.infer()
    device.close()
    (device.state / "packages" / first.digest / "model.onnx").write_bytes(b"rotten")
    restarted = new_device()
    assert restarted.slots.models() == []
    assert "expected sha256" in restarted.reported().reason
    restarted.update(hint(first, 1))
    np.testing.assert_array_equal(restarted.infer(), answer)


@pytest.mark.parametrize("name", ["model.onnx", "manifest.json"])
def test_a_file_that_the_disk_has_changed_is_named_as_the_reason_in_the_log_and_to_the_fleet(
    *,
    server: UpdateServer,
    device: UpdatingDevice,
    new_device: NewDevice,
    first: Package,
    second: Package,
    name: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    device.update(server.assign(second))
    device.close()
    path = device.state / "packages" / second.digest / name
    path.unlink()  # it may be shared with another package
    path.write_bytes(b"rotten")
    restarted = new_device()
    assert restarted.version == "1"
    [told] = restarted.told(EventKind.ROLLED_BACK)
    assert told.reason == restarted.reported().reason
    assert "could not start: the device's disk has changed what was verified" in told.reason
    assert str(path.parent) in told.reason
    assert name in told.reason
    [said] = [record for record in caplog.records if "could not start" in record.message]
    assert said.exc_info is None
    assert told.reason in said.message
    assert said.message.endswith(f"package {first.digest[:12]}, which served before it, serves in its place")
    restarted.close()
    (device.state / "packages" / first.digest / "model.onnx").write_bytes(b"rotten")
    new_device()
    assert "nothing serves in its place until it is sent or installed again" in caplog.text


def test_a_first_model_that_fails_on_probation_goes_on_where_there_is_nothing_else(
    server: UpdateServer, new_device: NewDevice, first: Package
) -> None:
    empty = new_device("camera-2")
    empty.apply(server.assign(first, device="camera-2"))
    empty.slots.get("digits").statistics.failed(1000)
    empty.installer.watch()
    assert empty.version == "1"
    assert empty.reported().step is UpdateStep.FAILED
    assert "no earlier package" in empty.reported().reason


def test_a_model_that_fails_on_probation_serves_on_where_the_disk_has_spoilt_the_one_before(
    server: UpdateServer, device: UpdatingDevice, new_device: NewDevice, first: Package, second: Package
) -> None:
    device.apply(server.assign(second))
    answer = device.infer()
    (device.state / "packages" / first.digest / "model.onnx").unlink()
    device.slots.get("digits").statistics.failed(1000)
    device.installer.watch()
    assert (device.version, device.reported().step) == ("2", UpdateStep.FAILED)
    assert "requests failed on probation" in device.reported().reason
    assert "nor can the earlier package serve" in device.reported().reason
    device.close()
    restarted = new_device()
    np.testing.assert_array_equal(restarted.infer(), answer)


def test_what_is_taken_from_its_probation_and_serves_on_is_nothing_to_go_back_to(
    server: UpdateServer, device: UpdatingDevice, first: Package, second: Package, tmp_path: Path
) -> None:
    device.apply(server.assign(second))
    (device.state / "packages" / first.digest / "model.onnx").unlink()
    third = make_package(tmp_path / "built", version="3", seed=3)
    server.publisher.publish(third)
    device.apply(server.assign(third))
    record = device.installer._journal.get("digits")
    assert (device.version, record.step) == ("3", UpdateStep.PROBATION)
    assert record.last_known_good == first.digest, "version 2 was never proved"


def test_what_failed_on_probation_and_serves_on_is_proved_anew_when_a_newer_release_names_it(
    server: UpdateServer, new_device: NewDevice, first: Package
) -> None:
    empty = new_device("camera-2")
    empty.apply(server.assign(first, device="camera-2"))
    empty.slots.get("digits").statistics.failed(1000)
    empty.installer.watch()
    assert not empty.apply(server.assign(first, device="camera-2"))
    assert (empty.version, empty.reported().step) == ("1", UpdateStep.PROBATION)
    assert empty.installer._journal.get("digits").last_known_good == ""
    empty.pass_probation()
    assert empty.reported().step is UpdateStep.COMMITTED


def test_a_package_that_no_longer_loads_for_a_reason_nobody_foresaw_does_not_keep_the_agent_from_starting(
    server: UpdateServer, device: UpdatingDevice, second: Package, caplog: pytest.LogCaptureFixture
) -> None:
    device.apply(server.assign(second))
    device.close()

    def fussy(package: Package, *, slots: ModelSource | None = None) -> LoadedModel:
        if package.manifest.version == "2":
            raise MemoryError("a machine with less memory than before")
        return load(package, slots=slots)

    slots = Slots()
    installer = Installer(device.state, server.enrolment(), slots, lambda _event: None, fussy)
    installer.start()
    assert slots.get("digits").version == "1"
    assert "less memory" in installer.reported()["digits"].reason
    assert "less memory" in caplog.text
    installer.close()
    slots.close()


def test_after_two_crashes_a_newer_release_of_the_package_is_not_blamed_for_the_first_power_cut(
    server: UpdateServer, device: UpdatingDevice, new_device: NewDevice, second: Package
) -> None:
    device.apply(server.assign(second))
    new_device()
    crashed_twice = new_device()
    assert crashed_twice.version == "1"

    class PowerCut(BaseException):
        pass

    def cut(_model: str, step: UpdateStep) -> None:
        if step is UpdateStep.STAGED:
            raise PowerCut

    again = new_device(after_step=cut)
    newer = server.assign(second, release=9)
    with pytest.raises(PowerCut):
        again.apply(newer)
    restarted = new_device()
    restarted.update(newer)
    assert restarted.version == "2"


@pytest.mark.parametrize("damage", [b'{"models": 3}', b'{"models": {"\xff": {}}}', b""])
def test_a_damaged_journal_is_set_aside_and_said(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "slots.json").write_bytes(damage)
    events: list[EventKind] = []
    installer = Installer(tmp_path, None, Slots(), lambda event: events.append(event.kind), load)
    installer.start()
    assert events == [EventKind.STORAGE]
    assert (tmp_path / "slots.damaged").exists()


def test_a_damaged_journal_costs_no_model_as_what_it_said_before_holds(
    server: UpdateServer, device: UpdatingDevice, new_device: NewDevice
) -> None:
    device.close()
    (device.state / "slots.json").write_bytes(b"rotten")
    restarted = new_device()
    assert restarted.version == "1"
    assert "one step before holds" in restarted.told(EventKind.STORAGE)[0].reason


@pytest.mark.parametrize("damage", [b"rotten", None])
def test_a_damaged_or_lost_journal_is_mended_on_a_full_disk_too(
    device: UpdatingDevice, new_device: NewDevice, monkeypatch: pytest.MonkeyPatch, damage: bytes | None
) -> None:
    device.close()
    packages = device.packages()
    (device.state / "slots.json").unlink()
    if damage is not None:
        (device.state / "slots.json").write_bytes(damage)

    def full(*_about: Any, **_more: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", full)
        patch.setattr(slots_file, "write_durably", full)
        restarted = new_device()
        assert (restarted.version, restarted.packages()) == ("1", packages)
    restarted.close()
    assert new_device().version == "1"


def test_a_journal_that_the_disk_cannot_read_any_more_costs_no_model(
    device: UpdatingDevice, new_device: NewDevice
) -> None:
    device.close()
    (device.state / "slots.json").unlink()
    (device.state / "slots.json").symlink_to("/proc/self/mem")  # which gives EIO where nothing is mapped
    restarted = new_device()
    assert restarted.version == "1"
    assert "Input/output error" in restarted.told(EventKind.STORAGE)[0].reason
    restarted.close()
    assert new_device().version == "1"
    assert not (device.state / "slots.json").is_symlink()


def test_after_the_loss_of_the_journal_the_packages_on_disk_spare_a_download(
    server: UpdateServer, device: UpdatingDevice, new_device: NewDevice, first: Package
) -> None:
    device.close()
    (device.state / "slots.json").write_bytes(b"rotten")
    (device.state / "slots.before.json").write_bytes(b"rotten too")
    restarted = new_device()
    assert restarted.slots.models() == []
    server.line.requests.clear()
    restarted.update(hint(first, 1))
    assert restarted.version == "1"
    asked = [path for _, path, _ in server.line.requests if path.startswith("/updates/targets/")]
    assert asked == []
    assert restarted.packages() == {first.digest}


def test_after_the_loss_of_the_journal_what_the_server_does_not_name_is_removed_in_the_end(
    server: UpdateServer, device: UpdatingDevice, new_device: NewDevice, second: Package
) -> None:
    desired = server.assign(second)
    device.update(desired)
    both = device.packages()
    device.close()
    for name in ("slots.json", "slots.before.json"):
        (device.state / name).write_bytes(b"rotten")
    restarted = new_device()
    restarted.apply(desired)
    assert restarted.packages() == both, "another model may yet be named"
    restarted.pass_probation()
    assert restarted.apply(desired)
    assert restarted.packages() == {second.digest}


def test_after_the_loss_of_the_journal_packages_of_nobody_make_room(
    server: UpdateServer,
    device: UpdatingDevice,
    new_device: NewDevice,
    second: Package,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    packages = device.packages()
    device.close()
    for name in ("slots.json", "slots.before.json"):
        (device.state / name).write_bytes(b"rotten")
    restarted, desired = new_device(), server.assign(second)
    usage = shutil.disk_usage(device.state)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=100))
        assert not restarted.apply(desired)
    assert not packages & restarted.packages()
    restarted.update(desired)
    assert restarted.version == "2"


def without_a_runtime(package: Package, *, slots: ModelSource | None = None) -> LoadedModel:
    raise ImportError("no runtime")


@pytest.mark.parametrize("with_a_spare", [False, True])
def test_packages_that_nothing_can_load_today_stay_on_the_disk_and_serve_after_the_next_start(
    server: UpdateServer, device: UpdatingDevice, new_device: NewDevice, second: Package, with_a_spare: bool
) -> None:
    if with_a_spare:
        device.update(server.assign(second))
    version, packages = device.version, device.packages()
    device.close()
    slots = Slots()
    broken = Installer(device.state, server.enrolment(), slots, device.events.append, without_a_runtime)
    broken.start()
    assert (slots.models(), broken.reported()["digits"].step) == ([], UpdateStep.FAILED)
    assert "no runtime" in broken.reported()["digits"].reason
    broken.close()
    slots.close()
    assert device.packages() == packages
    assert new_device().version == version, "with no network"


def test_where_what_is_known_to_be_good_has_rotted_meanwhile_its_spare_serves(
    server: UpdateServer, device: UpdatingDevice, new_device: NewDevice, second: Package
) -> None:
    desired = server.assign(second)
    device.update(desired)
    device.close()
    broken = Installer(device.state, server.enrolment(), Slots(), device.events.append, without_a_runtime)
    broken.start()
    broken.close()
    (device.state / "packages" / second.digest / "model.onnx").write_bytes(b"rotten")
    restarted = new_device()
    assert restarted.version == "1"
    restarted.update(desired)
    assert restarted.version == "2"
