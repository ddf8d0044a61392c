"""The rules of a rollout, pure: what it is, what it sees, what follows. Nothing here opens a connection.

A rollout takes one package to the fleet in waves. A device of a wave is *assigned* the package, and *commits* to it
after its own self-test and probation, or *fails*. The health gate lets the next wave begin once every device of the
present one has committed and stayed healthy for the soak time. A device that is offline too long is *skipped*: it is
assigned, so that it catches up by itself, but nobody waits for it. More failures than allowed halt the rollout.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Mapping, Sequence

import msgspec

from edge_agent.contract.errors import MalformedRequest
from edge_agent.contract.messages import COULD_NOT_START, UpdateStep
from fleet_server.errors import Conflict

# A device's window comes every day, and what chance draws is shorter: who says more is not believed.
_LONGEST_WAIT_MS = 2 * 24 * 3600 * 1000


class State(enum.StrEnum):
    """Where a rollout is."""

    DRAFT = "draft"
    RUNNING = "running"
    PAUSED = "paused"  # assigned devices go on; no further ones are assigned
    HALTED = "halted"
    DONE = "done"


# HALTED is terminal: a bad model is fixed by a new rollout, never by resuming this one.
ALLOWED: Mapping[State, frozenset[State]] = {
    State.DRAFT: frozenset({State.RUNNING, State.HALTED}),
    State.RUNNING: frozenset({State.PAUSED, State.HALTED, State.DONE}),
    State.PAUSED: frozenset({State.RUNNING, State.HALTED}),
    State.HALTED: frozenset(),
    State.DONE: frozenset(),
}


class Progress(enum.StrEnum):
    """Where one device of a rollout is."""

    WAITING = "waiting"
    ASSIGNED = "assigned"
    COMMITTED = "committed"
    FAILED = "failed"
    SKIPPED = "skipped"
    REVERTED = "reverted"


class Gate(msgspec.Struct, frozen=True, kw_only=True):
    """When a wave counts as healthy, and what is too much.

    Args:
        soak_s: How long every device of the wave must have been healthy before the next wave begins.
        min_requests: Requests since the swap that a device must have answered before it is judged.
        max_failed_rate: Share of them that may fail.
        max_failures: Devices that may fail before the rollout halts.
        device_timeout_s: Time for a connected device to commit or fail, beside the shadow and the probation that the
            package's manifest asks for, and its wait for a window of its own; after it, it has failed.
        offline_timeout_s: Time for a disconnected device to come back; after it, it is skipped.
    Raises:
        ValueError: A figure is negative or not finite, or the rate is no share.
    """

    soak_s: float = 30.0
    min_requests: int = 0
    max_failed_rate: float = 0.01
    max_failures: int = 0
    device_timeout_s: float = 900.0
    offline_timeout_s: float = 60.0

    def __post_init__(self) -> None:
        for name, value in msgspec.structs.asdict(self).items():
            if not 0 <= value < math.inf:
                raise ValueError(f"gate: {name} must be 0 or more and finite, got {value}")
        if self.max_failed_rate > 1:
            raise ValueError(f"gate: max_failed_rate is a share of the requests, 0 to 1, got {self.max_failed_rate}")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One device of a rollout.

    Args:
        wave: Index of the wave that it was assigned in; None while it waits.
        release: Counter of its assignment; ``previous``: digest of the package it was to have before, or empty.
        reason: Why it is where it is; of an assigned one, that it had committed, left the package and comes back to it.
    """

    device: str
    progress: Progress = Progress.WAITING
    wave: int | None = None
    assigned_at_ms: int | None = None
    release: int = 0
    previous: str = ""
    reason: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """What a device is reported to be, with respect to the rollout's model; None where it reports no such model.

    Args:
        changed_at_ms: Since when it is connected, or is not; None where that is not known.
        waits_until_ms: When its update may go on that waits for the device's own window.
    """

    online: bool
    changed_at_ms: int | None = None
    package: str | None = None
    version: str = ""
    step: UpdateStep | None = None
    target: str = ""
    release: int = 0
    reason: str = ""
    requests: int = 0
    failed: int = 0
    waits_until_ms: int | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """A rollout.

    Args:
        wave: Index of the present wave.
        healthy_since_ms: Since when every device of the waves so far is healthy; None while one is not.
        reason: Why it was made; ``note``: why it halted, or what it waits for.
        automatic: No person asked for it: it gives way to what people do.
        watched_s: Longest that a device shadows and watches the package by its manifest, beside what the update takes.
    """

    id: str
    model: str
    package: str
    version: str
    waves: tuple[int | float, ...]
    gate: Gate
    state: State = State.DRAFT
    wave: int = 0
    healthy_since_ms: int | None = None
    members: Mapping[str, Member] = dataclasses.field(default_factory=dict)
    reason: str = ""
    note: str = ""
    automatic: bool = False
    revert: bool = False
    watched_s: float = 0.0

    def count(self, *progress: Progress) -> int:
        """How many members are in one of these places."""
        return sum(member.progress in progress for member in self.members.values())


def check_waves(waves: Sequence[int | float]) -> tuple[int | float, ...]:
    """The waves themselves.

    Args:
        waves: How much of the fleet has been assigned at the end of each: whole numbers count devices, fractions (and
            1.0) are shares. ``(1, 0.5, 1.0)``: one device, half of the fleet, all of it.
    Raises:
        MalformedRequest: They do not say that.
    """
    for wave in waves:
        is_share = isinstance(wave, float)
        if (is_share and not 0 < wave <= 1) or (not is_share and wave < 1):
            raise MalformedRequest(
                f"wave {wave!r}: give a number of devices (1, 10) or a share of the fleet (0.5, 1.0)"
            )
    if not waves or waves[-1] != 1.0 or not isinstance(waves[-1], float):
        raise MalformedRequest(f"waves {list(waves)}: the last one must be 1.0, the whole fleet")
    shares = [wave for wave in waves if isinstance(wave, float)]
    if shares != sorted(shares):
        raise MalformedRequest(f"waves {list(waves)}: shares are cumulative and may not shrink")
    return tuple(waves)


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
        rollout = _with(rollout, _look(rollout, member, sight, now_ms))
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


def _look(rollout: Rollout, member: Member, sight: Sight, now_ms: int) -> Member:
    if member.progress in {Progress.WAITING, Progress.REVERTED}:
        return member
    gate = rollout.gate
    if sight.package == rollout.package and sight.step is UpdateStep.COMMITTED:
        if _too_many_failed(gate, sight):
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


def _too_many_failed(gate: Gate, sight: Sight) -> bool:
    return sight.requests >= max(gate.min_requests, 1) and sight.failed > gate.max_failed_rate * sight.requests


def _failed(member: Member, reason: str) -> Member:
    return dataclasses.replace(member, progress=Progress.FAILED, reason=reason)


def _with(rollout: Rollout, member: Member) -> Rollout:
    if rollout.members.get(member.device) == member:
        return rollout
    return dataclasses.replace(rollout, members={**rollout.members, member.device: member})


def wave_size(wave: float, fleet: int) -> int:
    """How many of ``fleet`` devices are assigned at the end of ``wave``."""
    if isinstance(wave, int):
        return min(fleet, wave)
    return min(fleet, math.ceil(wave * fleet - 1e-9))


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
