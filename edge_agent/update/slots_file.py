"""``slots.json``: what each model on this device is, and where its update stands. Written before each step.

The transitions are pure functions of a record; only :class:`SlotsFile` touches the disk.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from edge_agent.contract.messages import UpdateStep
from edge_agent.durable import write_durably

SLOTS_FILE = "slots.json"
# Once may be the power plug; twice is the package.
MAX_CRASHES = 2


class SlotRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One model on this device.

    Args:
        active: Digest of the package that serves; empty where none does.
        last_known_good: Digest of what is gone back to: the newest package that got through its probation, or what
            served before a person put another in its place.
        step: Where the latest update is; ``target``: the package it is about; ``reason``: why it failed or waits.
        release: Highest release that the director signed for this model here; a lower one is a rollback.
        announced: Release of the latest hint, which nobody signed; only reported.
        crashes: Times that the agent died while ``target`` was being tested or watched.
        refused: Packages that failed here, with the release under which they did; a newer release may try again.
    """

    active: str = ""
    last_known_good: str = ""
    step: UpdateStep = UpdateStep.COMMITTED
    target: str = ""
    reason: str = ""
    release: int = 0
    announced: int = 0
    rollout: str = ""
    crashes: int = 0
    refused: dict[str, int] = {}


class _Slots(msgspec.Struct, kw_only=True):
    format: int = 1
    models: dict[str, SlotRecord] = {}


class SlotsFile:
    """The journal on disk, read once and kept in memory.

    Raises:
        msgspec.DecodeError: The file is there, but is none of ours.
        OSError: It cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._records: dict[str, SlotRecord] = {}
        if path.exists():
            self._records = msgspec.json.decode(path.read_bytes(), type=_Slots).models

    def models(self) -> dict[str, SlotRecord]:
        """All records, by model."""
        return dict(self._records)

    def get(self, model: str) -> SlotRecord:
        """The record of a model; an empty one where nothing was ever installed."""
        return self._records.get(model, SlotRecord())

    def put(self, model: str, record: SlotRecord) -> None:
        """Write a record down; only when this returns may its step begin.

        Raises:
            OSError: The disk refuses; memory and disk keep the old record.
        """
        self._write({**self._records, model: record})

    def remove(self, model: str) -> None:
        """Know nothing of a model any more.

        Raises:
            OSError: The disk refuses; memory and disk keep the record.
        """
        self._write({name: record for name, record in self._records.items() if name != model})

    def keep_in_memory(self, model: str, record: SlotRecord) -> None:
        """Remember a failure that the disk has no room for; after a restart the step before it counts."""
        self._records = {**self._records, model: record}

    def packages(self) -> set[str]:
        """Digests that must stay on disk: active, last known good, and the target of an update under way."""
        keep: set[str] = set()
        for record in self._records.values():
            keep |= {record.active, record.last_known_good}
            if record.step is not UpdateStep.FAILED:
                keep.add(record.target)
        return keep - {""}

    def _write(self, records: dict[str, SlotRecord]) -> None:
        data = msgspec.json.format(msgspec.json.encode(_Slots(models=records)), indent=1)
        write_durably(self._path, data)
        self._records = records


def begun(record: SlotRecord, target: str, *, release: int, rollout: str) -> SlotRecord:
    """An update to ``target`` is agreed on by both repositories."""
    return msgspec.structs.replace(
        record, step=UpdateStep.RESOLVED, target=target, release=release, rollout=rollout, reason="",
        crashes=record.crashes if record.target == target else 0,
    )  # fmt: skip


def at(record: SlotRecord, step: UpdateStep) -> SlotRecord:
    """The next step is about to begin."""
    return msgspec.structs.replace(record, step=step, reason="")


def swapped(record: SlotRecord) -> SlotRecord:
    """The target is about to serve; until its probation is over, what serves now can be gone back to."""
    return msgspec.structs.replace(
        record, step=UpdateStep.PROBATION, active=record.target, last_known_good=_good(record), crashes=0, reason="",
    )  # fmt: skip


def installed(record: SlotRecord, package: str) -> SlotRecord:
    """A person has installed ``package``; what served before it is kept, to go back to."""
    on_probation = record.step is UpdateStep.PROBATION or record.active == package
    good = record.last_known_good if on_probation else _good(record)
    after = committed(msgspec.structs.replace(record, active=package))
    return msgspec.structs.replace(after, last_known_good=good or package)


def _good(record: SlotRecord) -> str:
    """What serves, unless it failed on probation and serves on for want of another."""
    return record.active if record.active and record.active not in record.refused else record.last_known_good


def committed(record: SlotRecord) -> SlotRecord:
    """What serves is good."""
    refused = {digest: release for digest, release in record.refused.items() if digest != record.active}
    return msgspec.structs.replace(
        record, step=UpdateStep.COMMITTED, target=record.active, last_known_good=record.active, reason="", crashes=0,
        refused=refused,
    )  # fmt: skip


def failed(record: SlotRecord, reason: str, *, refuse: bool) -> SlotRecord:
    """The update is off; what serves goes on.

    Args:
        refuse: Whether the package is to blame, so that this release does not try it again.
    """
    refused = {**record.refused, record.target: record.release} if refuse and record.target else record.refused
    crashes = 0 if refuse else record.crashes  # judged: a newer release may try again from the beginning
    return msgspec.structs.replace(record, step=UpdateStep.FAILED, reason=reason, refused=refused, crashes=crashes)


def rolled_back(record: SlotRecord, reason: str, *, refuse: bool) -> SlotRecord:
    """The last known good package serves again (or none, where there never was one).

    Args:
        refuse: Whether the package is to blame; a package that the disk has spoilt may come again.
    """
    bad = record.active or record.target
    return msgspec.structs.replace(
        record, step=UpdateStep.FAILED, active=record.last_known_good if record.last_known_good != bad else "",
        target=bad, reason=reason, crashes=0,
        refused={**record.refused, bad: record.release} if refuse else record.refused,
    )  # fmt: skip


def started(record: SlotRecord) -> SlotRecord:
    """The agent starts: if it died while the target was tested or watched, that is counted."""
    if record.step in (UpdateStep.STAGED, UpdateStep.PROBATION):
        return msgspec.structs.replace(record, crashes=record.crashes + 1)
    return record


def stopped(record: SlotRecord) -> SlotRecord:
    """The agent stops in an orderly way, which is no crash of the package on probation."""
    if record.step is UpdateStep.PROBATION:
        return msgspec.structs.replace(record, crashes=record.crashes - 1)
    return record


def is_settled(record: SlotRecord, package: str, release: int) -> bool:
    """Whether a hint asks for nothing new: it is installed already, or failed here under that release."""
    if release > record.release:
        return False
    if record.step is UpdateStep.FAILED:
        return record.refused.get(package, -1) >= release
    return record.step is UpdateStep.COMMITTED and record.active == package
