"""What every table of answers offers: the record of its batches, a place to make one ready, and a commit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec
import pyarrow as pa

from edge_agent.contract.batch import BatchRecord
from trainer.batch.parts import Stage
from trainer.batch.plan import PartDone, Plan
from trainer.batch.storage import Storage


class Ready(msgspec.Struct, frozen=True, kw_only=True):
    """A batch that is ready to be committed.

    Args:
        done: Marks of all parts.
        schema: Of the answers, without the logical time.
        record: What the ledger will say; its number is one above the last one that was seen.
    """

    plan: Plan
    stage: Stage
    done: Sequence[PartDone]
    schema: pa.Schema
    record: BatchRecord


class Table(Protocol):
    """A table of answers of one job."""

    @property
    def shown(self) -> str:
        """What it is called in messages; no password in it."""

    def records(self) -> Sequence[BatchRecord]:
        """What was committed, the oldest first.

        Raises:
            OutputRefused: It cannot be read, or belongs to another job.
        """

    def stage(self, plan_id: str) -> Stage:
        """Where the batch of a plan is made ready."""

    def staged(self) -> Sequence[Plan]:
        """Plans that were begun and not committed."""

    def check(self, schema: pa.Schema) -> None:
        """Refuse answers that do not fit the table's columns, before any is computed.

        Raises:
            OutputRefused: It names the column.
        """

    def commit(self, ready: Ready) -> None:
        """Make the batch a part of the table, and its record a part of the ledger: both, or neither.

        Of a batch that replaces one, that one's rows go in the same commit.

        Raises:
            BatchOvertaken: Another batch of the job was committed since its records were read.
            OutputRefused: The table cannot be written.
        """

    def discard(self, plan_id: str) -> None:
        """Remove what was staged."""

    def spool(self) -> Storage:
        """A new folder for rows that come as a stream; what earlier attempts spooled for no plan is removed."""
