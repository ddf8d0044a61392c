"""Answers in a Delta table: files written beside its data, and one commit that makes them the table's.

The commit carries two transactions of the job as an application (Delta protocol, "Transaction Identifiers"): its
number, so that of two runs at once the second is refused; and that of its plan, which says that the plan's record in
the ledger is true. Both stay with the table through checkpoints and clean-ups of its log.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Sequence

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Schema, Transaction
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.transaction import AddAction, create_table_with_add_actions

from edge_agent.contract.batch import APPLICATION, KEY, LOGICAL_TIME, REJECTED_SUFFIX, BatchRecord
from trainer.batch.chunks import REJECTED_SCHEMA, with_logical_time
from trainer.batch.errors import BatchOvertaken, OutputRefused
from trainer.batch.outputs.ledger import Ledger
from trainer.batch.outputs.table import Ready
from trainer.batch.parts import Stage
from trainer.batch.plan import Plan
from trainer.batch.storage import Storage

_BATCHES = "batches"
_KEY_LIMIT = 128  # characters of a key in a file's statistics; a longer one is left out
_TRIES = 5


class DeltaAnswers:
    """A Delta table of answers, partitioned by logical time, and one beside it of rows set aside.

    Args:
        path: Folder or URI.
    """

    def __init__(self, path: str, job: str) -> None:
        self._job = job
        self._answers, self._rejected = Storage(path), Storage(path.rstrip("/") + REJECTED_SUFFIX)
        self._ledger = Ledger(self._answers, job)
        self.shown = self._answers.uri

    def records(self) -> Sequence[BatchRecord]:
        """What was committed, the oldest first; see :class:`trainer.batch.outputs.table.Table`."""
        if others := self._ledger.other_jobs():
            raise OutputRefused(
                f"{self.shown}: holds the answers of job '{others[0]}'; give each job a table of its own"
            )
        table = self._open(self._answers)
        if table is None:
            return []
        true = [
            record
            for record, plan_id in self._ledger.written()
            if table.transaction_version(self._application(plan_id)) == record.number
        ]
        replaced = {record.replaces for record in true}
        return [record for record in true if record.number not in replaced]

    def stage(self, plan_id: str) -> Stage:
        """Where a batch is made ready."""
        return Stage(
            marks=f"{self._answers.uri}/{self._ledger.staged_folder(plan_id)}",
            answers=f"{self._answers.uri}/{_BATCHES}/{plan_id}",
            rejected=f"{self._rejected.uri}/{_BATCHES}/{plan_id}",
            has_time=False,
        )

    def staged(self) -> Sequence[Plan]:
        """Plans that were begun and not committed."""
        return self._ledger.plans()

    def check(self, schema: pa.Schema) -> None:
        """Refuse answers that do not fit the table's columns."""
        table = self._open(self._answers)
        if table is None:
            return
        partitions = table.metadata().partition_columns
        if partitions != [LOGICAL_TIME]:
            raise OutputRefused(
                f"{self.shown}: is partitioned by {partitions}; a table of answers is by {LOGICAL_TIME}"
            )
        known = {field.name: field.type for field in pa.schema(table.schema().to_arrow())}
        for field in with_logical_time(schema):
            found = known.pop(field.name, None)
            if found is None or not _same(found, field.type):
                has = "has no such column" if found is None else f"has it as {found}"
                raise OutputRefused(
                    f"{self.shown}: column '{field.name}' would be {field.type}, the table {has}: the model or the job "
                    "has changed; give the job another table, or another name and table"
                )
        if known:
            raise OutputRefused(f"{self.shown}: has columns that the job does not give: {', '.join(sorted(known))}")

    def commit(self, ready: Ready) -> None:
        """Make the batch a part of the table; see :class:`trainer.batch.outputs.table.Table`."""
        self._commit_rejected(ready)
        self._ledger.write(ready.record, ready.plan.id)
        actions = [
            _action(f"{_BATCHES}/{ready.plan.id}/{done.file}", done.size_bytes, done.rows, ready, done.keys)
            for done in ready.done
            if done.file is not None
        ]
        transactions = [
            Transaction(self._application(""), ready.record.number),
            Transaction(self._application(ready.plan.id), ready.record.number),
        ]
        self._write(self._answers, ready.schema, actions, ready, transactions)

    def discard(self, plan_id: str) -> None:
        """Remove what was staged; files of rows that no commit names are the vacuum's."""
        self._ledger.discard(plan_id)

    def spool(self) -> Storage:
        """A new folder for rows that come as a stream."""
        return self._ledger.spool()

    def _commit_rejected(self, ready: Ready) -> None:
        """The rows set aside, first: a kill between the two commits leaves them to be replaced by the same again."""
        actions = [
            _action(f"{_BATCHES}/{ready.plan.id}/{done.rejected_file}", done.rejected_bytes, done.rejected, ready, None)
            for done in ready.done
            if done.rejected_file is not None
        ]
        if not actions and self._open(self._rejected) is None:
            return
        self._write(self._rejected, REJECTED_SCHEMA, actions, ready, [], replace=True)

    def _write(
        self,
        storage: Storage,
        schema: pa.Schema,
        actions: Sequence[AddAction],
        ready: Ready,
        transactions: list[Transaction],
        *,
        replace: bool = False,
    ) -> None:
        kind = Schema.from_arrow(with_logical_time(schema))
        record = ready.record
        properties = CommitProperties(
            custom_metadata={
                "shoal.job": record.job,
                "shoal.batch": str(record.number),
                "shoal.package": record.package,
            },
            app_transactions=transactions or None,
        )
        for left in reversed(range(_TRIES)):
            table = self._open(storage) or self._make(storage, kind)
            newest = table.transaction_version(self._application("")) or 0
            if transactions and newest >= record.number:
                raise BatchOvertaken(f"{self.shown}: batch {newest} was committed meanwhile; run the job again")
            overwrite = replace or record.replaces is not None
            try:
                table.create_write_transaction(
                    list(actions),
                    "overwrite" if overwrite else "append",
                    kind,
                    [LOGICAL_TIME],
                    partition_filters=[(LOGICAL_TIME, "=", record.logical_time)] if overwrite else None,
                    commit_properties=properties,
                )
            except CommitFailedError as error:  # somebody else has written; whether it matters is seen next time
                if not left:
                    raise OutputRefused(f"{storage.uri}: cannot be committed: {error}", retry=True) from error
            except (DeltaError, OSError) as error:
                raise OutputRefused(f"{storage.uri}: cannot be committed: {error}", retry=True) from error
            else:
                return

    def _make(self, storage: Storage, kind: Schema) -> DeltaTable:
        storage.make()
        with contextlib.suppress(CommitFailedError):  # another attempt has made it meanwhile
            create_table_with_add_actions(
                storage.uri,
                kind,
                [],
                mode="ignore",
                partition_by=[LOGICAL_TIME],
                name=self._job,
                description="made by Shoal",
            )
        return DeltaTable(storage.uri)

    def _open(self, storage: Storage) -> DeltaTable | None:
        try:
            return DeltaTable(storage.uri)
        except TableNotFoundError:
            return None
        except (DeltaError, OSError) as error:
            raise OutputRefused(f"{storage.uri}: cannot be read: {error}", retry=True) from error

    def _application(self, plan_id: str) -> str:
        return f"{APPLICATION}{self._job}" + (f"/{plan_id}" if plan_id else "")


def _action(path: str, size: int, rows: int, ready: Ready, keys: tuple[str, str] | None) -> AddAction:
    statistics: dict[str, object] = {"numRecords": rows}
    if keys is not None and max(map(len, keys)) <= _KEY_LIMIT:
        statistics |= {"minValues": {KEY: keys[0]}, "maxValues": {KEY: keys[1]}, "nullCount": {KEY: 0}}
    return AddAction(
        path=path,
        size=size,
        partition_values={LOGICAL_TIME: ready.record.logical_time},
        modification_time=int(time.time() * 1000),
        data_change=True,
        stats=json.dumps(statistics),
    )


def _same(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether two types are one in Delta, which tells text and lists in one way only."""
    if pa.types.is_list(wanted):
        return (pa.types.is_list(found) or pa.types.is_large_list(found)) and _same(found.value_type, wanted.value_type)
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    if pa.types.is_string(wanted):
        return any(test(found) for test in texts)
    if pa.types.is_binary(wanted):
        texts = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
        return any(test(found) for test in texts)
    return bool(found == wanted)
