"""What becomes of one device of a rollout, by what it reports. Pure."""

from __future__ import annotations

import dataclasses

from edge_agent.contract.messages import UpdateStep
from fleet_server.rollouts.rollout import Gate, Member, Progress, Rollout, Sight

# A device's window comes every day, and what chance draws is shorter: who says more is not believed, and who has failed
# and failed again for so long has had its window.
_LONGEST_WAIT_MS = 2 * 24 * 3600 * 1000


def look(rollout: Rollout, member: Member, sight: Sight, now_ms: int) -> Member:
    """The member after what its device reports.

    A device that fails for want of room, or of its disk or network, says that it tries again by itself: it has the time
    that every assigned device has. So has one that had committed and lost the package to its disk.
    """
    if member.progress in {Progress.WAITING, Progress.REVERTED}:
        return member
    if sight.package == rollout.package and sight.step is UpdateStep.COMMITTED:
        if too_many_failed(rollout.gate, sight):
            return _failed(member, f"{sight.failed} of {sight.requests} requests failed")
        return dataclasses.replace(member, progress=Progress.COMMITTED, failing_since_ms=None, reason="")
    if member.progress is Progress.FAILED:
        return member
    is_ours = sight.target == rollout.package and sight.release >= member.release
    if is_ours and sight.step is UpdateStep.FAILED and not sight.retries:
        left = member.progress is Progress.COMMITTED and sight.package != rollout.package
        return _failed(member, _left(rollout, sight) if left else sight.reason or "the device did not say why")
    if member.progress is Progress.COMMITTED:
        return _after_commit(rollout, member, sight, now_ms)
    if is_ours and sight.step is UpdateStep.FAILED and member.failing_since_ms is None:
        member = dataclasses.replace(member, failing_since_ms=now_ms)
    failing_ms = now_ms - member.failing_since_ms if member.failing_since_ms is not None else 0
    # Windows and breaks of the line put its time off again and again, but not for ever.
    if sight.online and failing_ms > _LONGEST_WAIT_MS:
        hours = failing_ms // 3_600_000
        return _failed(member, f"fails again and again for {hours} h: {sight.reason or 'it says no reason'}")
    if member.progress is Progress.SKIPPED and sight.online:
        return dataclasses.replace(member, progress=Progress.ASSIGNED, assigned_at_ms=now_ms, reason="")
    return _patience(rollout, member, sight, now_ms) if member.progress is Progress.ASSIGNED else member


def _after_commit(rollout: Rollout, member: Member, sight: Sight, now_ms: int) -> Member:
    """A device that had committed."""
    # Reports are retained and may come late: only its own word that it left the package says that it did.
    if sight.package is None or sight.release < member.release:
        return member
    serves_ours = sight.package == rollout.package
    if sight.target == rollout.package and (sight.step is UpdateStep.FAILED or not serves_ours):
        why = sight.reason if serves_ours else _left(rollout, sight)
        again = f"{why}; it brings the package on again"
        return dataclasses.replace(member, progress=Progress.ASSIGNED, assigned_at_ms=now_ms, reason=again)
    return member if serves_ours else _failed(member, _left(rollout, sight))


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
