"""Rollouts on a real database and with a real director: what devices are told, and what is left after a fall."""

from __future__ import annotations

import msgspec
import pytest
from tuf.api.metadata import Metadata, Targets

from edge_agent.contract.repository import AssignedHardware, Assignment
from fleet_server.errors import Conflict, NotFound
from fleet_server.models.records import ReleaseState
from fleet_server.rollouts.rollout import Gate, Progress, State
from fleet_server.rollouts.service import RolloutService
from tests.fleet_server.fleet import Device, Fleet

GATE = Gate(soak_s=5, device_timeout_s=100, offline_timeout_s=20)

ASSIGNED = AssignedHardware(architecture="x86_64", runtimes={"onnxruntime": "1.23.2"})


def begin(fleet: Fleet, version: str, **options: object) -> str:
    return fleet.rollouts.create("digits", version, (1, 0.5, 1.0), gate=GATE, **options)  # type: ignore[arg-type]


def finish(fleet: Fleet, devices: list[Device], rollout: str) -> None:
    """Everybody does what it is asked to until the rollout is over."""
    for _ in range(30):
        fleet.tick(3)
        for device in devices:
            if "digits" in device.desired.models:
                device.update()
        if fleet.rollouts.get(rollout).state is not State.RUNNING:
            return


def signed(fleet: Fleet, device: str) -> tuple[str, Assignment]:
    """The target and assignment that the director has signed last for a device."""
    versions = [f"{number}.targets.json" for number in range(1, 40)]
    newest = next(data for name in reversed(versions) if (data := fleet.director.metadata(device, name)) is not None)
    ((path, target),) = Metadata[Targets].from_bytes(newest).signed.targets.items()
    return path, msgspec.convert(target.unrecognized_fields["custom"], Assignment)


def test_a_release_reaches_the_fleet_wave_by_wave_and_becomes_the_champion(fleet: Fleet) -> None:
    digest = fleet.publish("1")
    devices = [fleet.join(f"d{number}") for number in range(4)]
    rollout = begin(fleet, "1")
    fleet.tick()
    assert [len(device.desired.models) for device in devices] == [1, 0, 0, 0]
    wanted = devices[0].desired.models["digits"]
    assert (wanted.package, wanted.release, wanted.rollout) == (digest, 1, rollout)
    assignment = Assignment(device="d0", release=1, rollout=rollout, hardware=ASSIGNED)
    assert signed(fleet, "d0") == ("digits/1/manifest.json", assignment)
    finish(fleet, devices, rollout)
    assert fleet.rollouts.get(rollout).state is State.DONE
    assert {device.models["digits"].package for device in devices} == {digest}
    assert fleet.models.champion("digits") == (digest, "1")
    assert fleet.models.find("digits", "1").state is ReleaseState.ROLLED_OUT


def test_a_device_that_reports_other_hardware_is_assigned_its_package_anew(fleet: Fleet) -> None:
    fleet.publish("1")
    devices = [fleet.join(f"d{number}") for number in range(2)]
    rollout = begin(fleet, "1")
    finish(fleet, devices, rollout)
    before = [signed(fleet, device.name)[1] for device in devices]
    devices[1].hardware = msgspec.structs.replace(devices[1].hardware, accelerator="orin")
    devices[1].report()
    fleet.tick(11)
    after = [signed(fleet, device.name)[1] for device in devices]
    assert after[0] == before[0]
    assert after[1].hardware is not None
    assert (after[1].release, after[1].hardware.accelerator) == (before[1].release, "orin")


def test_a_failing_canary_halts_the_rollout_and_everyone_is_sent_back(fleet: Fleet) -> None:
    first = fleet.publish("1")
    devices = [fleet.join(f"d{number}") for number in range(4)]
    finish(fleet, devices, begin(fleet, "1"))
    fleet.publish("2")
    bad = begin(fleet, "2")
    fleet.tick()
    devices[0].update(fails="self-test: output probabilities differs")
    fleet.tick()
    halted = fleet.rollouts.get(bad)
    assert halted.state is State.HALTED
    assert "d0: self-test" in halted.note
    wanted = devices[0].desired.models["digits"]
    assert (wanted.package, wanted.release) == (first, 3)
    assert signed(fleet, "d0")[1].release == 3
    assert fleet.models.champion("digits") == (first, "1")
    assert fleet.models.find("digits", "2").state is ReleaseState.HALTED
    assert devices[1].desired.models["digits"].release == 1  # never asked
    before = [device.desired for device in devices]
    fleet.tick(60)
    assert [device.desired for device in devices] == before


def test_committed_devices_go_back_too_where_the_halt_says_so(fleet: Fleet) -> None:
    first = fleet.publish("1")
    devices = [fleet.join(f"d{number}") for number in range(2)]
    finish(fleet, devices, begin(fleet, "1"))
    second = fleet.publish("2")
    rollout = begin(fleet, "2")
    fleet.tick()
    devices[0].update()
    fleet.tick()
    assert fleet.rollouts.get(rollout).counts["committed"] == 1
    fleet.rollouts.halt(rollout, "wrong on line 3", revert=True)
    fleet.tick()
    assert devices[0].desired.models["digits"].package == first
    assert devices[0].models["digits"].package == second
    assert fleet.rollouts.get(rollout).devices[0].progress is Progress.REVERTED


def test_a_device_that_enrols_after_a_rollout_gets_the_champion(fleet: Fleet) -> None:
    digest = fleet.publish("1")
    finish(fleet, [fleet.join("d0")], begin(fleet, "1"))
    late = fleet.join("late")
    fleet.tick()
    assert late.desired.models["digits"].package == digest
    assert signed(fleet, "late")[1] == Assignment(device="late", release=1, hardware=ASSIGNED)


def test_a_device_that_enrols_during_a_rollout_gets_the_champion_first_and_the_release_in_the_last_wave(
    fleet: Fleet,
) -> None:
    first = fleet.publish("1")
    devices = [fleet.join("d0"), fleet.join("d1")]
    finish(fleet, devices, begin(fleet, "1"))
    second = fleet.publish("2")
    rollout = begin(fleet, "2")
    fleet.tick()
    late = fleet.join("late")
    fleet.tick()
    assert late.desired.models["digits"].package == first
    finish(fleet, [*devices, late], rollout)
    assert fleet.rollouts.get(rollout).state is State.DONE
    assert late.models["digits"].package == second


def test_a_rollout_before_any_device_is_done_and_the_first_device_gets_its_package(fleet: Fleet) -> None:
    digest = fleet.publish("1")
    rollout = begin(fleet, "1")
    fleet.tick()
    assert fleet.rollouts.get(rollout).state is State.DONE
    first = fleet.join("first")
    fleet.tick()
    assert first.desired.models["digits"].package == digest


def test_an_offline_device_is_skipped_and_catches_up_when_it_is_back(fleet: Fleet) -> None:
    digest = fleet.publish("1")
    devices = [fleet.join(f"d{number}") for number in range(3)]
    devices[2].disconnect()
    rollout = begin(fleet, "1")
    finish(fleet, devices[:2], rollout)
    assert fleet.rollouts.get(rollout).state is State.DONE
    assert fleet.rollouts.get(rollout).counts["skipped"] == 1
    assert devices[2].desired.models["digits"].package == digest  # retained: it finds it when it comes back


def test_a_server_that_fell_between_signing_and_announcing_assigns_again(fleet: Fleet) -> None:
    digest = fleet.publish("1")
    device = fleet.join("d0")
    rollout = begin(fleet, "1")
    lost = Assignment(device="d0", release=1, rollout=rollout)
    record = fleet.models.find("digits", "1")
    fleet.director.assign("d0", "digits/1/manifest.json", record.manifest_bytes, digest, lost)  # ... and the power goes
    fleet.tick()
    assert device.desired.models["digits"].release == 2
    assert signed(fleet, "d0")[1].release == 2
    device.update()
    finish(fleet, [device], rollout)
    assert fleet.rollouts.get(rollout).state is State.DONE


def test_a_rollout_goes_on_where_it_was_after_the_server_restarts(fleet: Fleet) -> None:
    fleet.publish("1")
    devices = [fleet.join(f"d{number}") for number in range(4)]
    rollout = begin(fleet, "1")
    fleet.tick()
    devices[0].update()
    fleet.tick()
    before = fleet.rollouts.get(rollout)
    fleet.rollouts = RolloutService(fleet.db, fleet.devices, fleet.models, fleet.director, clock=fleet.clock)
    assert fleet.rollouts.get(rollout) == before
    finish(fleet, devices, rollout)
    assert fleet.rollouts.get(rollout).state is State.DONE


def test_pausing_and_resuming(fleet: Fleet) -> None:
    fleet.publish("1")
    devices = [fleet.join(f"d{number}") for number in range(2)]
    rollout = begin(fleet, "1", start=False)
    fleet.tick()
    assert fleet.rollouts.get(rollout).state is State.DRAFT
    assert devices[0].desired.models == {}
    fleet.rollouts.resume(rollout)
    fleet.rollouts.pause(rollout)
    fleet.tick()
    assert devices[0].desired.models == {}
    fleet.rollouts.resume(rollout)
    finish(fleet, devices, rollout)
    assert fleet.rollouts.get(rollout).state is State.DONE
    with pytest.raises(Conflict, match="is done: it cannot become paused"):
        fleet.rollouts.pause(rollout)


def test_one_rollout_of_a_model_at_a_time_unless_it_supersedes(fleet: Fleet) -> None:
    fleet.publish("1")
    second = fleet.publish("2")
    devices = [fleet.join(f"d{number}") for number in range(2)]
    old = begin(fleet, "1")
    fleet.tick()
    with pytest.raises(Conflict, match=f"rollout {old} of digits 1 is running"):
        begin(fleet, "2")
    new = begin(fleet, "2", supersede=True)
    assert fleet.rollouts.get(old).state is State.HALTED
    assert new in fleet.rollouts.get(old).note
    assert fleet.models.find("digits", "1").state is ReleaseState.PUBLISHED  # not found wrong
    finish(fleet, devices, new)
    assert {device.models["digits"].package for device in devices} == {second}


def test_a_withdrawn_package_is_halted_never_rolled_out_again_and_no_champion(fleet: Fleet) -> None:
    first = fleet.publish("1")
    devices = [fleet.join(f"d{number}") for number in range(2)]
    finish(fleet, devices, begin(fleet, "1"))
    fleet.publish("2")
    rollout = begin(fleet, "2")
    fleet.tick()
    withdrawn = fleet.rollouts.withdraw(fleet.models.find("digits", "2"), "wrong labels")
    assert withdrawn.state is ReleaseState.WITHDRAWN
    assert fleet.rollouts.get(rollout).state is State.HALTED
    fleet.tick()
    assert devices[0].desired.models["digits"].package == first
    with pytest.raises(Conflict, match="withdrawn"):
        begin(fleet, "2")
    assert fleet.models.champion("digits") == (first, "1")


def test_an_older_version_rolls_the_fleet_back_and_is_the_champion_again(fleet: Fleet) -> None:
    first = fleet.publish("1")
    device = fleet.join("d0")
    finish(fleet, [device], begin(fleet, "1"))
    fleet.publish("2")
    finish(fleet, [device], begin(fleet, "2"))
    finish(fleet, [device], begin(fleet, "1"))
    assert device.models["digits"].package == first
    assert device.models["digits"].release == 3
    assert fleet.models.champion("digits") == (first, "1")


def test_what_does_not_exist_is_said_so(fleet: Fleet) -> None:
    with pytest.raises(NotFound, match="no model 'digits'"):
        begin(fleet, "1")
    with pytest.raises(NotFound, match="no rollout 'r-9'"):
        fleet.rollouts.get("r-9")


@pytest.mark.parametrize("pause", [False, True])
def test_an_automatic_rollout_gives_way_to_one_that_a_person_made(fleet: Fleet, *, pause: bool) -> None:
    fleet.publish("1")
    fleet.publish("2")
    fleet.join("d0")
    by_a_person = begin(fleet, "1")
    if pause:
        fleet.rollouts.pause(by_a_person)
    with pytest.raises(Conflict, match=r"2 is published and waits.*shoal rollouts create digits 2 --supersede"):
        begin(fleet, "2", supersede=True, automatic=True)
    assert fleet.rollouts.get(by_a_person).state is (State.PAUSED if pause else State.RUNNING)
    fleet.rollouts.halt(by_a_person, "enough")
    assert fleet.rollouts.get(begin(fleet, "2", supersede=True, automatic=True)).automatic


def test_an_automatic_rollout_supersedes_another_one(fleet: Fleet) -> None:
    fleet.publish("1")
    fleet.publish("2")
    fleet.join("d0")
    first = begin(fleet, "1", automatic=True)
    begin(fleet, "2", supersede=True, automatic=True)
    assert fleet.rollouts.get(first).state is State.HALTED
