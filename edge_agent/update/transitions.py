"""The state machine of a model's update, pure: from which step to which, and what becomes of the record.

::

    RESOLVED -> DOWNLOADING -> VERIFIED -> STAGED -> SELF_TESTED [-> SHADOW] -> PROBATION -> COMMITTED
        any step up to SHADOW --> RESOLVED: a newer release is wanted
        any step up to SHADOW --> FAILED: the old model never stopped serving
        PROBATION --> FAILED: rolled back to the last known good one

A kill leaves the record at one of these steps. Up to SHADOW the old package is active, and the update goes on from what
is on the disk; from PROBATION on the new one is.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from edge_agent.contract.messages import UpdateStep
from edge_agent.update.judgement import Seen
from edge_agent.update.slots_file import SlotRecord

# Once may be the power plug; twice is the package.
MAX_CRASHES = 2
# The whole machine went down: seldom the package's fault, but one that hangs the machine must not stay for ever.
MAX_CUTS = 6

# Up to here what served before serves.
BEFORE_SWAP = frozenset(UpdateStep) - {UpdateStep.PROBATION, UpdateStep.COMMITTED, UpdateStep.FAILED}
# In these the target runs, and may take the agent down with it.
RISKY = frozenset({UpdateStep.STAGED, UpdateStep.SELF_TESTED, UpdateStep.SHADOW, UpdateStep.PROBATION})
# Its package is whole on the disk, and was verified against signed metadata.
HERE = frozenset({UpdateStep.STAGED, UpdateStep.SELF_TESTED, UpdateStep.SHADOW})

ALLOWED: Mapping[UpdateStep, frozenset[UpdateStep]] = {
    # A package that is on the disk already, to go back to, is neither downloaded nor staged again.
    UpdateStep.RESOLVED: frozenset(
        {UpdateStep.RESOLVED, UpdateStep.DOWNLOADING, UpdateStep.STAGED, UpdateStep.COMMITTED, UpdateStep.FAILED}
    ),
    # A damaged journal is read as it was one step before: the package may be whole and in its place already.
    UpdateStep.DOWNLOADING: frozenset({UpdateStep.RESOLVED, UpdateStep.VERIFIED, UpdateStep.STAGED, UpdateStep.FAILED}),
    # Where the disk has spoilt what was there, it is fetched again.
    UpdateStep.VERIFIED: frozenset({UpdateStep.RESOLVED, UpdateStep.DOWNLOADING, UpdateStep.STAGED, UpdateStep.FAILED}),
    UpdateStep.STAGED: frozenset(
        {UpdateStep.RESOLVED, UpdateStep.DOWNLOADING, UpdateStep.SELF_TESTED, UpdateStep.FAILED}
    ),
    UpdateStep.SELF_TESTED: frozenset(
        {UpdateStep.RESOLVED, UpdateStep.DOWNLOADING, UpdateStep.SHADOW, UpdateStep.PROBATION, UpdateStep.FAILED}
    ),
    UpdateStep.SHADOW: frozenset(
        {UpdateStep.RESOLVED, UpdateStep.DOWNLOADING, UpdateStep.PROBATION, UpdateStep.FAILED}
    ),
    # What is watched is judged before anything else is begun.
    UpdateStep.PROBATION: frozenset({UpdateStep.COMMITTED, UpdateStep.FAILED}),
    UpdateStep.COMMITTED: frozenset({UpdateStep.RESOLVED, UpdateStep.COMMITTED, UpdateStep.FAILED}),
    UpdateStep.FAILED: frozenset({UpdateStep.RESOLVED, UpdateStep.COMMITTED, UpdateStep.FAILED}),
}


class IllegalStep(RuntimeError):
    """A step that may not follow the one before: a fault of this program, never of a package or the server."""


def _to(record: SlotRecord, step: UpdateStep) -> UpdateStep:
    if step not in ALLOWED[record.step]:
        raise IllegalStep(f"an update cannot go from {record.step.value} to {step.value}")
    return step


def begun(record: SlotRecord, target: str, *, release: int, rollout: str) -> SlotRecord:
    """An update to ``target`` is agreed on by both repositories.

    Raises:
        IllegalStep: One is on probation.
    """
    same = record.target == target
    known = target in (record.last_known_good, record.spare) or (same and record.known)
    return msgspec.structs.replace(
        record, step=_to(record, UpdateStep.RESOLVED), target=target, release=release, rollout=rollout, reason="",
        crashes=record.crashes if same else 0, cuts=record.cuts if same else 0, group=(), watched_s=0.0, before=None,
        orderly=False, known=known,
        # Two packages have room on a device that could be updated at all, three may not.
        spare=record.spare if target == record.active else "",
    )  # fmt: skip


def is_under_way(record: SlotRecord, target: str, release: int) -> bool:
    """Whether this very update is begun and goes on from where it is."""
    return record.step in BEFORE_SWAP and (record.target, record.release) == (target, release)


def at(record: SlotRecord, step: UpdateStep) -> SlotRecord:
    """The next step is about to begin.

    Raises:
        IllegalStep: It may not follow.
    """
    return msgspec.structs.replace(record, step=_to(record, step), reason="", watched_s=0.0)


def comes_with(record: SlotRecord, group: tuple[str, ...]) -> SlotRecord:
    """The update swaps together with those of other models."""
    return msgspec.structs.replace(record, group=group if len(group) > 1 else ())


def swapped(record: SlotRecord, before: Seen | None = None, group: tuple[str, ...] = ()) -> SlotRecord:
    """The target is about to serve; until its probation is over, what serves now can be gone back to.

    Args:
        before: What that did here, to compare with.
        group: All that swap together.
    Raises:
        IllegalStep: It was not tested.
    """
    return msgspec.structs.replace(
        comes_with(record, group), step=_to(record, UpdateStep.PROBATION), active=record.target,
        last_known_good=_good(record), crashes=0, cuts=0, reason="", watched_s=0.0, before=before, orderly=False,
        unproven=False, known=False,
    )  # fmt: skip


def running(record: SlotRecord) -> SlotRecord:
    """The target is about to run: from now on a death of the agent counts."""
    return msgspec.structs.replace(record, orderly=False)


def watched(record: SlotRecord, seconds: float) -> SlotRecord:
    """So many seconds of its shadow or probation are over."""
    return msgspec.structs.replace(record, watched_s=seconds)


def installed(record: SlotRecord, package: str) -> SlotRecord:
    """A person has installed ``package``; what served before it is kept, to go back to."""
    on_probation = record.step is UpdateStep.PROBATION or record.active == package
    good = record.last_known_good if on_probation else _good(record)
    after = _settled_on(msgspec.structs.replace(record, active=package))
    return msgspec.structs.replace(after, last_known_good=good or package, spare="")


def committed(record: SlotRecord) -> SlotRecord:
    """What serves is good.

    Raises:
        IllegalStep: Something else is under way, or it failed on its probation.
    """
    _to(record, UpdateStep.COMMITTED)
    if record.step is not UpdateStep.PROBATION and not is_proven(record):
        raise IllegalStep(f"{record.active[:12]} serves for want of another, and is not committed without a probation")
    return _settled_on(record)


def failed(record: SlotRecord, reason: str, *, refuse: bool) -> SlotRecord:
    """The update is off; what serves goes on.

    Args:
        refuse: Whether the package is to blame, so that this release does not try it again.
    """
    refused = {**record.refused, record.target: record.release} if refuse and record.target else record.refused
    return msgspec.structs.replace(
        record, step=_to(record, UpdateStep.FAILED), reason=reason, refused=refused, group=(), watched_s=0.0,
        before=None, unproven=record.unproven or record.step is UpdateStep.PROBATION,
        # Judged: a newer release may try again from the beginning.
        crashes=0 if refuse else record.crashes, cuts=0 if refuse else record.cuts,
    )  # fmt: skip


def rolled_back(record: SlotRecord, reason: str, *, refuse: bool) -> SlotRecord:
    """The last known good package serves again (or none, where there never was one).

    Args:
        refuse: Whether the package is to blame; a package that the disk has spoilt may come again.
    """
    bad = record.active or record.target
    good = earlier(record, bad)
    return msgspec.structs.replace(
        record, step=_to(record, UpdateStep.FAILED), active=good, last_known_good=good, spare="", target=bad,
        reason=reason, crashes=0, cuts=0, group=(), watched_s=0.0, before=None, unproven=False,
        known=False, refused={**record.refused, bad: record.release} if refuse else record.refused,
    )  # fmt: skip


def given_up(record: SlotRecord, reason: str) -> SlotRecord:
    """Neither what is active nor anything before it could start, and no package is to blame for sure.

    What was known to be good stays on the disk: it may have been memory that was short, or a runtime that is broken.
    """
    return msgspec.structs.replace(
        rolled_back(record, reason, refuse=False), active="", last_known_good=record.last_known_good, spare=record.spare
    )


def to_start_again(record: SlotRecord) -> tuple[str, ...]:
    """Digests to try where nothing is active, the likeliest first."""
    return tuple(digest for digest in dict.fromkeys((record.last_known_good, record.spare)) if digest)


def earlier(record: SlotRecord, bad: str | None = None) -> str:
    """Digest of what can be gone back to; empty where there is nothing.

    Args:
        bad: What is to go; None for what is active.
    """
    bad = record.active if bad is None else bad
    others = (record.last_known_good, record.spare)
    return next((digest for digest in others if digest not in ("", bad)), "")


def started(record: SlotRecord, boot: str) -> SlotRecord:
    """The agent starts: if it died while the target was tested, shadowed or watched, that is counted.

    Args:
        boot: Which start of the machine this is; empty where it does not tell.
    """
    # What serves already runs at once; what does not yet waits until it is tested again, and waiting counts nothing.
    rests = record.step in HERE
    if record.orderly or record.step not in RISKY:
        return msgspec.structs.replace(record, orderly=rests)
    if boot and record.boot and boot != record.boot:
        return msgspec.structs.replace(record, cuts=record.cuts + 1, boot=boot, orderly=rests)
    return msgspec.structs.replace(record, crashes=record.crashes + 1, boot=boot, orderly=rests)


def stopped(record: SlotRecord, watched_s: float | None = None) -> SlotRecord:
    """The target runs no more, or the agent stops in an orderly way: a death after that is no crash of the package.

    Args:
        watched_s: Of its shadow or probation; None leaves what is written down.
    """
    if record.step not in RISKY:
        return record
    return msgspec.structs.replace(record, orderly=True, watched_s=record.watched_s if watched_s is None else watched_s)


def blame(record: SlotRecord) -> str:
    """Why a package that was not judged otherwise is to go; empty where it may stay."""
    doing = "shadowed, tested or watched" if record.step is UpdateStep.SHADOW else "tested or watched"
    if record.crashes >= MAX_CRASHES:
        return f"the agent died {record.crashes} times while it was {doing}"
    if record.cuts >= MAX_CUTS:
        return f"the machine went down {record.cuts} times while it was {doing}"
    return ""


def is_settled(record: SlotRecord, package: str, release: int) -> bool:
    """Whether a hint asks for nothing new: it is installed already, or failed here under that release."""
    if release > record.release:
        return False
    if record.step is UpdateStep.FAILED:
        return record.refused.get(package, -1) >= release
    return record.step is UpdateStep.COMMITTED and record.active == package


def is_proven(record: SlotRecord) -> bool:
    """Whether what serves got through its probation; not what failed on it, and serves on for want of another."""
    return not record.unproven and record.active not in record.refused


def refuses(record: SlotRecord) -> bool:
    """Whether what failed last was found wrong itself, and no newer release names it again."""
    return record.refused.get(record.target, -1) >= max(record.release, record.announced)


def _settled_on(record: SlotRecord) -> SlotRecord:
    refused = {digest: release for digest, release in record.refused.items() if digest != record.active}
    return msgspec.structs.replace(
        record, step=UpdateStep.COMMITTED, target=record.active, last_known_good=record.active, reason="", crashes=0,
        cuts=0, group=(), watched_s=0.0, before=None, unproven=False, known=False, refused=refused,
        spare=earlier(record),
    )  # fmt: skip


def _good(record: SlotRecord) -> str:
    """What serves, unless it failed on probation and serves on for want of another."""
    return record.active if record.active and is_proven(record) else record.last_known_good
