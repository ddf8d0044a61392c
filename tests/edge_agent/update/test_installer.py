"""Updates that go well, and those that the package spoils."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
import urllib3

from edge_agent.contract.errors import ConfigurationError, DigestMismatch, SelfTestFailed
from edge_agent.contract.manifest import Probation, Resources
from edge_agent.contract.messages import EventKind, ReportedModel, ReportedRuntime, UpdateStep
from edge_agent.contract.repository import blob_path
from edge_agent.runtime.package import Package
from edge_agent.runtime.package_writer import write_package
from edge_agent.runtime.slots import LoadedModel, Slots, load
from edge_agent.update.installer import Installer
from edge_agent.update.update_thread import UpdateThread
from tests.edge_agent.update.conftest import NewDevice
from tests.fakes.packages import make_package
from tests.fakes.update_server import UpdateServer, hint
from tests.fakes.updating_device import UpdatingDevice


def test_an_update_goes_through_every_step_and_commits_after_probation(
    server: UpdateServer, device: UpdatingDevice, first: Package, second: Package
) -> None:
    desired = server.assign(second)
    before = device.infer()
    device.events.clear()
    assert not device.apply(desired)  # on probation
    assert device.version == "2"
    assert device.reported().step is UpdateStep.PROBATION
    assert device.installer._journal.get("digits").last_known_good == first.digest
    assert not np.allclose(before, device.infer())
    device.pass_probation()
    assert device.apply(desired)
    assert device.reported().step is UpdateStep.COMMITTED
    assert (device.reported().package, device.reported().release, device.reported().rollout) == (
        second.digest, 2, "rollout-1",
    )  # fmt: skip
    steps = [event.detail["step"] for event in device.told(EventKind.UPDATE_STEP)]
    assert steps == ["resolved", "downloading", "verified", "staged", "self-tested", "probation"]
    assert device.told(EventKind.UPDATE_COMMITTED)[0].package == second.digest
    assert device.packages() == {second.digest}, "the replaced package and the parts of downloads are gone"


def test_an_update_that_is_there_already_asks_the_server_nothing(
    server: UpdateServer, device: UpdatingDevice, second: Package
) -> None:
    desired = server.assign(second)
    device.update(desired)
    server.line.requests.clear()
    assert device.apply(desired)
    assert server.line.requests == []


@pytest.mark.parametrize("order", ["forwards", "backwards"])
def test_files_that_another_package_has_are_linked_instead_of_downloaded(
    server: UpdateServer,
    device: UpdatingDevice,
    first: Package,
    second: Package,
    monkeypatch: pytest.MonkeyPatch,
    *,
    order: str,
) -> None:
    listed = Path.iterdir  # which lists in any order that the file system likes
    monkeypatch.setattr(Path, "iterdir", lambda folder: iter(sorted(listed(folder), reverse=order == "backwards")))
    shared = first.manifest.files.keys() & second.manifest.files.keys()
    same = [name for name in shared if first.manifest.files[name] == second.manifest.files[name]]
    assert same
    server.line.requests.clear()
    device.apply(server.assign(second))
    for name in same:
        assert server.line.asked(blob_path(second.manifest.files[name].sha256)) == []
        packages = device.state / "packages"
        assert (packages / first.digest / name).samefile(packages / second.digest / name)


def test_what_a_model_runs_on_is_reported(device: UpdatingDevice, first: Package) -> None:
    assert device.reported().package == first.digest
    assert device.reported().runtime == ReportedRuntime(name="onnxruntime-cpu")


def test_a_package_that_fails_its_self_test_is_refused_and_not_tried_again_for_that_release(
    server: UpdateServer, device: UpdatingDevice, tmp_path: Path, first: Package
) -> None:
    bad = make_package(tmp_path / "built/bad", version="3", seed=3, golden_is_wrong=True)
    server.publisher.publish(bad)
    desired = server.assign(bad)
    assert device.apply(desired)
    assert device.version == "1"
    assert device.reported().step is UpdateStep.FAILED
    assert "output 'probabilities', row 3" in device.reported().reason
    assert device.told(EventKind.UPDATE_FAILED)[0].package == bad.digest
    assert device.packages() == {first.digest}
    server.line.requests.clear()
    assert device.apply(desired)
    assert server.line.requests == []
    again = server.assign(bad, release=7)
    assert device.apply(again)
    assert server.line.requests, "a newer release tries again"


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


def test_the_server_can_go_back_to_an_older_version_with_a_newer_release(
    server: UpdateServer, device: UpdatingDevice, first: Package, second: Package
) -> None:
    device.update(server.assign(second))
    device.update(server.assign(first))
    assert device.version == "1"


def test_the_probation_lasts_as_long_as_the_manifest_says(
    server: UpdateServer, device: UpdatingDevice, tmp_path: Path
) -> None:
    package = make_package(tmp_path / "built/3", version="3", probation=Probation(seconds=60))
    server.publisher.publish(package)
    device.apply(server.assign(package))
    device.installer.watch(device.now_s + 59)
    assert device.reported().step is UpdateStep.PROBATION
    device.installer.watch(device.now_s + 61)
    assert device.reported().step is UpdateStep.COMMITTED


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


@pytest.mark.parametrize("damage", [b'{"models": 3}', b'{"models": {"\xff": {}}}', b""])
def test_a_damaged_journal_is_set_aside_and_said(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "slots.json").write_bytes(damage)
    events: list[EventKind] = []
    installer = Installer(tmp_path, None, Slots(), lambda event: events.append(event.kind), load)
    installer.start()
    assert events == [EventKind.STORAGE]
    assert (tmp_path / "slots.damaged").exists()


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
    assert len(device.told(EventKind.UPDATE_FAILED)) == 1, "the same failure is told once"
    device.update(desired)
    assert device.version == "2"


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
    restarted = new_device()
    assert restarted.version == "2"
    obstacle.rmdir()
    restarted.pass_probation()
    assert restarted.reported().step is UpdateStep.COMMITTED


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
    assert "bytes of memory" in device.reported().reason
    assert server.line.asked(blob_path(huge.manifest.files["model.onnx"].sha256)) == []


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


def test_after_a_damaged_journal_the_packages_on_disk_spare_a_download(
    server: UpdateServer, device: UpdatingDevice, new_device: NewDevice, first: Package
) -> None:
    device.close()
    (device.state / "slots.json").write_bytes(b"rotten")
    restarted = new_device()
    assert restarted.slots.models() == []
    server.line.requests.clear()
    restarted.update(hint(first, 1))
    assert restarted.version == "1"
    asked = [path for _, path, _ in server.line.requests if path.startswith("/updates/targets/")]
    assert asked == [blob_path(first.digest)], "the manifest alone"
    assert restarted.packages() == {first.digest}


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


def test_a_package_that_no_longer_loads_for_a_reason_nobody_foresaw_does_not_keep_the_agent_from_starting(
    server: UpdateServer, device: UpdatingDevice, second: Package, caplog: pytest.LogCaptureFixture
) -> None:
    device.apply(server.assign(second))
    device.close()

    def fussy(package: Package) -> LoadedModel:
        if package.manifest.version == "2":
            raise MemoryError("a machine with less memory than before")
        return load(package)

    slots = Slots()
    installer = Installer(device.state, server.enrolment(), slots, lambda _event: None, fussy)
    installer.start()
    assert slots.get("digits").version == "1"
    assert "less memory" in installer.reported()["digits"].reason
    assert "less memory" in caplog.text
    installer.close()
    slots.close()


def test_until_the_swap_the_counts_are_reported_as_those_of_the_old_package(
    server: UpdateServer, device: UpdatingDevice, new_device: NewDevice, first: Package, second: Package
) -> None:
    """The reporter looks from another thread, also between the record of a swap and the swap."""
    seen: list[ReportedModel] = []
    device.close()

    def look(model: str, step: UpdateStep) -> None:
        if step is UpdateStep.PROBATION:
            seen.append(looking.installer.reported()[model])

    looking = new_device(after_step=look)
    looking.slots.get("digits").statistics.failed(1000)
    looking.apply(server.assign(second))
    (between,) = seen
    assert (between.version, between.package, between.failed) == ("1", first.digest, 1)
    assert (looking.reported().package, looking.reported().failed) == (second.digest, 0)


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


def test_an_orderly_stop_breaks_off_a_download_which_the_next_start_resumes(
    server: UpdateServer, device: UpdatingDevice, new_device: NewDevice, tmp_path: Path
) -> None:
    padding = np.random.default_rng(0).bytes(3 << 20)
    big = make_package(tmp_path / "built/big", version="5", seed=5, extra_files={"padding.bin": padding})
    server.publisher.publish(big)
    desired = server.assign(big)
    path = blob_path(big.manifest.files["padding.bin"].sha256)
    thread = UpdateThread(device.installer, watch_s=0.01)
    chunks = device.installer._files._chunks

    def slow(url: str, response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
        for chunk in chunks(url, response):
            yield chunk
            if url.endswith(path):
                arrived.set()
                time.sleep(0.05)

    arrived = threading.Event()
    device.installer._files._chunks = slow  # type: ignore[method-assign]
    thread.start()
    thread.submit(desired)
    assert arrived.wait(30)
    thread.stop()
    assert not thread._thread.is_alive()
    assert device.reported().step is UpdateStep.DOWNLOADING
    restarted = new_device()
    restarted.update(desired)
    assert restarted.version == "5"
    first_try, second_try = server.line.asked(path)
    assert first_try == ""
    assert second_try.startswith("bytes=")
