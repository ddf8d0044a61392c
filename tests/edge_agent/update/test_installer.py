"""Updates from the first step to the last."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import urllib3

from edge_agent.contract.manifest import Probation
from edge_agent.contract.messages import EventKind, ReportedModel, ReportedRuntime, UpdateStep
from edge_agent.contract.repository import blob_path
from edge_agent.runtime.package import Package
from edge_agent.update.update_thread import UpdateThread
from tests.edge_agent.update.conftest import NewDevice
from tests.fakes.packages import make_package
from tests.fakes.update_server import UpdateServer
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
    assert device.packages() == {first.digest, second.digest}, "the spare stays, the parts of downloads are gone"


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
