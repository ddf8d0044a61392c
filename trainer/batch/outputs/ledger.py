"""The files beside a table of answers: a record for each batch, and the plans and marks of those not committed yet.

A record is written before the commit that makes it true. Which ones are true is for the table to say, as only the
table's own commit is one step.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import TypeVar

import msgspec

from edge_agent.contract.batch import LEDGER_FOLDER, BatchRecord
from trainer.batch.errors import OutputRefused
from trainer.batch.plan import PartDone, Plan
from trainer.batch.storage import Storage

_PLAN = "plan.json"
_RECORDS = "records"
_STAGED = "staged"
_SPOOLS = "spools"
T = TypeVar("T")


class Ledger:
    """The folder ``_shoal/JOB`` within a table's folder.

    Args:
        table: The table's folder.
    """

    def __init__(self, table: Storage, job: str) -> None:
        self._table, self._job = table, job
        self.folder = f"{LEDGER_FOLDER}/{job}"

    def other_jobs(self) -> list[str]:
        """Other jobs that have written into the table."""
        return [name for name in self._table.names(LEDGER_FOLDER) if name != self._job and not name.startswith(".")]

    def written(self) -> list[tuple[BatchRecord, str]]:
        """Records with the plan each is of, by number; also such as never came true."""
        found = []
        for name in self._table.names(f"{self.folder}/{_RECORDS}"):
            number, _, plan_id = name.removesuffix(".json").partition("-")
            if name.endswith(".json") and number.isdecimal():
                found.append((_read(self._table, f"{self.folder}/{_RECORDS}/{name}", BatchRecord), plan_id))
        return sorted(found, key=lambda one: one[0].number)

    def write(self, record: BatchRecord, plan_id: str) -> None:
        """Put down a record that is about to come true."""
        name = f"{record.number:08d}-{plan_id}.json"
        self._table.put(f"{self.folder}/{_RECORDS}/{name}", msgspec.json.format(msgspec.json.encode(record)) + b"\n")

    def staged_folder(self, plan_id: str) -> str:
        """Where a plan and its marks lie."""
        return f"{self.folder}/{_STAGED}/{plan_id}"

    def plans(self) -> Sequence[Plan]:
        """Plans that were begun and not committed."""
        return plans_in(self._table, f"{self.folder}/{_STAGED}")

    def discard(self, plan_id: str) -> None:
        """Remove a plan, its marks and what was spooled for it."""
        for plan in self.plans():
            if plan.id == plan_id and plan.spool:
                self._table.remove(f"{self.folder}/{_SPOOLS}/{plan.spool.rpartition('/')[2]}")
        self._table.remove(self.staged_folder(plan_id))

    def spool(self) -> Storage:
        """A new folder for rows that come as a stream; those that no plan names are removed."""
        folder = f"{self.folder}/{_SPOOLS}"
        used = {plan.spool.rpartition("/")[2] for plan in self.plans()}
        for name in self._table.names(folder):
            if name not in used:
                self._table.remove(f"{folder}/{name}")
        return self._table.inner(f"{folder}/{uuid.uuid4().hex[:12]}")


def plans_in(storage: Storage, folder: str) -> list[Plan]:
    """The plans whose folders lie in a folder; one that was not written to its end is none."""
    found = []
    for name in storage.names(folder):
        data = storage.read(f"{folder}/{name}/{_PLAN}")
        if data is not None:
            found.append(_decoded(data, f"{folder}/{name}/{_PLAN}", Plan))
    return found


def write_plan(marks: Storage, plan: Plan) -> None:
    """Write a plan down, before its first row is answered."""
    marks.put(_PLAN, msgspec.json.encode(plan))


def write_mark(marks: Storage, done: PartDone) -> None:
    """Mark a part as done; its files are durable."""
    marks.put(f"done-{done.index:05d}.json", msgspec.json.encode(done))


def read_marks(marks: Storage) -> dict[int, PartDone]:
    """The parts that are done."""
    found = {}
    for name in marks.names():
        if not (name.startswith("done-") and name.endswith(".json")):
            continue
        if (data := marks.read(name)) is not None:  # else another attempt has committed, and tidied up
            done = _decoded(data, f"{marks.uri}/{name}", PartDone)
            found[done.index] = done
    return found


def _read(storage: Storage, name: str, kind: type[T]) -> T:
    return _decoded(storage.read(name) or b"", f"{storage.uri}/{name}", kind)


def _decoded(data: bytes, shown: str, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.DecodeError as error:
        raise OutputRefused(f"{shown}: is damaged ({error}); remove it, and run the batch again") from error
