"""The rules of a rollout, pure: what it sees and what follows. Nothing here opens a connection.

A rollout takes one package to the fleet in waves. A device of a wave is *assigned* the package, and *commits* to it
after its own self-test and probation, or *fails*. The health gate lets the next wave begin once every device of the
present one has committed and stayed healthy for the soak time. A device that is offline too long is *skipped*: it is
assigned, so that it catches up by itself, but nobody waits for it. More failures than allowed halt the rollout.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from edge_agent.contract.messages import UpdateStep
from fleet_server.errors import Conflict
from fleet_server.rollouts.member import look
from fleet_server.rollouts.rollout import ALLOWED, Member, Progress, Rollout, Sight, State, wave_size


def move(rollout: Rollout, state: State, note: str = "") -> Rollout:
    """The rollout in another state.

    Raises:
        Conflict: That is not allowed from where it is.
    """
    if state not in ALLOWED[rollout.state]:
        raise Conflict(f"rollout {rollout.id} is {rollout.state.value}: it cannot become {state.value}")
    return dataclasses.replace(rollout, state=state, note=note, healthy_since_ms=None)


def join(rollout: Rollout, fleet: Sequence[str]) -> Rollout:
    """The rollout with the devices that there are now: new ones wait for a wave, revoked ones leave."""
    members = {device: rollout.members.get(device, Member(device=device)) for device in fleet}
    gone = {
        device: member
        for device, member in rollout.members.items()
        if device not in members
        and member.progress is Progress.FAILED  # a failure is not undone by revoking its device
    }
    return dataclasses.replace(rollout, members={**members, **gone})


def due(rollout: Rollout, sights: Mapping[str, Sight]) -> tuple[str, ...]:
    """The devices to assign now, in order: as many as the present wave allows, the last one all.

    Before the last wave only connected devices: one that is away says nothing about the package, and many that come
    back at once would not be a canary.
    """
    if rollout.state is not State.RUNNING:
        return ()
    waiting = sorted(member.device for member in rollout.members.values() if member.progress is Progress.WAITING)
    if rollout.wave == len(rollout.waves) - 1:
        return tuple(waiting)
    size = wave_size(rollout.waves[rollout.wave], len(rollout.members))
    taken = len(rollout.members) - rollout.count(Progress.WAITING, Progress.SKIPPED)
    connected = [device for device in waiting if _online(sights, device)]
    return tuple(connected[: max(0, size - taken)])


def assigned(rollout: Rollout, device: str, *, release: int, previous: str, now_ms: int) -> Rollout:
    """The rollout after ``device`` was assigned its package."""
    member = dataclasses.replace(
        rollout.members[device],
        progress=Progress.ASSIGNED,
        wave=rollout.wave,
        release=release,
        previous=previous,
        assigned_at_ms=now_ms,
    )
    return _with(dataclasses.replace(rollout, healthy_since_ms=None), member)


def observe(rollout: Rollout, sights: Mapping[str, Sight], now_ms: int) -> Rollout:
    """The rollout after a look at its devices: members move on, and with them the rollout itself."""
    if rollout.state not in {State.RUNNING, State.PAUSED}:
        return rollout
    for member in list(rollout.members.values()):
        sight = sights.get(member.device, Sight(online=False))
        rollout = _with(rollout, look(rollout, member, sight, now_ms))
    failed = [member for member in rollout.members.values() if member.progress is Progress.FAILED]
    if len(failed) > rollout.gate.max_failures:
        why = "; ".join(f"{member.device}: {member.reason}" for member in failed[:3])
        return move(rollout, State.HALTED, f"{len(failed)} failed, {rollout.gate.max_failures} allowed ({why})")
    if rollout.state is State.RUNNING:
        rollout = _advance(rollout, sights, now_ms)
    return rollout


def to_revert(rollout: Rollout) -> tuple[Member, ...]:
    """After a halt: the members to send back to what they had before.

    Those that have not committed always go back, or they would take the package up later by themselves; those that have
    committed only where the rollout says so.
    """
    if rollout.state is not State.HALTED:
        return ()
    back = {Progress.ASSIGNED, Progress.SKIPPED, Progress.FAILED}
    if rollout.revert:
        back.add(Progress.COMMITTED)
    return tuple(member for member in rollout.members.values() if member.progress in back and member.previous)


def reverted(rollout: Rollout, device: str) -> Rollout:
    """The rollout after ``device`` was sent back."""
    return _with(rollout, dataclasses.replace(rollout.members[device], progress=Progress.REVERTED))


def _advance(rollout: Rollout, sights: Mapping[str, Sight], now_ms: int) -> Rollout:
    if not rollout.members:
        return move(rollout, State.DONE, "the fleet has no devices yet; those that enrol get it at once")
    waits_for = _waits_for(rollout, sights)
    if waits_for:
        return dataclasses.replace(rollout, healthy_since_ms=None, note=waits_for)
    since = rollout.healthy_since_ms if rollout.healthy_since_ms is not None else now_ms
    left_s = rollout.gate.soak_s - (now_ms - since) / 1000
    if left_s > 0:
        note = f"healthy; {math.ceil(left_s)} s of soak time left"
        return dataclasses.replace(rollout, healthy_since_ms=since, note=note)
    if rollout.wave == len(rollout.waves) - 1:
        skipped = rollout.count(Progress.SKIPPED)
        return move(rollout, State.DONE, f"{skipped} offline devices catch up by themselves" if skipped else "")
    return dataclasses.replace(rollout, wave=rollout.wave + 1, healthy_since_ms=None, note="")


def _waits_for(rollout: Rollout, sights: Mapping[str, Sight]) -> str:
    """What stands between this wave and the next, in words; empty where nothing does."""
    if due(rollout, sights):
        return "devices of this wave are to be assigned"
    pending = sorted(member.device for member in rollout.members.values() if member.progress is Progress.ASSIGNED)
    if pending:
        have = "1 device has" if len(pending) == 1 else f"{len(pending)} devices have"
        return f"{have} yet to commit: {', '.join(_doing(sights, device) for device in pending[:5])}"
    committed = [member for member in rollout.members.values() if member.progress is Progress.COMMITTED]
    if not committed:
        return "no device that is connected has committed yet; one is needed as evidence"
    few = [one.device for one in committed if _requests(sights, one.device) < rollout.gate.min_requests]
    if few:
        return f"{len(few)} devices have answered fewer than {rollout.gate.min_requests} requests: {', '.join(few[:5])}"
    return ""


def _with(rollout: Rollout, member: Member) -> Rollout:
    if rollout.members.get(member.device) == member:
        return rollout
    return dataclasses.replace(rollout, members={**rollout.members, member.device: member})


def _doing(sights: Mapping[str, Sight], device: str) -> str:
    """A device, and where its update is, where that takes its time or waits."""
    sight = sights.get(device)
    if sight is None or sight.step is UpdateStep.COMMITTED or not sight.target:
        waits = sight is not None and sight.waits_until_ms is not None
        return f"{device} ({sight.reason})" if waits and sight is not None else device
    return f"{device} ({': '.join(part for part in (sight.step.value if sight.step else '', sight.reason) if part)})"


def _online(sights: Mapping[str, Sight], device: str) -> bool:
    return device in sights and sights[device].online


def _requests(sights: Mapping[str, Sight], device: str) -> int:
    return sights[device].requests if device in sights else 0
