"""Answers in a folder of Parquet files: a folder a batch, renamed into its place as a whole."""

from __future__ import annotations

import contextlib
import errno
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from edge_agent.contract.batch import REJECTED_SUFFIX, BatchRecord
from edge_agent.durable import sync_folder, write_durably
from trainer.batch.chunks import with_logical_time
from trainer.batch.errors import BatchOvertaken, OutputRefused
from trainer.batch.outputs.ledger import Ledger
from trainer.batch.outputs.table import Ready
from trainer.batch.parts import Stage
from trainer.batch.plan import Plan
from trainer.batch.storage import Storage, writing

# Readers of folders of Parquet files pass over names that begin so.
RECORD_FILE = "_record.json"
_BATCH = "batch-"


class ParquetAnswers:
    """A folder with a folder of Parquet files a batch, and one beside it of rows set aside.

    Args:
        path: On a disk: object stores cannot rename a folder in one step.
    Raises:
        OutputRefused: It is in an object store.
    """

    def __init__(self, path: str, job: str) -> None:
        self._job, self._answers = job, Storage(path)
        if not self._answers.is_local:
            raise OutputRefused(
                f'{path}: Parquet answers need a disk, where a folder is renamed in one step; use kind = "delta"'
            )
        self._ledger = Ledger(self._answers, job)
        self._root = Path(self._answers.root)
        self._rejected = self._root.with_name(self._root.name + REJECTED_SUFFIX)
        self.shown = self._answers.uri

    def records(self) -> Sequence[BatchRecord]:
        """What was committed, the oldest first; see :class:`trainer.batch.outputs.table.Table`."""
        if others := self._ledger.other_jobs():
            raise OutputRefused(
                f"{self.shown}: holds the answers of job '{others[0]}'; give each job a table of its own"
            )
        files = sorted(self._root.glob(f"{_BATCH}*/{RECORD_FILE}"))
        try:
            return [msgspec.json.decode(file.read_bytes(), type=BatchRecord) for file in files]
        except msgspec.DecodeError as error:
            raise OutputRefused(f"{self.shown}: a {RECORD_FILE} is damaged: {error}") from error

    def stage(self, plan_id: str) -> Stage:
        """Where a batch is made ready."""
        folder = f"{self._answers.uri}/{self._ledger.staged_folder(plan_id)}"
        return Stage(marks=folder, answers=f"{folder}/answers", rejected=f"{folder}/rejected", has_time=True)

    def staged(self) -> Sequence[Plan]:
        """Plans that were begun and not committed."""
        return self._ledger.plans()

    def check(self, schema: pa.Schema) -> None:
        """Refuse answers that do not fit the columns of the batch before."""
        newest = next(iter(sorted(self._root.glob(f"{_BATCH}*/*.parquet"), reverse=True)), None)
        if newest is None:
            return
        found = pq.read_schema(newest).remove_metadata()
        wanted = with_logical_time(schema)
        if found != wanted:
            differs = set(map(str, wanted)) ^ set(map(str, found))
            raise OutputRefused(
                f"{self.shown}: the batches before have other columns ({'; '.join(sorted(differs))}): the model or the "
                "job has changed; give the job another folder"
            )

    def commit(self, ready: Ready) -> None:
        """Make the batch a part of the table; see :class:`trainer.batch.outputs.table.Table`."""
        name = f"{_BATCH}{ready.record.number:08d}"
        try:
            self._commit(name, ready)
        except FileNotFoundError as error:
            if not (self._root / name).exists():
                raise OutputRefused(f"{self.shown}: what was made ready is gone: {error}", retry=True) from error
            raise _overtaken(self.shown, name) from error  # and tidied up after

    def _commit(self, name: str, ready: Ready) -> None:
        with self._writing():
            answers = self._gathered(ready.stage.answers, [done.file for done in ready.done])
            rejected = self._gathered(ready.stage.rejected, [done.rejected_file for done in ready.done])
            write_durably(answers / RECORD_FILE, msgspec.json.format(msgspec.json.encode(ready.record)))
            if (self._root / name).exists():
                raise _overtaken(self.shown, name)
            if ready.record.replaces is not None:
                self._take_away(f"{_BATCH}{ready.record.replaces:08d}", ready)
            if any(rejected.iterdir()):
                self._rejected.mkdir(parents=True, exist_ok=True)
                self._remove(self._rejected / name)  # of an attempt that was killed before the next step
                rejected.rename(self._rejected / name)
                sync_folder(self._rejected)
            try:
                answers.rename(self._root / name)  # the commit
            except OSError as error:
                if error.errno not in {errno.EEXIST, errno.ENOTEMPTY}:
                    raise
                raise _overtaken(self.shown, name) from error
            sync_folder(self._root)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        gone: FileNotFoundError | None = None
        with writing(self.shown):
            try:
                yield
            except FileNotFoundError as error:
                gone = error
        if gone is not None:
            raise gone

    def discard(self, plan_id: str) -> None:
        """Remove what was staged."""
        self._ledger.discard(plan_id)

    def spool(self) -> Storage:
        """A new folder for rows that come as a stream."""
        return self._ledger.spool()

    def _gathered(self, staged: str, files: Sequence[str | None]) -> Path:
        """A folder of this attempt's own with its files, as links: another attempt may be at the same plan."""
        source = Path(Storage(staged).root)
        folder = source.with_name(f"{source.name}-{uuid.uuid4().hex[:12]}")
        folder.mkdir(parents=True)
        for file in files:
            if file is not None:
                (folder / file).hardlink_to(source / file)
        sync_folder(folder)
        return folder

    def _take_away(self, name: str, ready: Ready) -> None:
        """Readers see neither batch for a moment, and never both."""
        if (self._root / name).exists():
            (self._root / name).rename(Path(Storage(ready.stage.marks).root) / name)
        self._remove(self._rejected / name)

    def _remove(self, folder: Path) -> None:
        Storage(str(folder.parent)).remove(folder.name)


def _overtaken(shown: str, name: str) -> BatchOvertaken:
    return BatchOvertaken(f"{shown}: {name} was committed meanwhile; run the job again")
