"""What the server wishes for: newer releases, several models at once, windows, and the thread that carries them out."""

from __future__ import annotations

import datetime as dt
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import urllib3

from edge_agent.config import UpdateSettings
from edge_agent.contract.manifest import Probation
from edge_agent.contract.messages import Desired, EventKind, UpdateStep
from edge_agent.contract.repository import blob_path
from edge_agent.runtime.package import Package
from edge_agent.update.update_thread import UpdateThread
from tests.edge_agent.update.conftest import NewDevice
from tests.fakes.packages import make_package
from tests.fakes.update_server import UpdateServer, hint, update_server
from tests.fakes.updating_device import UpdatingDevice

NOON = dt.datetime.now(dt.UTC).replace(hour=12, minute=0, second=0, microsecond=0)
BIG_BYTES = 3 << 20


@pytest.fixture
def big(server: UpdateServer, tmp_path: Path) -> Package:
    padding = np.random.default_rng(0).bytes(BIG_BYTES)
    package = make_package(tmp_path / "built/big", version="5", seed=5, extra_files={"padding.bin": padding})
    server.publisher.publish(package)
    return package


def slowed(device: UpdatingDevice, package: Package) -> threading.Event:
    """Let the padding of a big package trickle in; the event tells that its first bytes are here."""
    arrived, path = threading.Event(), blob_path(package.manifest.files["padding.bin"].sha256)
    chunks = device.installer._files._chunks

    def slow(url: str, response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
        for chunk in chunks(url, response):
            yield chunk
            if url.endswith(path):
                arrived.set()
                time.sleep(0.05)

    device.installer._files._chunks = slow  # type: ignore[method-assign]
    return arrived


def eventually(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_newer_wish_breaks_the_download_of_an_older_one_off_and_comes_in_its_place(
    server: UpdateServer, device: UpdatingDevice, big: Package, second: Package
) -> None:
    arrived = slowed(device, big)
    thread = UpdateThread(device.installer, watch_s=0.01, retry_s=(0.05, 0.1))
    thread.start()
    thread.submit(server.assign(big))
    assert arrived.wait(30)
    thread.submit(server.assign(second))
    eventually(lambda: device.slots.get("digits").version == "2")
    thread.stop()
    assert device.reported().step is UpdateStep.PROBATION
    assert not [name for name in device.packages() if name.endswith(big.digest)], "its parts are not in the way"


def test_the_same_wish_again_does_not_break_its_download_off(
    server: UpdateServer, device: UpdatingDevice, big: Package
) -> None:
    arrived = slowed(device, big)
    thread = UpdateThread(device.installer, watch_s=0.01, retry_s=(0.05, 0.1))
    thread.start()
    desired = server.assign(big)
    thread.submit(desired)
    assert arrived.wait(30)
    thread.submit(msgspec.structs.replace(desired, revision=99))
    eventually(lambda: device.slots.get("digits").version == "5")
    thread.stop()
    assert len(server.line.asked(blob_path(big.manifest.files["padding.bin"].sha256))) == 1


def test_two_models_are_updated_by_one_wish_and_one_that_fails_does_not_hold_the_other_up(
    tmp_path: Path, new_device: Any
) -> None:
    del new_device
    with update_server(tmp_path / "two", models=("digits", "faces")) as server:
        device = UpdatingDevice(tmp_path / "state", server.enrolment())
        packages = [
            make_package(tmp_path / "bad", version="1", golden_is_wrong=True),
            make_package(tmp_path / "faces", name="faces", version="1", probation=Probation(seconds=5.0)),
        ]
        for package in packages:
            server.publisher.publish(package)
        each = [server.assign(package) for package in packages]
        desired = Desired(revision=1, models=each[0].models | each[1].models)
        assert not device.apply(desired)
        assert device.reported().step is UpdateStep.FAILED
        assert device.slots.get("faces").version == "1"
        device.pass_probation()
        assert device.apply(desired)
        assert device.installer.reported()["faces"].step is UpdateStep.COMMITTED
        device.close()


def test_one_model_s_probation_ends_while_another_is_downloaded(tmp_path: Path) -> None:
    with update_server(tmp_path / "two", models=("digits", "faces")) as server:
        device = UpdatingDevice(tmp_path / "state", server.enrolment())
        faces = make_package(tmp_path / "faces", name="faces", version="1", probation=Probation(seconds=1.0))
        padding = np.random.default_rng(0).bytes(BIG_BYTES)
        digits = make_package(tmp_path / "digits", version="5", extra_files={"padding.bin": padding})
        for package in (faces, digits):
            server.publisher.publish(package)
        device.apply(server.assign(faces))
        slowed(device, digits)

        def passing() -> float:
            device.now_s += 0.3
            return device.now_s

        device.installer._monotonic = passing
        device.apply(server.assign(digits))
        kinds = [(event.kind, event.model) for event in device.events]
        committed = kinds.index((EventKind.UPDATE_COMMITTED, "faces"))
        steps = [(event.model, event.detail.get("step")) for event in device.events]
        assert committed < steps.index(("digits", "verified"))
        device.close()


def test_outside_of_the_window_nothing_is_asked_of_the_server_and_the_reason_is_reported(
    server: UpdateServer, device: UpdatingDevice, new_device: NewDevice, second: Package
) -> None:
    device.close()
    now = [NOON]
    settings = UpdateSettings(window="22:00-04:00")
    device = new_device(settings=settings, utc_now=lambda: now[0], zone=dt.UTC)
    desired = server.assign(second)
    server.line.requests.clear()
    assert not device.apply(desired)
    assert server.line.requests == []
    reported = device.reported()
    assert (reported.step, reported.release) == (UpdateStep.COMMITTED, 2)
    assert reported.reason == "waits for the window 22:00-04:00 (updates.window, local time), which opens in 10 h 0 min"
    assert device.installer.waits_s == 36_000
    now[0] = NOON.replace(hour=23)
    device.update(desired)
    assert device.version == "2"


def test_a_window_that_closes_breaks_a_download_off_and_the_next_one_resumes_it(
    server: UpdateServer, device: UpdatingDevice, new_device: NewDevice, big: Package
) -> None:
    device.close()
    started = time.monotonic()
    hours = [3]

    def now() -> dt.datetime:
        return NOON.replace(hour=hours[0])

    device = new_device(settings=UpdateSettings(window="22:00-04:00"), utc_now=now, zone=dt.UTC)
    device.installer._monotonic = lambda: started + 100 * (time.monotonic() - started)
    arrived = slowed(device, big)
    threading.Thread(target=lambda: (arrived.wait(30), hours.__setitem__(0, 4)), daemon=True).start()
    desired = server.assign(big)
    assert not device.apply(desired)
    assert (device.version, device.reported().step) == ("1", UpdateStep.DOWNLOADING)
    assert "waits for the window" in device.reported().reason
    hours[0] = 22
    device.apply(desired)
    assert device.version == "5"
    first_try, second_try = server.line.asked(blob_path(big.manifest.files["padding.bin"].sha256))
    assert (first_try, second_try[:6]) == ("", "bytes=")


def test_a_probation_is_judged_and_rolled_back_outside_of_the_window(
    server: UpdateServer, device: UpdatingDevice, new_device: NewDevice, first: Package, second: Package
) -> None:
    device.close()
    now = [NOON.replace(hour=23)]
    device = new_device(settings=UpdateSettings(window="22:00-04:00"), utc_now=lambda: now[0], zone=dt.UTC)
    device.apply(server.assign(second))
    now[0] = NOON
    assert device.apply(server.assign(first)), "what was taken back goes back at any time"
    assert (device.version, device.reported().step) == ("1", UpdateStep.COMMITTED)
    now[0] = NOON.replace(hour=23)
    device.apply(server.assign(second))
    now[0] = NOON
    device.slots.get("digits").statistics.failed(1000)
    device.installer.watch()
    assert device.version == "1"


def test_a_fleet_is_kept_apart_by_a_wait_that_chance_draws(
    server: UpdateServer, device: UpdatingDevice, new_device: NewDevice, second: Package
) -> None:
    device.close()
    device = new_device(settings=UpdateSettings(jitter_s=3600.0))
    desired = server.assign(second)
    assert not device.apply(desired)
    assert "that keep a fleet apart" in device.reported().reason
    assert device.version == "1"
    device.now_s += 3600
    device.update(desired)
    assert device.version == "2"


def test_a_clock_years_ahead_or_behind_changes_neither_what_serves_nor_the_next_update(
    server: UpdateServer, device: UpdatingDevice, new_device: NewDevice, second: Package
) -> None:
    device.close()
    now = [dt.datetime.now(dt.UTC)]
    real = now[0]
    device = new_device(utc_now=lambda: now[0])
    desired = server.assign(second)
    now[0] = real.replace(year=real.year + 9)
    assert not device.apply(desired)
    assert (device.version, device.reported().step) == ("1", UpdateStep.FAILED)
    assert device.told(EventKind.METADATA_REFUSED)
    now[0] = real.replace(year=1971)
    device.update(desired)
    assert device.version == "2"


def test_a_wish_that_came_before_an_older_one_was_begun_breaks_that_off(
    server: UpdateServer, device: UpdatingDevice, big: Package, second: Package
) -> None:
    older = server.assign(big)
    device.installer.want(hint(second, 9))
    assert not device.apply(older)
    assert "wanted no more" in device.reported().reason
