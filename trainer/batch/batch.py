"""One batch, from the input to the commit; an attempt that was killed is gone on with."""

from __future__ import annotations

import base64
import datetime as dt
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec
import pyarrow as pa

from edge_agent.contract.batch import BatchJob, BatchRecord, Engine, RowChoice
from edge_agent.contract.errors import ConfigurationError
from edge_agent.runtime.cpus import available
from trainer.batch.chunks import Chunks
from trainer.batch.engines.local import LocalEngine, chunk_rows
from trainer.batch.errors import TooManyRejected
from trainer.batch.inputs.open import pin
from trainer.batch.model import BatchModel
from trainer.batch.moments import parse, written
from trainer.batch.outputs.ledger import read_marks, write_mark, write_plan
from trainer.batch.outputs.open import open_output
from trainer.batch.outputs.table import Ready, Table
from trainer.batch.parts import Stage
from trainer.batch.plan import Part, PartDone, Plan, cut, job_digest
from trainer.batch.storage import Storage

_REPORT_S = 1.0


class Report(Protocol):
    """Told how far a batch is."""

    def __call__(self, stage: str, fraction: float, message: str, metrics: dict[str, float]) -> None:
        """Stage, share of the whole done (0..1), what there is to say, newest figures by name."""


class Answering(Protocol):
    """An engine."""

    def answer(
        self,
        plan: Plan,
        parts: Sequence[Part],
        stage: Stage,
        *,
        on_rows: Callable[[int], None],
        on_done: Callable[[PartDone], None],
    ) -> None:
        """Answer parts into the stage; returns when all are done.

        Args:
            on_rows: Told how many rows more were answered.
            on_done: Told each part that is done, one at a time.
        Raises:
            ShoalError: The first thing that went wrong.
        """


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How a batch ended.

    Args:
        record: What the ledger says of it; None where there was nothing to answer.
        fresh: Whether this run committed it; an earlier attempt may have.
        reason: In words.
        resumed_parts: Parts that an earlier attempt had answered.
        noted: Values let through though they broke a rule, by input, rule and policy.
    """

    record: BatchRecord | None
    fresh: bool
    reason: str
    output: str
    resumed_parts: int = 0
    seconds: float = 0.0
    noted: dict[str, int] = {}


class Batch:
    """One run of a job.

    Args:
        model: What answers; stays the caller's.
        logical_time: The slot that the answers stand for.
        run: Identifier of the run, for the record.
        work: Folder for what the table of answers has no room for; kept between attempts.
        report: Told how far it is, about once a second.
    """

    def __init__(
        self, job: BatchJob, model: BatchModel, *, logical_time: str, run: str, work: Path, report: Report
    ) -> None:
        self._job, self._model, self._run, self._report = job, model, run, report
        self._time = written(parse(logical_time))
        self._table: Table = open_output(job, work)

    def run(self) -> Outcome:
        """Answer what there is to answer, and commit it.

        Raises:
            InputUnreadable, OutputRefused, TooManyRejected, BatchOvertaken, EngineFailed: Nothing was committed; what
                was answered is kept for the next attempt.
        """
        begun = time.monotonic()
        records = self._table.records()
        earlier = next((record for record in records if record.logical_time == self._time), None)
        if earlier is not None and not self._is_to_replace(earlier):
            self._tidy()
            return self._outcome(earlier, f"batch {earlier.number} answered {self._time} already", fresh=False)
        self._report("plan", 0.0, "looking at the input", {})
        plan, schema, resumed = self._planned(records, earlier)
        if plan is None:
            last = f" since batch {records[-1].number}" if records else ""
            return self._outcome(None, f"no rows to answer{last}", fresh=False)
        chunks = Chunks(self._job, self._model, schema, f"job '{self._job.name}': the input")
        self._table.check(chunks.schema)
        stage = self._table.stage(plan.id)
        marks = Storage(stage.marks)
        if not resumed:
            write_plan(marks, plan)
        done = {index: one for index, one in read_marks(marks).items() if _is_whole(stage, one)}
        earlier_parts = len(done)
        self._answer(plan, chunks, done)
        record = self._record(plan, list(done.values()), records, earlier)
        self._report("commit", 0.98, f"committing {record.rows} answers to {self._table.shown}", {})
        ordered = [done[at] for at in sorted(done)]
        self._table.commit(Ready(plan=plan, stage=stage, done=ordered, schema=chunks.schema, record=record))
        self._table.discard(plan.id)
        noted = _summed(ordered)
        seconds = time.monotonic() - begun
        reason = f"batch {record.number}: {record.rows} rows answered, {record.rejected} set aside"
        outcome = self._outcome(record, reason, fresh=True)
        return msgspec.structs.replace(outcome, resumed_parts=earlier_parts, seconds=seconds, noted=noted)

    def preview(self) -> str:
        """What :meth:`run` would answer, in words; nothing is written but what a stream leaves for the next run.

        Raises:
            InputUnreadable, OutputRefused: As :meth:`run`.
        """
        records = self._table.records()
        earlier = next((record for record in records if record.logical_time == self._time), None)
        if earlier is not None and not self._is_to_replace(earlier):
            return f"{self._time}: batch {earlier.number} answered it already, {earlier.rows} rows"
        plan, schema, resumed = self._planned(records, earlier)
        if plan is None:
            return f"{self._time}: no rows to answer"
        self._table.check(Chunks(self._job, self._model, schema, f"job '{self._job.name}': the input").schema)
        files = f"{len(plan.pieces)} files" if len(plan.pieces) != 1 else plan.pieces[0].shown
        how = ", going on with an earlier attempt" if resumed else ""
        at_most = "at most " if plan.where is not None or plan.equal else ""
        return f"{self._time}: {at_most}{plan.rows} rows of {files}, by {plan.model} version {plan.version}{how}"

    def _tidy(self) -> None:
        """Remove what an attempt has left that was killed between its commit and its end."""
        for plan in self._table.staged():
            if plan.logical_time == self._time:
                self._table.discard(plan.id)

    def _is_to_replace(self, earlier: BatchRecord) -> bool:
        # An attempt of this very run that committed and could not say so is not to be repeated.
        return self._job.replace and earlier.run != self._run

    def _planned(
        self, records: Sequence[BatchRecord], earlier: BatchRecord | None
    ) -> tuple[Plan | None, pa.Schema, bool]:
        """The plan of an earlier attempt where there is one, else a new one; None where there is nothing to do."""
        digest = job_digest(self._job)
        for plan in self._table.staged():
            if plan.logical_time != self._time:
                continue
            if (plan.job, plan.package) == (digest, self._model.package.digest) and plan.after == _last(records):
                return plan, _schema(plan), True
            self._table.discard(plan.id)
        pinned = pin(
            self._job,
            logical_time=self._time,
            since=self._since(records, earlier),
            model=self._model.package.manifest.name,
            spool=self._table.spool,
        )
        workers = self._job.resources.workers or available()
        parts = cut(pinned.pieces, workers)
        if not parts or pinned.schema is None:
            return None, pa.schema([]), False
        manifest = self._model.package.manifest
        plan = Plan(
            job=digest,
            logical_time=self._time,
            package=self._model.package.digest,
            model=manifest.name,
            version=manifest.version,
            filesystem=pinned.filesystem,
            pieces=pinned.pieces,
            parts=parts,
            watermark=pinned.watermark,
            after=_last(records),
            where=pinned.where,
            equal=pinned.equal,
            spool=pinned.spool,
            schema=base64.b64encode(pinned.schema.serialize().to_pybytes()).decode(),
        )
        return plan, pinned.schema, False

    def _since(self, records: Sequence[BatchRecord], earlier: BatchRecord | None) -> dict[str, Any]:
        if earlier is None:
            return records[-1].watermark if records else {}
        if self._job.input.rows is RowChoice.NEW and earlier.number != records[-1].number:
            raise ConfigurationError(
                f"job '{self._job.name}': batch {earlier.number} cannot be replaced, later ones began where it ended; "
                'with rows = "window" or "all" it can'
            )
        before = [record for record in records if record.number < earlier.number]
        return before[-1].watermark if before else {}

    def _answer(self, plan: Plan, chunks: Chunks, done: dict[int, PartDone]) -> None:
        """Answer the parts that have no mark yet."""
        stage = self._table.stage(plan.id)
        marks = Storage(stage.marks)
        left = [part for part in plan.parts if part.index not in done]
        progress = _Progress(self._report, plan, sum(one.rows + one.rejected for one in done.values()))

        def on_done(one: PartDone) -> None:
            write_mark(marks, one)
            done[one.index] = one

        if left:
            engine = self._engine(chunks)
            engine.answer(plan, left, stage, on_rows=progress.more, on_done=on_done)

    def _engine(self, chunks: Chunks) -> Answering:
        resources = self._job.resources
        if resources.engine is Engine.RAY:
            from trainer.batch.engines.ray import RayEngine

            return RayEngine(self._job, self._model.package, chunks.input_schema)
        return LocalEngine(chunks, workers=resources.workers or available(), chunk_rows=chunk_rows(self._model))

    def _record(
        self, plan: Plan, done: list[PartDone], records: Sequence[BatchRecord], earlier: BatchRecord | None
    ) -> BatchRecord:
        rows, rejected = sum(one.rows for one in done), sum(one.rejected for one in done)
        if rejected > self._job.max_rejected * (rows + rejected):
            self._table.discard(plan.id)
            first = next(one.complaint for one in sorted(done, key=lambda one: one.index) if one.complaint)
            raise TooManyRejected(
                f"{rejected} of {rows + rejected} rows break the contract of '{plan.model}' version {plan.version}, "
                f"more than max_rejected = {self._job.max_rejected:g} allows; nothing was committed. The first: {first}"
            )
        return BatchRecord(
            job=self._job.name,
            number=_last(records) + 1,
            logical_time=self._time,
            run=self._run,
            model=plan.model,
            version=plan.version,
            package=plan.package,
            rows=rows,
            rejected=rejected,
            finished_at=written(dt.datetime.now(dt.UTC)),
            watermark=plan.watermark,
            replaces=earlier.number if earlier is not None else None,
        )

    def _outcome(self, record: BatchRecord | None, reason: str, *, fresh: bool) -> Outcome:
        return Outcome(record=record, fresh=fresh, reason=reason, output=self._table.shown)


class _Progress:
    """Tells the rows answered and the pace, about once a second."""

    def __init__(self, report: Report, plan: Plan, before: int) -> None:
        self._report, self._total, self._before = report, max(1, plan.rows), before
        self._rows = 0
        self._begun = self._told = time.monotonic()
        self._lock = threading.Lock()

    def more(self, rows: int) -> None:
        with self._lock:
            self._rows += rows
            now = time.monotonic()
            if now - self._told < _REPORT_S:
                return
            self._told = now
            pace, seen = self._rows / (now - self._begun), self._before + self._rows
            share = 0.02 + 0.95 * min(1.0, seen / self._total)
            message = f"{seen} of {self._total} rows, {pace:.0f} a second"
            self._report("answer", share, message, {"rows": float(seen), "rows_per_s": pace})


def _is_whole(stage: Stage, done: PartDone) -> bool:
    """Whether the files that a mark speaks of are there: somebody may have tidied up since."""
    sides = ((stage.answers, done.file, done.size_bytes), (stage.rejected, done.rejected_file, done.rejected_bytes))
    return all(name is None or Storage(folder).size(name) == size for folder, name, size in sides)


def _last(records: Sequence[BatchRecord]) -> int:
    return records[-1].number if records else 0


def _schema(plan: Plan) -> pa.Schema:
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(plan.schema)))


def _summed(done: Sequence[PartDone]) -> dict[str, int]:
    total: dict[str, int] = {}
    for one in done:
        for name, rows in one.noted.items():
            total[name] = total.get(name, 0) + rows
    return total
