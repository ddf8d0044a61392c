"""Rollouts among devices, files and people that are trouble: the rest of the fleet goes on."""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
import math
import sqlite3

import msgspec
import pytest

from edge_agent.contract.errors import ConfigurationError
from fleet_server.errors import Conflict
from fleet_server.rollouts import service as rollout_service
from fleet_server.rollouts.rollout import Gate, Progress, State
from tests.fleet_server.fleet import Device, Fleet

GATE = Gate(soak_s=5, device_timeout_s=1_000, offline_timeout_s=60)


def done(fleet: Fleet, version: str, devices: list[Device]) -> None:
    """Roll a version out to devices that obey."""
    rollout = fleet.rollouts.create("digits", version, (1.0,), gate=GATE)
    for _ in range(20):
        fleet.tick(3)
        for device in devices:
            device.update()
        if fleet.rollouts.get(rollout).state is State.DONE:
            return
    raise AssertionError(fleet.rollouts.get(rollout))


def damage(fleet: Fleet, device: str) -> None:
    """What a bad sector does to what the director has signed for a device."""
    with contextlib.closing(sqlite3.connect(fleet.folder / "director.db", isolation_level=None)) as store:
        store.execute("UPDATE signed SET targets = ? WHERE device = ?", (b'{"signed": {"_ty', device))


def progress(fleet: Fleet, rollout: str, device: str) -> Progress:
    return {one.device: one.progress for one in fleet.rollouts.get(rollout).devices}[device]


def test_a_device_that_was_shut_out_and_comes_back_gets_what_the_fleet_has_now(fleet: Fleet) -> None:
    fleet.publish("1")
    d0, d1 = fleet.join("d0"), fleet.join("d1")
    done(fleet, "1", [d0, d1])
    fleet.access.revoke_device("d1")
    second = fleet.publish("2")
    done(fleet, "2", [d0])
    back = fleet.join("d1")
    fleet.tick()
    assert back.desired.models["digits"].package == second
    assert back.desired.models["digits"].release == 2  # above all that it was ever told
    done(fleet, "1", [d0, back])


def test_a_device_that_only_enrols_anew_keeps_what_it_was_told(fleet: Fleet) -> None:
    fleet.publish("1")
    done(fleet, "1", [fleet.join("d0")])
    before = fleet.join("d0").desired.models
    fleet.tick()
    assert fleet.devices.get("d0").desired == before


def test_a_device_whose_metadata_is_damaged_holds_up_its_wave_but_no_other_device(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    fleet.publish("1")
    devices = [fleet.join(f"d{number}") for number in range(3)]
    done(fleet, "1", devices)
    damage(fleet, "d0")
    second = fleet.publish("2")
    rollout = fleet.rollouts.create("digits", "2", (1.0,), gate=GATE)
    with caplog.at_level(logging.ERROR):
        fleet.tick()
        fleet.tick()
    assert [device.desired.models["digits"].package == second for device in devices] == [False, True, True]
    stuck = fleet.rollouts.get(rollout)
    assert stuck.state is State.RUNNING
    assert "d0 cannot be told" in stuck.note
    assert "what director.db has of d0, version 1, is damaged" in stuck.note
    assert len(caplog.records) == 1  # not one a second


def test_a_halted_rollout_sends_back_whom_it_can_and_still_says_why_it_was_halted(fleet: Fleet) -> None:
    first = fleet.publish("1")
    devices = [fleet.join(f"d{number}") for number in range(3)]
    done(fleet, "1", devices)
    fleet.publish("2")
    rollout = fleet.rollouts.create("digits", "2", (1.0,), gate=GATE)
    fleet.tick()
    damage(fleet, "d0")
    fleet.rollouts.halt(rollout, "wrong on line 3")
    fleet.tick()
    assert fleet.rollouts.get(rollout).note == "wrong on line 3"
    assert [device.desired.models["digits"].package == first for device in devices] == [False, True, True]


def test_a_new_device_is_welcome_although_another_cannot_be(fleet: Fleet) -> None:
    digest = fleet.publish("1")
    done(fleet, "1", [fleet.join("d5")])
    fleet.access.revoke_device("d5")
    damage(fleet, "d5")
    fleet.join("d5")
    late = fleet.join("d9")
    with pytest.raises(ExceptionGroup) as raised:
        fleet.tick()
    assert raised.group_contains(ConfigurationError, match="damaged")
    assert late.desired.models["digits"].package == digest


def test_metadata_of_one_device_that_is_damaged_does_not_let_that_of_the_others_expire(fleet: Fleet) -> None:
    fleet.publish("1")
    done(fleet, "1", [fleet.join("d0"), fleet.join("d1")])
    damage(fleet, "d0")
    before = fleet.director.metadata("d1", "timestamp.json")
    with pytest.raises(ExceptionGroup):
        fleet.director.refresh(dt.datetime.now(dt.UTC) + dt.timedelta(days=6))
    assert fleet.director.metadata("d1", "timestamp.json") != before


def test_an_update_that_takes_long_may_lose_its_connection_for_a_moment(fleet: Fleet) -> None:
    fleet.publish("1")
    device = fleet.join("d0")
    rollout = fleet.rollouts.create("digits", "1", (1.0,), gate=GATE)
    fleet.tick()
    fleet.now_ms += 600_000
    device.disconnect()
    fleet.tick()
    assert progress(fleet, rollout, "d0") is Progress.ASSIGNED
    fleet.tick(61)
    assert progress(fleet, rollout, "d0") is Progress.SKIPPED


def test_a_restart_of_the_server_does_not_take_its_devices_for_gone(fleet: Fleet) -> None:
    fleet.publish("1")
    devices = [fleet.join(f"d{number}") for number in range(3)]
    rollout = fleet.rollouts.create("digits", "1", (1.0,), gate=Gate(soak_s=0, offline_timeout_s=60))
    fleet.tick()
    devices[0].update()
    fleet.now_ms += 300_000
    fleet.devices.forget_connections()
    fleet.tick()
    assert fleet.rollouts.get(rollout).state is State.RUNNING
    assert progress(fleet, rollout, "d1") is Progress.ASSIGNED


def test_a_device_shut_out_leaves_a_paused_rollout_too(fleet: Fleet) -> None:
    fleet.publish("1")
    fleet.join("d0")
    rollout = fleet.rollouts.create("digits", "1", (1.0,), gate=GATE)
    fleet.tick()
    fleet.rollouts.pause(rollout)
    fleet.access.revoke_device("d0")
    fleet.tick()
    assert fleet.rollouts.get(rollout).devices == ()


def test_a_large_wave_is_told_step_by_step(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout_service, "_AT_ONCE", 2)
    fleet.publish("1")
    devices = [fleet.join(f"d{number}") for number in range(5)]
    rollout = fleet.rollouts.create("digits", "1", (1.0,), gate=Gate(soak_s=0))
    told = []
    for _ in range(3):
        fleet.tick()
        told.append(sum(bool(device.desired.models) for device in devices))
    assert told == [2, 4, 5]
    assert fleet.rollouts.get(rollout).state is State.RUNNING


def test_a_package_withdrawn_meanwhile_is_not_rolled_out(fleet: Fleet) -> None:
    fleet.publish("1")
    fleet.rollouts.withdraw(fleet.models.find("digits", "1"), "wrong labels")
    with pytest.raises(Conflict, match=r"withdrawn \(wrong labels\)"):
        fleet.rollouts.create("digits", "1")
    assert fleet.rollouts.list() == []


@pytest.mark.parametrize("figures", [{"soak_s": math.inf}, {"soak_s": -1.0}, {"max_failed_rate": 2.0}])
def test_a_gate_that_nothing_could_pass_is_refused(figures: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="gate: "):
        Gate(**figures)  # type: ignore[arg-type]
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(figures, Gate)
