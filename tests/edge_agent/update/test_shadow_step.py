"""Updates whose candidates shadow what serves before they take its place."""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge_agent.config import UpdateSettings
from edge_agent.contract.manifest import Probation, Shadow
from edge_agent.contract.messages import Desired, EventKind, UpdateStep
from edge_agent.runtime.package import Package
from edge_agent.update import transitions
from tests.edge_agent.update.conftest import NewDevice
from tests.fakes.packages import make_package, reference_images
from tests.fakes.update_server import UpdateServer
from tests.fakes.updating_device import UpdatingDevice

RULE = Shadow(seconds=3600.0, rows=20, min_agreement=0.9)
Release = Callable[..., Package]


@pytest.fixture
def release(server: UpdateServer, tmp_path: Path) -> Release:
    def make(version: str = "12", *, seed: int = 1, **settings: Any) -> Package:
        settings = {"shadow": RULE, "probation": Probation(seconds=100.0), **settings}
        package = make_package(tmp_path / f"built/{version}", version=version, seed=seed, **settings)
        server.publisher.publish(package)
        return package

    return make


@pytest.fixture
def device(device: UpdatingDevice, new_device: NewDevice) -> UpdatingDevice:
    device.close()
    return new_device(with_shadows=True)


def shadowing(device: UpdatingDevice, desired: Desired) -> None:
    assert not device.apply(desired)
    assert device.reported().step is UpdateStep.SHADOW, device.reported()
    assert device.version == "1"


def test_a_candidate_that_agrees_serves_after_its_rows_and_the_figures_are_told(
    server: UpdateServer, device: UpdatingDevice, release: Release
) -> None:
    desired = server.assign(release())
    shadowing(device, desired)
    device.ask_until(lambda: "rows agree" in device.reported().reason, reference_images(4))
    assert "rows are asked for" in device.reported().reason
    assert "memory" in device.reported().reason
    device.ask_until(lambda: device.version == "12", reference_images(4))
    assert device.reported().step is UpdateStep.PROBATION
    steps = [event.detail["step"] for event in device.told(EventKind.UPDATE_STEP)]
    assert steps == ["resolved", "downloading", "verified", "staged", "self-tested", "shadow", "probation"]
    reason = device.told(EventKind.UPDATE_STEP)[-1].reason
    assert "rows agree (100.0%), median run" in reason
    assert "MiB beside" in reason
    device.pass_probation()
    assert device.apply(desired)
    assert device.reported().step is UpdateStep.COMMITTED


def test_a_candidate_that_says_otherwise_never_serves_and_is_refused(
    server: UpdateServer, device: UpdatingDevice, release: Release
) -> None:
    bad = release(seed=9)
    desired = server.assign(bad)
    shadowing(device, desired)
    device.ask_until(lambda: device.reported().step is UpdateStep.FAILED, reference_images(16))
    assert device.version == "1"
    assert "at least 90.0% are asked for" in device.reported().reason
    assert device.told(EventKind.UPDATE_FAILED)[-1].package == bad.digest
    assert device.apply(desired), "not tried again for that release"
    assert bad.digest not in device.packages()


def test_with_too_few_rows_it_goes_on_to_probation_when_its_time_is_over(
    server: UpdateServer, device: UpdatingDevice, release: Release
) -> None:
    shadowing(device, server.assign(release()))
    device.now_s += 3599
    device.installer.watch()
    assert device.version == "1"
    device.now_s += 2
    device.installer.watch()
    assert (device.version, device.reported().step) == ("12", UpdateStep.PROBATION)
    assert "were to be judged by" in device.told(EventKind.UPDATE_STEP)[-1].reason


def test_a_first_model_and_one_whose_manifest_asks_for_none_shadow_nothing(
    server: UpdateServer, device: UpdatingDevice, new_device: NewDevice, release: Release
) -> None:
    package = release()
    empty = new_device("camera-2", with_shadows=True)
    empty.apply(server.assign(package, device="camera-2"))
    assert empty.reported().step is UpdateStep.PROBATION
    device.apply(server.assign(release("13", shadow=Shadow())))
    assert device.reported().step is UpdateStep.PROBATION


def test_a_shadow_goes_on_after_a_restart_without_the_server_and_its_time_counts(
    server: UpdateServer, device: UpdatingDevice, new_device: NewDevice, release: Release
) -> None:
    desired = server.assign(release())
    shadowing(device, desired)
    device.now_s += 3000
    device.close()
    server.stop()
    restarted = new_device(with_shadows=True)
    assert restarted.version == "1"
    shadowing(restarted, desired)
    restarted.now_s += 599
    restarted.installer.watch()
    assert restarted.version == "1"
    restarted.now_s += 2
    restarted.installer.watch()
    assert (restarted.version, restarted.reported().step) == ("12", UpdateStep.PROBATION)


def test_the_time_of_a_shadow_that_a_crash_ended_counts_in_tenths(
    server: UpdateServer, device: UpdatingDevice, new_device: NewDevice, release: Release
) -> None:
    desired = server.assign(release())
    shadowing(device, desired)
    for _ in range(7):
        device.now_s += 100
        device.installer.watch()
    restarted = new_device(with_shadows=True)
    assert restarted.installer._journal.get("digits").watched_s == 400, "the last tenth that was whole"
    shadowing(restarted, desired)


def test_a_candidate_that_takes_the_agent_down_twice_while_it_shadows_is_refused(
    server: UpdateServer, device: UpdatingDevice, new_device: NewDevice, release: Release
) -> None:
    desired = server.assign(release())
    shadowing(device, desired)
    shadowing(new_device(with_shadows=True), desired)
    third = new_device(with_shadows=True)
    assert third.version == "1"
    assert third.reported().step is UpdateStep.FAILED
    assert "died 2 times while it was shadowed" in third.reported().reason
    assert third.apply(desired)


def test_a_newer_release_breaks_the_shadow_off_and_comes_in_its_place(
    server: UpdateServer, device: UpdatingDevice, release: Release
) -> None:
    old, new = release(), release("13", seed=3, shadow=Shadow())
    shadowing(device, server.assign(old))
    candidate = device.installer._shadow._running[("digits",)].candidates.models["digits"]
    desired = server.assign(new)
    device.apply(desired)
    assert (device.version, device.reported().step) == ("13", UpdateStep.PROBATION)
    assert device.shadows is not None
    assert device.shadows.report("digits") is None
    assert not candidate._open, "its memory is given back"
    assert old.digest not in device.packages()


def test_a_shadow_of_a_package_that_was_taken_back_is_broken_off_and_what_serves_stays_committed(
    server: UpdateServer, device: UpdatingDevice, release: Release, first: Package
) -> None:
    shadowing(device, server.assign(release()))
    assert device.apply(server.assign(first)), "as the server does when a rollout is halted"
    assert (device.version, device.reported().step) == ("1", UpdateStep.COMMITTED)
    assert not device.installer._shadow.groups()


def test_going_back_to_what_was_good_here_before_is_quick_and_not_compared_with_what_is_gone_back_from(
    server: UpdateServer, device: UpdatingDevice, release: Release
) -> None:
    good, bad = release(), release("13", seed=3, shadow=Shadow())
    shadowing(device, server.assign(good))
    device.now_s += 3601
    device.installer.watch()
    device.pass_probation()
    assert (device.version, device.reported().step) == ("12", UpdateStep.COMMITTED)
    device.update(server.assign(bad))
    server.line.requests.clear()
    device.apply(server.assign(good))
    assert (device.version, device.reported().step) == ("12", UpdateStep.PROBATION)
    assert [path for _, path, _ in server.line.requests if path.startswith("/updates/targets/")] == []
    assert device.installer._journal.get("digits").before is None
    device.pass_probation()
    assert device.reported().step is UpdateStep.COMMITTED
    device.apply(server.assign(release("14", seed=4)))
    assert (device.version, device.reported().step) == ("12", UpdateStep.SHADOW), "a new one is compared"


def test_a_model_that_the_server_names_no_more_is_shadowed_no_more(
    server: UpdateServer, device: UpdatingDevice, release: Release
) -> None:
    shadowing(device, server.assign(release()))
    device.apply(Desired(revision=9))
    assert (device.version, device.reported().step) == ("1", UpdateStep.FAILED)
    assert "does not name this model any more" in device.reported().reason


def test_unloading_the_champion_breaks_the_shadow_off_and_gives_the_memory_back(
    server: UpdateServer, device: UpdatingDevice, release: Release
) -> None:
    desired = server.assign(release())
    shadowing(device, desired)
    candidate = device.installer._shadow._running[("digits",)].candidates.models["digits"]
    device.slots.unload("digits", reason="unloaded on request")
    device.installer.watch()
    assert not candidate._open
    assert "was broken off" in device.reported().reason
    device.apply(desired)
    assert (device.version, device.reported().step) == ("12", UpdateStep.PROBATION), (
        "a new version serves, as documented"
    )


def test_a_shadow_runs_at_any_time_and_the_swap_waits_for_the_window(
    server: UpdateServer, device: UpdatingDevice, new_device: NewDevice, release: Release
) -> None:
    device.close()
    now = [dt.datetime.now(dt.UTC).replace(hour=1)]
    settings = UpdateSettings(window="00:00-04:00")
    night = new_device(with_shadows=True, settings=settings, utc_now=lambda: now[0], zone=dt.UTC)
    shadowing(night, server.assign(release()))
    now[0] = now[0].replace(hour=12)
    night.ask_until(lambda: "waits for the window" in night.reported().reason, reference_images(16))
    assert "rows agree" in night.reported().reason
    assert (night.version, night.reported().step) == ("1", UpdateStep.SHADOW)
    now[0] = now[0].replace(hour=2) + dt.timedelta(days=1)
    night.installer.watch()
    assert (night.version, night.reported().step) == ("12", UpdateStep.PROBATION)


def test_a_candidate_that_could_not_begin_to_shadow_is_closed_and_not_judged_and_comes_again(
    server: UpdateServer, device: UpdatingDevice, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    desired, start = server.assign(release()), threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "shadow":
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        assert not device.apply(desired)
        assert device.reported().step is UpdateStep.FAILED
        assert "can't start new thread" in device.reported().reason
    assert device.installer._shadow.groups() == [], "what is closed is not watched"
    shadowing(device, desired)
    device.ask_until(lambda: device.version == "12", reference_images(4))


def test_candidates_that_may_not_swap_are_closed(
    device: UpdatingDevice, release: Release, server: UpdateServer
) -> None:
    shadowing(device, server.assign(release()))
    (running,) = device.installer._shadow._running.values()
    record = device.installer._journal.get("digits")
    device.installer._journal.put({"digits": transitions.failed(record, "by hand", refuse=False)})
    with pytest.raises(transitions.IllegalStep):
        device.installer._watching.swap(("digits",), running.candidates, device.now_s)
    assert device.version == "1"
    assert not running.candidates.models["digits"]._open
