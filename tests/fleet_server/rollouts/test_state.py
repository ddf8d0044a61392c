"""The rules of a rollout, one by one."""

from __future__ import annotations

import dataclasses

import pytest

from edge_agent.contract.messages import UpdateStep
from fleet_server.errors import Conflict
from fleet_server.rollouts import state
from fleet_server.rollouts.rollout import Gate, Progress, Rollout, Sight, State

NEW, OLD = "b" * 64, "a" * 64
FLEET = ["d1", "d2", "d3", "d4"]


def rollout(**changes: object) -> Rollout:
    gate = Gate(soak_s=10, device_timeout_s=100, offline_timeout_s=50)
    fields: dict[str, object] = {"id": "r-1", "model": "digits", "package": NEW, "version": "2", "gate": gate}
    begun = Rollout(**{**fields, "waves": (1, 0.5, 1.0), **changes})  # type: ignore[arg-type]
    return state.join(state.move(begun, State.RUNNING), FLEET)


def online(**changes: object) -> Sight:
    return dataclasses.replace(Sight(online=True, package=OLD, step=UpdateStep.COMMITTED, release=1), **changes)  # type: ignore[arg-type]


def everyone(**changes: object) -> dict[str, Sight]:
    return {device: online(**changes) for device in FLEET}


def assign_due(one: Rollout, sights: dict[str, Sight], now_ms: int) -> Rollout:
    for device in state.due(one, sights):
        one = state.assigned(one, device, release=2, previous=OLD, now_ms=now_ms)
    return one


def commit(sights: dict[str, Sight], *devices: str, **changes: object) -> None:
    for device in devices:
        sights[device] = online(package=NEW, target=NEW, release=2, **changes)


def test_one_device_is_the_canary_then_half_then_all() -> None:
    one, sights = rollout(), everyone()
    one = assign_due(one, sights, 0)
    assert [member.device for member in one.members.values() if member.progress is Progress.ASSIGNED] == ["d1"]
    commit(sights, "d1")
    one = state.observe(one, sights, 1_000)
    assert one.wave == 0  # healthy, but not for long enough
    assert "soak" in one.note
    one = state.observe(one, sights, 11_000)
    assert one.wave == 1
    one = assign_due(one, sights, 11_000)
    assert one.count(Progress.ASSIGNED) == 1  # half of four, the canary counted
    commit(sights, "d2")
    one = state.observe(state.observe(one, sights, 12_000), sights, 22_000)
    one = assign_due(one, sights, 22_000)
    commit(sights, "d3", "d4")
    one = state.observe(state.observe(one, sights, 23_000), sights, 33_000)
    assert one.state is State.DONE
    assert one.count(Progress.COMMITTED) == 4


def test_a_wave_does_not_pass_while_a_device_has_answered_too_few_requests() -> None:
    one, sights = rollout(gate=Gate(soak_s=0, min_requests=50)), everyone()
    one = assign_due(one, sights, 0)
    commit(sights, "d1", requests=49)
    one = state.observe(one, sights, 1_000)
    assert one.wave == 0
    assert "50 requests" in one.note
    commit(sights, "d1", requests=50)
    assert state.observe(one, sights, 2_000).wave == 1


def test_a_failing_request_rate_halts_the_rollout_and_names_the_device() -> None:
    one, sights = rollout(), everyone()
    one = assign_due(one, sights, 0)
    commit(sights, "d1", requests=100, failed=2)
    one = state.observe(one, sights, 1_000)
    assert one.state is State.HALTED
    assert "d1: 2 of 100 requests failed" in one.note
    assert state.due(one, sights) == ()


def test_a_device_that_rolls_back_after_it_committed_halts_the_rollout() -> None:
    one, sights = rollout(), everyone()
    one = assign_due(one, sights, 0)
    commit(sights, "d1")
    one = state.observe(one, sights, 1_000)
    assert one.count(Progress.COMMITTED) == 1
    sights["d1"] = online(release=2, reason="crashed")
    assert state.observe(one, sights, 2_000).state is State.HALTED


def test_a_device_that_left_the_package_is_told_of_with_what_it_left_what_it_serves_and_why() -> None:
    one, sights = rollout(), everyone()
    one = assign_due(one, sights, 0)
    commit(sights, "d1")
    one = state.observe(one, sights, 1_000)
    sights["d1"] = online(version="1", release=2, reason="taken back by hand")
    one = state.observe(one, sights, 2_000)
    left = f"it left version 2 ({NEW[:12]}) and serves version 1 ({OLD[:12]}): taken back by hand"
    assert one.note == f"1 failed, 0 allowed (d1: {left})"


def test_a_failed_self_test_halts_and_sends_back_what_has_not_committed() -> None:
    one, sights = rollout(waves=(2, 1.0)), everyone()
    one = assign_due(one, sights, 0)
    sights["d1"] = online(step=UpdateStep.FAILED, target=NEW, release=2, reason="self-test: output differs")
    commit(sights, "d2")
    one = state.observe(one, sights, 1_000)
    assert one.state is State.HALTED
    assert [member.device for member in state.to_revert(one)] == ["d1"]
    everything = dataclasses.replace(one, revert=True)
    assert [member.device for member in state.to_revert(everything)] == ["d1", "d2"]


def test_an_old_failure_of_the_same_package_is_not_taken_for_a_new_one() -> None:
    one, sights = rollout(), everyone(step=UpdateStep.FAILED, target=NEW, release=1, reason="long ago")
    one = state.observe(assign_due(one, sights, 0), sights, 1_000)
    assert one.state is State.RUNNING


def test_failures_within_the_allowance_do_not_halt() -> None:
    one, sights = rollout(gate=Gate(soak_s=0, max_failures=1), waves=(2, 1.0)), everyone()
    one = assign_due(one, sights, 0)
    sights["d1"] = online(step=UpdateStep.FAILED, target=NEW, release=2, reason="no memory")
    commit(sights, "d2")
    one = state.observe(one, sights, 1_000)
    assert one.state is State.RUNNING
    assert one.wave == 1


def test_an_offline_device_is_never_a_canary_and_is_skipped_when_it_stays_away() -> None:
    one, sights = rollout(), everyone()
    sights["d1"] = dataclasses.replace(sights["d1"], online=False)
    assert state.due(one, sights) == ("d2",)
    one = assign_due(one, sights, 0)
    sights["d2"] = dataclasses.replace(sights["d2"], online=False)
    one = state.observe(one, sights, 51_000)
    assert one.members["d2"].progress is Progress.SKIPPED
    assert state.due(one, sights) == ("d3",)  # somebody must be the canary
    one = assign_due(one, sights, 51_000)
    commit(sights, "d2", "d3")
    assert state.observe(one, sights, 52_000).members["d2"].progress is Progress.COMMITTED  # it caught up


def test_the_last_wave_ends_though_a_device_stays_offline() -> None:
    one, sights = rollout(waves=(1.0,), gate=Gate(soak_s=0, offline_timeout_s=50)), everyone()
    sights["d4"] = Sight(online=False)
    one = assign_due(one, sights, 0)
    commit(sights, "d1", "d2", "d3")
    one = state.observe(one, sights, 1_000)
    assert one.state is State.RUNNING
    assert "d4" in one.note
    one = state.observe(one, sights, 51_000)
    assert one.state is State.DONE
    assert one.members["d4"].progress is Progress.SKIPPED
    assert "1 offline" in one.note


def test_a_fleet_that_is_all_offline_is_waited_for() -> None:
    one = rollout()
    sights = {device: Sight(online=False) for device in FLEET}
    one = state.observe(assign_due(one, sights, 0), sights, 10_000_000)
    assert (one.state, one.wave) == (State.RUNNING, 0)
    assert one.count(Progress.WAITING) == 4


def test_a_connected_device_that_never_ends_its_update_has_failed() -> None:
    one, sights = rollout(), everyone()
    one = assign_due(one, sights, 0)
    sights["d1"] = online(step=UpdateStep.DOWNLOADING, target=NEW, release=2, reason="server away")
    one = state.observe(one, sights, 101_000)
    assert one.state is State.HALTED
    assert "server away" in one.note


def test_a_device_that_shadows_has_neither_failed_nor_committed_and_what_it_does_is_told() -> None:
    one, sights = rollout(watched_s=3600.0), everyone()
    one = assign_due(one, sights, 0)
    sights["d1"] = online(step=UpdateStep.SHADOW, target=NEW, release=2, reason="12 of 12 rows agree")
    one = state.observe(one, sights, 3_000_000)
    assert one.members["d1"].progress is Progress.ASSIGNED
    assert one.note == "1 device has yet to commit: d1 (shadow: 12 of 12 rows agree)"
    one = state.observe(one, sights, 3_701_000)
    assert one.state is State.HALTED, "stuck: longer than its shadow, its probation and the gate's patience together"


def test_a_device_that_waits_for_its_window_is_waited_for_and_its_time_begins_then() -> None:
    one, sights = rollout(), everyone()
    one = assign_due(one, sights, 0)
    sights["d1"] = online(release=2, reason="waits for the window 22:00-05:00", waits_until_ms=36_000_000)
    one = state.observe(one, sights, 20_000_000)
    assert one.members["d1"].progress is Progress.ASSIGNED
    assert one.note == "1 device has yet to commit: d1 (waits for the window 22:00-05:00)"
    sights["d1"] = online(step=UpdateStep.DOWNLOADING, target=NEW, release=2)
    one = state.observe(one, sights, 36_099_000)
    assert one.members["d1"].progress is Progress.ASSIGNED
    assert state.observe(one, sights, 36_101_000).state is State.HALTED


def test_a_device_that_goes_away_while_it_waits_for_its_window_is_skipped() -> None:
    one, sights = rollout(), everyone()
    one = assign_due(one, sights, 0)
    sights["d1"] = online(release=2, waits_until_ms=36_000_000)
    one = state.observe(one, sights, 1_000_000)
    sights["d1"] = dataclasses.replace(sights["d1"], online=False, changed_at_ms=1_000_000)
    assert state.observe(one, sights, 1_051_000).members["d1"].progress is Progress.SKIPPED


def test_a_device_that_says_it_waits_for_years_is_not_believed() -> None:
    one, sights = rollout(), everyone()
    one = assign_due(one, sights, 0)
    sights["d1"] = online(release=2, waits_until_ms=10**14)
    one = state.observe(one, sights, 1000)
    assert one.members["d1"].assigned_at_ms == 1000 + 2 * 24 * 3600 * 1000


def test_a_device_that_enrols_meanwhile_joins_and_a_revoked_one_leaves() -> None:
    one = state.join(rollout(), [*FLEET[1:], "d5"])
    assert sorted(one.members) == ["d2", "d3", "d4", "d5"]
    assert one.members["d5"].progress is Progress.WAITING


def test_pausing_assigns_nobody_and_still_sees_failures() -> None:
    one, sights = rollout(), everyone()
    one = state.move(assign_due(one, sights, 0), State.PAUSED)
    commit(sights, "d1")
    one = state.observe(state.observe(one, sights, 1_000), sights, 1_000_000)
    assert (one.state, one.wave) == (State.PAUSED, 0)
    assert state.due(one, sights) == ()
    sights["d1"] = online(release=2)
    assert state.observe(one, sights, 2_000_000).state is State.HALTED


def test_a_halted_rollout_cannot_be_resumed() -> None:
    halted = state.move(rollout(), State.HALTED, "because")
    for wanted in State:
        with pytest.raises(Conflict, match=r"r-1 is halted"):
            state.move(halted, wanted)


def test_a_fleet_without_devices_is_done_at_once() -> None:
    one = state.join(rollout(), [])
    one = state.observe(one, {}, 0)
    assert one.state is State.DONE
