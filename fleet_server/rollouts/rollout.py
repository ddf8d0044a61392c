"""What a rollout is: its waves, its gate, its devices, and what is seen of them. Pure."""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Mapping, Sequence

import msgspec

from edge_agent.contract.errors import MalformedRequest
from edge_agent.contract.messages import UpdateStep


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
        failing_since_ms: Since when its update fails and is tried again; None where it does not, or has committed.
        reason: Why it is where it is.
    """

    device: str
    progress: Progress = Progress.WAITING
    wave: int | None = None
    assigned_at_ms: int | None = None
    failing_since_ms: int | None = None
    release: int = 0
    previous: str = ""
    reason: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """What a device is reported to be, with respect to the rollout's model; None where it reports no such model.

    Args:
        changed_at_ms: Since when it is connected, or is not; None where that is not known.
        waits_until_ms: When its update may go on that waits for the device's own window.
        retries: Whether it tries an update that failed again by itself.
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
    retries: bool = False


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


def wave_size(wave: float, fleet: int) -> int:
    """How many of ``fleet`` devices are assigned at the end of ``wave``."""
    if isinstance(wave, int):
        return min(fleet, wave)
    return min(fleet, math.ceil(wave * fleet - 1e-9))
