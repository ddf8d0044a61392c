"""``slots.json``: what each model on this device is, and where its update stands. Written before each step.

What may become of a record is for :mod:`edge_agent.update.transitions`; here it only goes to the disk and back.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from edge_agent.contract.messages import UpdateStep
from edge_agent.durable import write_durably
from edge_agent.update.judgement import Seen

SLOTS_FILE = "slots.json"


class SlotRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One model on this device.

    Args:
        active: Digest of the package that serves; empty where none does.
        last_known_good: Digest of what is gone back to: the newest package that got through its probation, or what
            served before a person put another in its place.
        step: Where the latest update is; ``target``: the package it is about; ``reason``: why it failed or waits.
        release: Highest release that the director signed for this model here; a lower one is a rollback.
        announced: Release of the latest hint, which nobody signed; only reported.
        crashes: Times that the agent died while ``target`` was being tested, shadowed or watched.
        cuts: Times that the whole machine went down meanwhile: more likely the power plug than the package.
        boot: Of the machine, when this was written; empty where it does not tell.
        orderly: The agent has stopped in order since; the next start counts nothing.
        group: Models that swap together with this one, itself included; empty for one that comes alone.
        watched_s: Seconds of shadow or probation that are over, as far as they were written down.
        before: What the model before this one did here, as :mod:`edge_agent.update.judgement` compares it.
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
    cuts: int = 0
    boot: str = ""
    orderly: bool = False
    group: tuple[str, ...] = ()
    watched_s: float = 0.0
    before: Seen | None = None
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
        self.put_all({model: record})

    def put_all(self, records: Mapping[str, SlotRecord]) -> None:
        """Write the records of several models down, all or none.

        Raises:
            OSError: The disk refuses; memory and disk keep the old records.
        """
        self._write({**self._records, **records})

    def remove(self, model: str) -> None:
        """Know nothing of a model any more.

        Raises:
            OSError: The disk refuses; memory and disk keep the record.
        """
        self._write({name: record for name, record in self._records.items() if name != model})

    def keep_in_memory(self, records: Mapping[str, SlotRecord]) -> None:
        """Remember what the disk has no room for; after a restart the step before it counts."""
        self._records = {**self._records, **records}

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
