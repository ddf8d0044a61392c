"""Models on probation: what they are judged by, for how long, and what becomes of those that fail."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_agent.contract.manifest import Probation
from edge_agent.contract.messages import EventKind, UpdateStep
from edge_agent.runtime.package import Package
from edge_agent.runtime.slots import LoadedModel
from edge_agent.update.judgement import Seen
from edge_agent.update.seen import Sight
from tests.edge_agent.update.conftest import NewDevice
from tests.fakes.packages import PIXELS, make_package, reference_images
from tests.fakes.update_server import UpdateServer, hint
from tests.fakes.updating_device import UpdatingDevice

Release = Callable[..., Package]
BRIGHT = np.full((1, PIXELS), 0.97, np.float32)


@pytest.fixture
def release(server: UpdateServer, tmp_path: Path) -> Release:
    def make(version: str = "12", *, seed: int = 5, **settings: Any) -> Package:
        package = make_package(tmp_path / f"built/{version}", version=version, seed=seed, **settings)
        server.publisher.publish(package)
        return package

    return make


def test_a_version_that_fails_only_after_an_hour_is_rolled_back_within_a_long_probation(
    server: UpdateServer, device: UpdatingDevice, release: Release
) -> None:
    desired = server.assign(release(fails_above=0.95, probation=Probation(seconds=7200.0)))
    before = device.infer()
    device.apply(desired)
    for _ in range(60):
        device.now_s += 60
        device.ask(reference_images(1))
        device.installer.watch()
    assert (device.version, device.reported().step) == ("12", UpdateStep.PROBATION)
    assert device.reported().reason == "60 requests, 0 of them failed; 3600 s are left"
    device.ask(BRIGHT)
    device.installer.watch()
    assert (device.version, device.reported().step) == ("1", UpdateStep.FAILED)
    np.testing.assert_array_equal(device.infer(), before)
    assert device.apply(desired)


def test_a_version_that_takes_the_agent_down_after_an_hour_is_rolled_back_when_it_does_so_again(
    server: UpdateServer, device: UpdatingDevice, new_device: NewDevice, release: Release
) -> None:
    device.apply(server.assign(release(probation=Probation(seconds=36_000.0))))
    for _ in range(6):
        device.now_s += 600
        device.installer.watch()
    again = new_device()
    assert again.version == "12"
    again.now_s += 3600
    again.installer.watch()
    assert new_device().version == "1"


def test_power_cuts_are_not_held_against_the_package_and_the_time_on_probation_survives_them(
    server: UpdateServer, device: UpdatingDevice, new_device: NewDevice, release: Release
) -> None:
    device.close()
    device = new_device(boot="monday")
    desired = server.assign(release(probation=Probation(seconds=6000.0)))
    device.apply(desired)
    for day in ("tuesday", "wednesday", "thursday"):
        for _ in range(4):
            device.now_s += 500
            device.installer.watch()
        device = new_device(boot=day)
        assert device.version == "12"
    device.now_s += 1000
    device.installer.watch()
    assert device.reported().step is UpdateStep.COMMITTED, "three times 1800 s were written down"


def test_an_orderly_restart_keeps_the_time_to_the_second(
    server: UpdateServer, device: UpdatingDevice, new_device: NewDevice, release: Release
) -> None:
    device.apply(server.assign(release(probation=Probation(seconds=100.0))))
    device.now_s += 60
    device.close()
    restarted = new_device()
    restarted.now_s += 39
    restarted.installer.watch()
    assert restarted.reported().step is UpdateStep.PROBATION
    restarted.now_s += 1
    restarted.installer.watch()
    assert restarted.reported().step is UpdateStep.COMMITTED


def test_a_probation_writes_to_flash_a_tenth_of_its_time_at_most(
    server: UpdateServer, device: UpdatingDevice, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    device.apply(server.assign(release(probation=Probation(seconds=3600.0))))
    writes: list[int] = []
    real = device.installer._journal._file._write

    def noted(records: Any) -> None:
        writes.append(1)
        real(records)

    monkeypatch.setattr(device.installer._journal._file, "_write", noted)
    for _ in range(3599):
        device.now_s += 1
        device.installer.watch()
    assert 0 < len(writes) <= 10


def test_a_version_that_predicts_otherwise_than_the_one_before_it_did_here_is_rolled_back(
    server: UpdateServer, device: UpdatingDevice, new_device: NewDevice, release: Release
) -> None:
    classes = {"1": {"3": 500, "7": 500}, "12": {"3": 950, "7": 50}}

    def seen(loaded: LoadedModel) -> Seen:
        found = Sight()(loaded)
        return Seen(requests=1000, failed=0, latency=found.latency, classes=classes[loaded.version])

    device.close()
    device = new_device(seen=seen)
    device.apply(server.assign(release(probation=Probation(seconds=60.0, max_prediction_shift=0.2))))
    restarted = new_device(seen=seen)
    assert restarted.version == "12", "what the one before did is remembered"
    restarted.installer.watch()
    assert restarted.version == "1"
    assert "its predictions have shifted by 0.45" in restarted.reported().reason


def test_a_version_that_is_slower_than_the_one_before_it_was_here_is_rolled_back(
    server: UpdateServer, device: UpdatingDevice, release: Release
) -> None:
    for _ in range(60):
        device.slots.get("digits").statistics.answered(1, 0, 1_000_000, 0)
        device.slots.get("digits").statistics.executed(1, 1_000_000)
    device.apply(server.assign(release(probation=Probation(seconds=60.0, max_latency_ratio=2.0))))
    for _ in range(60):
        device.slots.get("digits").statistics.answered(1, 0, 9_000_000, 0)
    device.installer.watch()
    assert device.version == "1"
    assert "its median request took 9." in device.reported().reason


def test_clocks_that_jump_neither_end_a_probation_nor_prolong_it(
    server: UpdateServer, device: UpdatingDevice, new_device: NewDevice, release: Release
) -> None:
    import datetime as dt

    now = [dt.datetime.now(dt.UTC)]
    device.close()
    device = new_device(utc_now=lambda: now[0])
    device.apply(server.assign(release(probation=Probation(seconds=60.0))))
    for year in (1970, 2099, 2001):
        now[0] = now[0].replace(year=year)
        device.now_s += 10
        device.installer.watch()
        assert device.reported().step is UpdateStep.PROBATION
    device.now_s += 31
    device.installer.watch()
    assert device.reported().step is UpdateStep.COMMITTED


def test_a_newer_release_ends_a_probation_going_back_to_what_has_proved_itself_first(
    server: UpdateServer, device: UpdatingDevice, release: Release, second: Package
) -> None:
    device.apply(server.assign(release(probation=Probation(seconds=86_400.0))))
    desired = server.assign(second)
    device.apply(desired)
    assert (device.version, device.reported().step) == ("2", UpdateStep.PROBATION)
    rolled_back = device.told(EventKind.ROLLED_BACK)[-1]
    assert rolled_back.reason == "release 3 is wanted in its place"
    device.pass_probation()
    assert device.apply(desired)


def test_a_release_that_is_taken_back_on_probation_goes_back_at_once_with_nothing_to_download(
    server: UpdateServer, device: UpdatingDevice, release: Release, first: Package
) -> None:
    device.apply(server.assign(release(probation=Probation(seconds=86_400.0))))
    server.line.requests.clear()
    assert device.apply(server.assign(first))
    assert (device.version, device.reported().step, device.reported().reason) == ("1", UpdateStep.COMMITTED, "")
    assert not [path for _, path, _ in server.line.requests if "/targets/" in path]


def test_a_hint_of_a_newer_release_that_nobody_signed_leaves_a_probation_alone(
    server: UpdateServer, device: UpdatingDevice, release: Release, first: Package
) -> None:
    device.apply(server.assign(release(probation=Probation(seconds=60.0))))
    assert not device.apply(hint(first, 99))
    assert (device.version, device.reported().step) == ("12", UpdateStep.PROBATION)
    assert "release 99 was announced" in device.reported().reason
    device.pass_probation()
    assert device.reported().step is UpdateStep.COMMITTED


def test_the_same_package_under_a_newer_release_goes_on_with_its_probation(
    server: UpdateServer, device: UpdatingDevice, release: Release
) -> None:
    package = release(probation=Probation(seconds=60.0))
    device.apply(server.assign(package))
    device.now_s += 30
    assert not device.apply(server.assign(package, release=9))
    assert (device.version, device.reported().step, device.reported().release) == ("12", UpdateStep.PROBATION, 9)
    device.now_s += 31
    device.installer.watch()
    assert device.reported().step is UpdateStep.COMMITTED
