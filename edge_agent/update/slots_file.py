"""``slots.json``: what each model on this device is, and where its update stands. Written before each step.

What may become of a record is for :mod:`edge_agent.update.transitions`; here it only goes to the disk and back.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec

from edge_agent.contract.messages import UpdateStep
from edge_agent.durable import sync_folder, write_durably
from edge_agent.update.judgement import Seen

SLOTS_FILE = "slots.json"
BEFORE_FILE = "slots.before.json"


class SlotRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One model on this device.

    Args:
        active: Digest of the package that serves; empty where none does.
        last_known_good: Digest of what is gone back to: the newest package that got through its probation, or what
            served before a person put another in its place.
        unproven: What is active failed on probation, or was taken from it, and serves on for want of another.
        spare: Digest of what was the last known good one before that, in case the disk spoils it; it makes room when
            the next update begins.
        step: Where the latest update is; ``target``: the package it is about; ``reason``: why it failed or waits.
        known: The target got through its probation here before, and was still kept: going back to it is quick.
        release: Highest release that the director signed for this model here; a lower one is a rollback.
        announced: Release of the latest hint, which nobody signed; only reported.
        crashes: Times that the agent died while ``target`` was being tested, shadowed or watched.
        cuts: Times that the whole machine went down meanwhile: more likely the power plug than the package.
        boot: Of the machine, when this was written; empty where it does not tell.
        orderly: The target does not run: the agent has stopped in order, or waits before it tests it. The next start
            counts nothing.
        group: Models that swap together with this one, itself included; empty for one that comes alone.
        watched_s: Seconds of shadow or probation that are over, as far as they were written down.
        before: What the model before this one did here, as :mod:`edge_agent.update.judgement` compares it.
        refused: Packages that failed here, with the release under which they did; a newer release may try again.
    """

    active: str = ""
    last_known_good: str = ""
    unproven: bool = False
    spare: str = ""
    step: UpdateStep = UpdateStep.COMMITTED
    target: str = ""
    known: bool = False
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
    """The file. ``sha256`` is that of the records, so that a lost bit is seen; empty in files of older agents."""

    format: Literal[1]
    models: msgspec.Raw
    sha256: str = ""


class SlotsFile:
    """The journal on disk, read once and kept in memory. What it said one step before stays beside it.

    Raises:
        msgspec.DecodeError: The file is there, but is not what was written; or it is gone, but not the one beside it.
        OSError: It cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()  # at a stop another thread than the one of all updates may write
        self._records = _read(path) if path.exists() or path.with_name(BEFORE_FILE).exists() else {}
        self._written = self._records

    @classmethod
    def mended(cls, path: Path) -> tuple[SlotsFile, bool]:
        """The journal in place of a damaged one, which is kept beside it as ``slots.damaged``.

        It is what the journal said one step before. That may be behind what serves, never behind what is on the disk:
        the step is taken again.

        Returns:
            The journal, and whether it could be mended; else nothing is known of any model.
        Raises:
            OSError: The disk refuses even that; the damaged file is where it was.
        """
        before = path.with_name(BEFORE_FILE)
        with contextlib.suppress(OSError):  # the damaged one is for people; a full disk keeps no model from serving
            shutil.copyfile(path, path.with_suffix(".damaged"))
        try:
            records = cls.before(path)
        except (msgspec.DecodeError, UnicodeDecodeError):
            for lost in (path, before):
                lost.unlink(missing_ok=True)
            return cls(path), False
        try:
            write_durably(path, _encode(records))
        except OSError:  # a full disk: a new name takes no room
            before.replace(path)
            sync_folder(path.parent)
        return cls(path), True

    @staticmethod
    def before(path: Path) -> dict[str, SlotRecord]:
        """What the journal said one step before.

        Raises:
            msgspec.DecodeError, UnicodeDecodeError: That is gone or damaged as well.
            OSError: It cannot be read.
        """
        return _read(path.with_name(BEFORE_FILE))

    def models(self) -> dict[str, SlotRecord]:
        """All records, by model."""
        return dict(self._records)

    def get(self, model: str) -> SlotRecord:
        """The record of a model; an empty one where nothing was ever installed."""
        return self._records.get(model, SlotRecord())

    def written(self, model: str) -> SlotRecord:
        """The record of a model as it is on the disk."""
        return self._written.get(model, SlotRecord())

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
        with self._lock:
            self._write({**self._records, **records})

    def remove(self, model: str) -> None:
        """Know nothing of a model any more.

        Raises:
            OSError: The disk refuses; memory and disk keep the record.
        """
        with self._lock:
            self._write({name: record for name, record in self._records.items() if name != model})

    def keep_in_memory(self, records: Mapping[str, SlotRecord]) -> None:
        """Remember what the disk has no room for; after a restart the step before it counts."""
        with self._lock:
            self._records = {**self._records, **records}

    def packages(self) -> set[str]:
        """Digests that must stay on disk: active, last known good, spare, and the target of an update under way."""
        keep: set[str] = set()
        for record in self._records.values():
            keep |= {record.active, record.last_known_good, record.spare}
            if record.step is not UpdateStep.FAILED:
                keep.add(record.target)
        return keep - {""}

    def _write(self, records: dict[str, SlotRecord]) -> None:
        self._keep_before()
        write_durably(self._path, _encode(records))
        self._records = self._written = records

    def _keep_before(self) -> None:
        """Give the file another name, which stays when the first one gets a new file; both become durable together."""
        before, beside = self._path.with_name(BEFORE_FILE), self._path.with_name(f".{BEFORE_FILE}.new")
        beside.unlink(missing_ok=True)
        try:
            os.link(self._path, beside)
        except FileNotFoundError:
            return  # the first one
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            return  # a file system without links: what it has is one file, as before
        beside.replace(before)


def _read(path: Path) -> dict[str, SlotRecord]:
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise msgspec.DecodeError("it is gone") from error
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        raise msgspec.DecodeError(str(error.strerror)) from error  # a sector that the disk cannot read any more
    slots = msgspec.json.decode(data, type=_Slots)
    if slots.sha256 and slots.sha256 != _digest(slots.models):
        raise msgspec.ValidationError("its records are not those that were written")
    return msgspec.json.decode(slots.models, type=dict[str, SlotRecord])


def _encode(records: dict[str, SlotRecord]) -> bytes:
    models = msgspec.Raw(msgspec.json.encode(records))
    slots = _Slots(format=1, sha256=_digest(models), models=models)
    return msgspec.json.format(msgspec.json.encode(slots), indent=1)


def _digest(models: msgspec.Raw) -> str:
    # Of the text, not of what this agent knows of it: another one may have written more.
    return hashlib.sha256(msgspec.json.format(bytes(models), indent=-1)).hexdigest()
