"""What becomes of one device of a rollout, by what it reports."""

from __future__ import annotations

import dataclasses

import pytest

from edge_agent.contract.messages import UpdateStep
from fleet_server.rollouts.member import look
from fleet_server.rollouts.rollout import Gate, Member, Progress, Rollout, Sight, State

NEW, OLD = "b" * 64, "a" * 64
ROLLOUT = Rollout(
    id="r-1", model="digits", package=NEW, version="2", waves=(1, 1.0), state=State.RUNNING,
    gate=Gate(device_timeout_s=100, offline_timeout_s=50),
)  # fmt: skip
ASSIGNED = Member(device="d1", progress=Progress.ASSIGNED, wave=0, assigned_at_ms=0, release=2, previous=OLD)
COMMITTED = dataclasses.replace(ASSIGNED, progress=Progress.COMMITTED)
DONE = Sight(online=True, package=NEW, version="2", step=UpdateStep.COMMITTED, target=NEW, release=2)
LOST = dataclasses.replace(
    DONE, package=OLD, version="1", step=UpdateStep.FAILED, reason="could not start: model.onnx", retries=True
)
LEFT = f"it left version 2 ({NEW[:12]}) and serves "


def after(member: Member, *sights: Sight, from_ms: int = 1_000) -> Member:
    for second, sight in enumerate(sights):
        member = look(ROLLOUT, member, sight, from_ms + 1_000 * second)
    return member


def test_what_the_device_tries_again_by_itself_has_the_time_that_every_device_has() -> None:
    full = dataclasses.replace(LOST, reason="needs 300 MB")
    assert after(ASSIGNED, full).progress is Progress.ASSIGNED
    late = after(ASSIGNED, full, from_ms=101_000)
    assert (late.progress, late.reason) == (Progress.FAILED, "not committed after 101 s: needs 300 MB")


@pytest.mark.parametrize("member", [ASSIGNED, COMMITTED])
def test_what_it_has_found_wrong_is_a_failure_at_once(member: Member) -> None:
    refused = dataclasses.replace(LOST, reason="self-test: output differs", retries=False)
    found = after(member, refused)
    assert found.progress is Progress.FAILED
    assert found.reason.endswith("self-test: output differs")
    assert found.reason.startswith(LEFT) == (member is COMMITTED)


@pytest.mark.parametrize(
    ("sight", "why"),
    [
        (LOST, f"{LEFT}version 1 ({OLD[:12]}): could not start: model.onnx"),
        (dataclasses.replace(LOST, package="", version=""), f"{LEFT}nothing: could not start: model.onnx"),
        # Its failure was never heard of.
        (dataclasses.replace(LOST, step=UpdateStep.RESOLVED, reason=""), f"{LEFT}version 1 ({OLD[:12]})"),
        # A start found the package whole again: it serves, and is to be tested as if it were new.
        (dataclasses.replace(LOST, package=NEW, version="2"), "could not start: model.onnx"),
    ],
)  # fmt: skip
def test_one_that_lost_the_package_to_its_disk_and_comes_back_to_it_has_not_failed(sight: Sight, why: str) -> None:
    found = after(COMMITTED, sight)
    assert (found.progress, found.assigned_at_ms) == (Progress.ASSIGNED, 1_000)
    assert found.reason == f"{why}; it brings the package on again"
    waits = dataclasses.replace(sight, step=UpdateStep.FAILED, retries=True, reason="the server is away")
    fetching = dataclasses.replace(sight, step=UpdateStep.DOWNLOADING, reason="1 of 3 MB")
    found = after(found, waits, fetching)
    assert found.progress is Progress.ASSIGNED
    assert found.failing_since_ms is not None
    assert after(found, DONE) == dataclasses.replace(COMMITTED, assigned_at_ms=1_000)


def test_one_that_lost_the_package_and_never_gets_back_to_it_has_failed() -> None:
    found = after(after(COMMITTED, LOST), LOST, from_ms=102_000)
    assert found.progress is Progress.FAILED
    assert "it brings the package on again; not committed after 101 s" in found.reason


def test_one_that_lost_the_package_and_then_its_line_is_skipped_and_catches_up() -> None:
    away = dataclasses.replace(LOST, online=False, changed_at_ms=2_000)
    found = after(after(COMMITTED, LOST), away, away, from_ms=60_000)
    assert found.progress is Progress.SKIPPED
    found = after(found, LOST, from_ms=500_000)
    assert (found.progress, found.assigned_at_ms) == (Progress.ASSIGNED, 500_000)
    assert after(found, DONE).progress is Progress.COMMITTED


@pytest.mark.parametrize("shown", ["its window", "a line that breaks"])
def test_one_that_fails_again_and_again_is_waited_for_two_days_whatever_puts_its_time_off(shown: str) -> None:
    minute, found, at = 60_000, ASSIGNED, 0
    while found.progress is not Progress.FAILED:
        at += minute
        assert at < 4 * 24 * 60 * minute
        if shown == "its window":
            sight = dataclasses.replace(LOST, waits_until_ms=at + 20 * minute if at % (10 * minute) else None)
        else:
            sight = dataclasses.replace(LOST, online=bool(at % (2 * minute)), changed_at_ms=at - minute + 1)
        found = look(ROLLOUT, found, sight, at)
    over = at - 2 * 24 * 60 * minute
    assert over == (2 if shown == "its window" else 3) * minute, "when it is there to be told of"
    assert found.reason == "fails again and again for 48 h: could not start: model.onnx"


def test_one_that_committed_and_went_to_another_package_has_failed() -> None:
    elsewhere = Sight(
        online=True, package=OLD, version="1", step=UpdateStep.COMMITTED, target=OLD, release=2, reason="by hand"
    )
    found = after(COMMITTED, elsewhere)
    assert (found.progress, found.reason) == (Progress.FAILED, f"{LEFT}version 1 ({OLD[:12]}): by hand")
    late = dataclasses.replace(elsewhere, release=1)  # a report from before the assignment
    assert after(COMMITTED, late) == COMMITTED
