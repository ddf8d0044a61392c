"""What becomes of one device of a rollout, by what it reports. Pure."""

from __future__ import annotations

import dataclasses

from edge_agent.contract.messages import COULD_NOT_START, UpdateStep
from fleet_server.rollouts.rollout import Gate, Member, Progress, Rollout, Sight

# A device's window comes every day, and what chance draws is shorter: who says more is not believed.
_LONGEST_WAIT_MS = 2 * 24 * 3600 * 1000


def look(rollout: Rollout, member: Member, sight: Sight, now_ms: int) -> Member:
    """The member after what its device reports."""
    if member.progress in {Progress.WAITING, Progress.REVERTED}:
        return member
    gate = rollout.gate
    if sight.package == rollout.package and sight.step is UpdateStep.COMMITTED:
        if too_many_failed(gate, sight):
            return _failed(member, f"{sight.failed} of {sight.requests} requests failed")
        return dataclasses.replace(member, progress=Progress.COMMITTED, reason="")
    if member.progress is Progress.FAILED:
        return member
    if _comes_back(rollout, member, sight):
        if member.progress is Progress.ASSIGNED:
            return _patience(rollout, member, sight, now_ms)
        again = f"{_left(rollout, sight)}; it fetches the package again"
        return dataclasses.replace(member, progress=Progress.ASSIGNED, assigned_at_ms=now_ms, reason=again)
    if _refused(rollout, member, sight):
        return _failed(member, sight.reason or "the device did not say why")
    if member.progress is Progress.COMMITTED:
        # Reports are retained and may come late: only its own word that it left the package is a failure.
        left = sight.package is not None and sight.package != rollout.package and sight.release >= member.release
        return _failed(member, _left(rollout, sight)) if left else member
    if member.progress is Progress.SKIPPED and sight.online:
        return dataclasses.replace(member, progress=Progress.ASSIGNED, assigned_at_ms=now_ms, reason="")
    return _patience(rollout, member, sight, now_ms) if member.progress is Progress.ASSIGNED else member


def _patience(rollout: Rollout, member: Member, sight: Sight, now_ms: int) -> Member:
    """An assigned device that has not ended its update yet."""
    gate = rollout.gate
    waited_s = (now_ms - member.assigned_at_ms) / 1000 if member.assigned_at_ms is not None else 0.0
    # Not from the assignment on: an update may take long, and a connection that breaks meanwhile has just broken.
    away_s = waited_s if sight.changed_at_ms is None else (now_ms - sight.changed_at_ms) / 1000
    if member.assigned_at_ms is not None and waited_s >= 0:  # else it waits for its window
        away_s = min(waited_s, away_s)
    if not sight.online and away_s > gate.offline_timeout_s:
        return dataclasses.replace(member, progress=Progress.SKIPPED, reason="offline; it catches up later")
    if sight.online and sight.waits_until_ms is not None and sight.waits_until_ms > now_ms:
        # Its time begins when its wait ends.
        begins_ms = min(sight.waits_until_ms, now_ms + _LONGEST_WAIT_MS)
        if member.assigned_at_ms is None or begins_ms > member.assigned_at_ms:
            return dataclasses.replace(member, assigned_at_ms=begins_ms)
        return member
    if sight.online and waited_s > gate.device_timeout_s + rollout.watched_s:
        why = f"not committed after {round(waited_s)} s: {sight.reason or 'it says no reason'}"
        return _failed(member, f"{member.reason}; {why}" if member.reason else why)
    return member


def _refused(rollout: Rollout, member: Member, sight: Sight) -> bool:
    # Another target or a lower release is an old failure, which the device reports until it begins anew.
    failed = sight.step is UpdateStep.FAILED and sight.target == rollout.package
    return failed and sight.release >= member.release


def _comes_back(rollout: Rollout, member: Member, sight: Sight) -> bool:
    """Whether a device had committed, lost the package to its disk, and brings it on anew by itself.

    That says nothing against the release: what is wrong with the package itself the device refuses when it tests it
    again, and does not try again under the same release. Its patience is what a device has that was just assigned.
    """
    once_committed = member.progress is Progress.COMMITTED or (
        member.progress is Progress.ASSIGNED and member.reason != ""
    )
    is_ours = sight.target == rollout.package and sight.release >= member.release
    if not once_committed or not is_ours or sight.package in {None, rollout.package}:
        return False
    if sight.step is UpdateStep.FAILED:  # so it says until it begins
        return sight.reason.startswith(COULD_NOT_START)
    return sight.step is not UpdateStep.COMMITTED


def _left(rollout: Rollout, sight: Sight) -> str:
    serves = f"version {sight.version} ({sight.package[:12]})" if sight.package else "nothing"
    text = f"it left version {rollout.version} ({rollout.package[:12]}) and serves {serves}"
    ended = sight.step in {UpdateStep.COMMITTED, UpdateStep.FAILED}  # else its reason is how far it is
    return f"{text}: {sight.reason}" if ended and sight.reason else text


def too_many_failed(gate: Gate, sight: Sight) -> bool:
    """Whether a device that has the package answers too few of its requests."""
    return sight.requests >= max(gate.min_requests, 1) and sight.failed > gate.max_failed_rate * sight.requests


def _failed(member: Member, reason: str) -> Member:
    return dataclasses.replace(member, progress=Progress.FAILED, reason=reason)
