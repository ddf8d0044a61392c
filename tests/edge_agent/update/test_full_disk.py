"""A disk that is full, or refuses: it stops an update, and never what serves."""

from __future__ import annotations

import os
import shutil

import pytest

from edge_agent.contract.messages import EventKind, UpdateStep
from edge_agent.runtime.package import Package
from edge_agent.update.preparing import Device
from tests.edge_agent.update.conftest import NewDevice
from tests.fakes.update_server import UpdateServer
from tests.fakes.updating_device import UpdatingDevice


def test_a_full_disk_fails_the_update_with_its_reason_and_the_old_model_serves_on(
    server: UpdateServer, device: UpdatingDevice, second: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    desired = server.assign(second)
    usage = shutil.disk_usage(device.state)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=100))
        assert not device.apply(desired), "it is tried again later"
        assert not device.apply(desired)
    assert device.version == "1"
    assert (device.reported().step, device.reported().release) == (UpdateStep.FAILED, 2)
    assert "needs" in device.reported().reason
    assert device.reported().retries
    assert len(device.told(EventKind.UPDATE_FAILED)) == 1, "the same failure is told once"
    device.update(desired)
    assert device.version == "2"


@pytest.mark.parametrize("lacks", ["room", "memory"])
def test_what_lacks_room_or_memory_is_looked_at_again_and_again_and_neither_written_nor_told_again(
    server: UpdateServer,
    device: UpdatingDevice,
    new_device: NewDevice,
    second: Package,
    monkeypatch: pytest.MonkeyPatch,
    *,
    lacks: str,
) -> None:
    device.close()
    left = {"room": 1 << 40, "memory": 1 << 40}
    usage = shutil.disk_usage(device.state)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=left["room"]))
    device = new_device(device=Device(available_bytes=lambda: left["memory"]))
    desired, seen = server.assign(second), set[tuple[int, int]]()
    for mib in range(1, 5):
        left[lacks] = mib << 20
        assert not device.apply(desired)
        assert f"{left[lacks] if lacks == 'room' else mib}" in device.reported().reason, "the figures are those of now"
        assert (device.version, device.reported().step) == ("1", UpdateStep.FAILED)
        seen.add(((device.state / "slots.json").stat().st_mtime_ns, len(device.events)))
    assert len(seen) == 1
    assert len(device.told(EventKind.UPDATE_FAILED)) == 1
    left[lacks] = 1 << 40
    device.update(desired)
    assert device.version == "2"


def test_a_disk_that_refuses_a_commit_is_asked_again_after_a_while(
    server: UpdateServer, device: UpdatingDevice, second: Package
) -> None:
    device.apply(server.assign(second))
    obstacle = device.state / ".slots.json.new"
    obstacle.mkdir()
    device.pass_probation()
    obstacle.rmdir()
    for now_s, step in ((30, UpdateStep.PROBATION), (31, UpdateStep.COMMITTED)):
        device.now_s += now_s
        device.installer.watch()
        assert device.reported().step is step


def test_a_disk_that_refuses_again_after_an_update_went_well_is_told_of_again(
    server: UpdateServer, device: UpdatingDevice, first: Package, second: Package
) -> None:
    obstacle = device.state / ".slots.json.new"
    for times, package in ((1, second), (2, first)):
        desired = server.assign(package)
        obstacle.mkdir()
        device.apply(desired)
        assert len(device.told(EventKind.STORAGE)) == times
        obstacle.rmdir()
        device.update(desired)


def test_a_state_folder_that_cannot_be_written_fails_the_update_and_the_old_model_serves_on(
    server: UpdateServer, device: UpdatingDevice, second: Package
) -> None:
    desired = server.assign(second)
    device.state.chmod(0o500)
    try:
        if os.access(device.state, os.W_OK):
            pytest.skip("this user may write everywhere")
        assert not device.apply(desired)
        assert device.version == "1"
        assert device.reported().step is UpdateStep.FAILED
        assert "not writable" in device.reported().reason
    finally:
        device.state.chmod(0o700)


def test_a_journal_that_cannot_be_written_stops_the_update_but_neither_start_nor_serving(
    server: UpdateServer, device: UpdatingDevice, new_device: NewDevice, second: Package
) -> None:
    desired = server.assign(second)
    obstacle = device.state / ".slots.json.new"
    obstacle.mkdir()
    assert not device.apply(desired)
    assert (device.version, device.reported().step) == ("1", UpdateStep.FAILED)
    assert device.told(EventKind.STORAGE)
    obstacle.rmdir()
    device.apply(desired)
    obstacle.mkdir()
    device.pass_probation()
    assert device.reported().step is UpdateStep.PROBATION, "not committed before it is written down"
    device.close()
    restarted = new_device()
    assert restarted.version == "1", "where deaths of the agent cannot be counted none is risked"
    assert "cannot be counted" in restarted.told(EventKind.ROLLED_BACK)[0].reason
    assert not restarted.apply(desired), "it comes again when there is room"
    assert restarted.version == "1"
    obstacle.rmdir()
    restarted.update(desired)
    assert (restarted.version, restarted.reported().step) == ("2", UpdateStep.COMMITTED)


def test_a_package_that_takes_the_agent_down_on_probation_goes_on_a_full_disk_too(
    server: UpdateServer, device: UpdatingDevice, new_device: NewDevice, second: Package
) -> None:
    device.apply(server.assign(second))
    (device.state / ".slots.json.new").mkdir()
    for _ in range(3):  # each is killed
        assert new_device().version == "1"


def test_a_first_package_serves_on_probation_on_a_full_disk_where_there_is_nothing_else(
    server: UpdateServer, new_device: NewDevice, first: Package
) -> None:
    empty = new_device("camera-2")
    empty.apply(server.assign(first, device="camera-2"))
    empty.close()
    (empty.state / ".slots.json.new").mkdir()
    restarted = new_device("camera-2")
    assert (restarted.version, restarted.reported().step) == ("1", UpdateStep.PROBATION)


def test_where_what_was_before_has_rotted_a_package_on_probation_serves_on_a_full_disk(
    server: UpdateServer, device: UpdatingDevice, new_device: NewDevice, first: Package, second: Package
) -> None:
    device.apply(server.assign(second))
    device.close()
    (device.state / ".slots.json.new").mkdir()
    (device.state / "packages" / first.digest / "model.onnx").unlink()
    assert new_device().version == "2"
