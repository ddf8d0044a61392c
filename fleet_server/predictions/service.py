"""Answers of batch jobs by key: the newest logical time's that has the key."""

from __future__ import annotations

import dataclasses
import datetime as dt
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa

from edge_agent.contract.batch import (
    CONFIDENCE,
    JOB_OPTION,
    KEY,
    LOGICAL_TIME,
    MODEL,
    PACKAGE,
    PREDICTION,
    VERSION,
)
from edge_agent.contract.errors import MalformedRequest
from edge_agent.contract.names import is_name
from edge_agent.contract.runs import RunKind, RunState
from fleet_server.clock import Clock, now_ms
from fleet_server.database import Database
from fleet_server.errors import NotFound
from fleet_server.predictions.answer_table import AnswerFile, AnswerTable
from fleet_server.predictions.key_index import KeyIndex
from fleet_server.predictions.places import Places
from fleet_server.predictions.tables import batch_outputs
from fleet_server.schedules.tables import runs
from fleet_server.upsert import upsert

_OUTPUT_PREFIX = "output_"
_OWN = {KEY, PREDICTION, CONFIDENCE, MODEL, VERSION, PACKAGE, LOGICAL_TIME}
_FRESH_S = 1.0
SERVED_KINDS = ("delta", "parquet")
_PROTOCOL = "://"


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to one row.

    Args:
        outputs: Outputs of the model that the job keeps.
        columns: Columns of the input that the job carries along.
    """

    job: str
    key: str
    prediction: str
    confidence: float
    model: str
    version: str
    package: str
    logical_time: str
    outputs: dict[str, Any] = {}
    columns: dict[str, Any] = {}


class JobOutput(msgspec.Struct, frozen=True, kw_only=True):
    """Where a job's answers are.

    Args:
        files: Of the table now.
        newest: Its newest logical time; None where it is empty.
    """

    job: str
    kind: str
    path: str
    files: int
    newest: str | None


@dataclasses.dataclass(eq=False)
class _Open:
    table: AnswerTable
    index: KeyIndex
    looked_s: float = -1e9
    files: Sequence[AnswerFile] = ()
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)


class PredictionService:
    """Finds answers by key.

    Args:
        folder: For the indices.
        places: Where the tables may lie.
    """

    def __init__(self, db: Database, folder: Path, *, places: Places, clock: Clock = now_ms) -> None:
        self._db, self._folder, self._places, self._clock = db, folder, places, clock
        self._jobs: dict[str, _Open] = {}
        self._lock = threading.Lock()

    def register(self, job: str, kind: str, path: str) -> JobOutput:
        """Serve the answers of a job that no run of this server made; again changes where they are.

        Raises:
            MalformedRequest: The job's name is none.
            PlaceRefused: The table lies where none is served from.
            NotFound: There is no table.
            NoAnswers: It is no table of answers.
        """
        if not is_name(job):
            raise MalformedRequest(f"job {job!r}: use 1 to 63 of a-z, 0-9, '-' and '_'")
        path = self._places.checked(path)
        AnswerTable(kind, path).check()
        with self._db.write() as connection:
            upsert(
                connection, batch_outputs, {"job": job}, {"kind": kind, "path": path, "registered_at_ms": self._clock()}
            )
        return self.show(job)

    def show(self, job: str) -> JobOutput:
        """Where a job's answers are.

        Raises:
            NotFound: There is no such job, or its table is gone.
            PlaceRefused: The table lies where none is served from.
        """
        found = self._of(job)
        files = self._files(found, fresh=True)
        newest = files[0].logical_time if files else None
        return JobOutput(job=job, kind=found.table.kind, path=found.table.path, files=len(files), newest=newest)

    def jobs(self) -> Sequence[str]:
        """Names of the jobs whose answers are served."""
        with self._db.read() as connection:
            registered = connection.scalars(sa.select(batch_outputs.c.job)).all()
            return sorted({*registered, *(_outputs_of_runs(connection))})

    def find(self, job: str, keys: Sequence[str], *, logical_time: str | None = None) -> dict[str, Prediction]:
        """The newest answers of some keys; those that have none are left out.

        Args:
            logical_time: Of this one alone.
        Raises:
            NotFound: There is no such job, or its table is gone.
            PlaceRefused: The table lies where none is served from.
        """
        found = self._of(job)
        wanted = _written(logical_time) if logical_time is not None else None
        files = [file for file in self._files(found) if wanted in (None, file.logical_time)]
        answers = {}
        for key in dict.fromkeys(keys):
            row = self._row(found, files, key)
            if row is not None:
                answers[key] = _prediction(job, row)
        return answers

    def _row(self, found: _Open, files: Sequence[AnswerFile], key: str) -> dict[str, Any] | None:
        for file in files:
            if not file.may_hold(key):
                continue
            at = found.index.find(found.table, file, key)
            if at is not None:
                return found.table.row(file, at)
        return None

    def _files(self, found: _Open, *, fresh: bool = False) -> Sequence[AnswerFile]:
        """The table's files, looked up again after a second."""
        with found.lock:
            if fresh or time.monotonic() - found.looked_s > _FRESH_S:
                files = found.table.files()
                if [file.name for file in files] != [file.name for file in found.files]:
                    found.index.forget_all_but(files)
                found.files, found.looked_s = files, time.monotonic()
            return found.files

    def _of(self, job: str) -> _Open:
        kind, path = self._where(job)
        with self._lock:
            known = self._jobs.get(job)
            if known is None or (known.table.kind, known.table.path) != (kind, path):
                known = _Open(AnswerTable(kind, path), KeyIndex(self._folder / job))
                self._jobs[job] = known
            return known

    def _where(self, job: str) -> tuple[str, str]:
        """What was said last: by a run that ended, or by whoever registered it.

        A place that an administrator has written into the job is allowed by that; what a worker tells, or whoever
        registers a table, has to lie in the allowed places: at each request, for a link may lead elsewhere by now.
        """
        with self._db.read() as connection:
            row = connection.execute(sa.select(batch_outputs).where(batch_outputs.c.job == job)).mappings().first()
            by_runs = _outputs_of_runs(connection, job).get(job)
        if by_runs is not None and (row is None or by_runs.ended_at_ms >= row["registered_at_ms"]):
            path = by_runs.path.rstrip("/")
            return by_runs.kind, path if by_runs.as_asked else self._places.checked(path)
        if row is None:
            raise NotFound(
                f"there are no answers of a batch job {job!r} that can be served by key; `shoal batch list` shows "
                "those there are (answers in an SQL table are for the database to serve)"
            )
        return row["kind"], self._places.checked(row["path"])


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Told:
    """Where the newest run of a job has written; ``as_asked``: to the very place that its job names."""

    ended_at_ms: int
    kind: str
    path: str
    as_asked: bool


def _outputs_of_runs(connection: sa.Connection, job: str | None = None) -> dict[str, _Told]:
    """What the newest run of each job has told, or of one; those alone whose answers are served."""
    done = [runs.c.kind == RunKind.BATCH.value, runs.c.state == RunState.DONE.value]
    if job is not None:
        done.append(runs.c.lane == f"batch:{job}")
    newest = sa.select(runs.c.lane, sa.func.max(runs.c.ended_at_ms).label("at")).where(*done).group_by(runs.c.lane)
    last = newest.subquery()
    same = sa.and_(runs.c.lane == last.c.lane, runs.c.ended_at_ms == last.c.at)
    query = sa.select(runs.c.ended_at_ms, runs.c.options, runs.c.evaluation).join(last, same).where(*done)
    found: dict[str, _Told] = {}
    for ended, options, told in connection.execute(query):
        asked = options[JOB_OPTION]
        kind, path = told.get("output_kind"), told.get("output")
        if kind in SERVED_KINDS and isinstance(path, str):
            wanted = str(asked["output"].get("path", ""))
            as_asked = path == wanted and (path.startswith("/") or _PROTOCOL in path)
            found[asked["name"]] = _Told(ended_at_ms=ended, kind=kind, path=path, as_asked=as_asked)
    return found


def _prediction(job: str, row: dict[str, Any]) -> Prediction:
    outputs = {name.removeprefix(_OUTPUT_PREFIX): row[name] for name in row if name.startswith(_OUTPUT_PREFIX)}
    columns = {name: value for name, value in row.items() if name not in _OWN and not name.startswith(_OUTPUT_PREFIX)}
    own = {name: row[name] for name in _OWN}
    return Prediction(job=job, outputs=outputs, columns=columns, **own)


def _written(text: str) -> str:
    """A logical time in the form that tables have."""
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        raise NotFound(f"logical_time {text!r} is no point in time; write 2026-11-23T00:00:00Z") from None
    moment = moment.replace(tzinfo=dt.UTC) if moment.tzinfo is None else moment.astimezone(dt.UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
