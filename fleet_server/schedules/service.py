"""Requests make runs, workers carry them out; runs are rows, so nothing is lost or done twice."""

from __future__ import annotations

import builtins
import dataclasses
import logging
import threading
from collections.abc import Callable, Collection
from typing import Any

import sqlalchemy as sa

from edge_agent.contract.errors import CallerError, ShoalError
from edge_agent.contract.runs import RunFile, RunKind, RunProgress, RunResult, RunState
from fleet_server.clock import Clock, now_ms
from fleet_server.database import Database
from fleet_server.errors import Conflict, NotFound
from fleet_server.schedules import leases, reports
from fleet_server.schedules.creation import (
    HARM,
    MANUAL,
    Cause,
    active,
    cooling,
    insert_run,
    settle_graphs,
)
from fleet_server.schedules.graph import ENDED, FAILED, Step, check_steps
from fleet_server.schedules.leases import Claimant
from fleet_server.schedules.retry import queue_anew, same_slot, skipped_after
from fleet_server.schedules.run_files import made_from, run_file, tried
from fleet_server.schedules.tables import runs

_log = logging.getLogger(__name__)

__all__ = ["HARM", "MANUAL", "RunService", "RunSettings"]

# (samples, labels): the newest versions of the lake's tables; None where a table does not exist yet.
LakeVersions = Callable[[], tuple[int | None, int | None]]
# Of a model: (package digest, version) of the one to beat, or None before the first.
Champion = Callable[[str], tuple[str, str] | None]
# Names of the models that there are.
KnownModels = Callable[[], Collection[str]]
# (model, package digest, reason)
OnReleased = Callable[[str, str, str], None]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """How runs are made and handed out.

    Args:
        lease_s: A worker not heard of for so long has lost its run.
        max_attempts: Claims after which a run whose workers vanish is given up.
        cool_down_s: Automatic requests for a model are declined for so long after its last run ended, so that one harm
            does not start run after run while labels of the new model are still scarce.
        grace_s: How late a slot may be found and still count as on time.
        logs_kept: Runs whose log and metrics are kept, the newest.
    """

    lease_s: float = 60.0
    max_attempts: int = 3
    cool_down_s: float = 3_600.0
    grace_s: float = 60.0
    logs_kept: int = 1_000


class RunService:
    """Runs: asked for, claimed under leases, reported on, ended.

    Args:
        lake: URI of the lake, as the trainer's worker reaches it.
        on_released: Told of each released package, after the commit; again after a crash between the two, so it must
            not mind hearing of one twice.
        known_models: What a person may ask a run of, beside what workers say they can train; None: anything.
    """

    def __init__(
        self,
        db: Database,
        *,
        lake: str,
        lake_versions: LakeVersions,
        champion: Champion,
        on_released: OnReleased | None = None,
        known_models: KnownModels | None = None,
        settings: RunSettings | None = None,
        clock: Clock = now_ms,
    ) -> None:
        self._db, self._lake, self._clock = db, lake, clock
        self._lake_versions, self._champion, self._on_released = lake_versions, champion, on_released
        self._settings = settings or RunSettings()
        self._known_models, self._trainable = known_models, set[str]()  # the latter: named by workers that are free
        self._announcing = threading.Lock()  # a tick and a worker's result must not both hand on one release
        # A worker whose server was away could not renew its lease: it has one more, from now on.
        self._begun_ms = clock()

    def tick(self) -> None:
        """Take back expired leases, let go on what waits for nothing any more, hand on releases."""
        now = self._clock()
        self._expire(now)
        self._settle()
        self._announce()

    # --- requests

    def request(
        self, model: str, trigger: str = MANUAL, reason: str = "asked for", step: Step | None = None
    ) -> str | None:
        """Ask for a run of ``model``.

        Args:
            trigger: ``manual`` is a person's; any other is automatic and subject to the cool-down.
            step: What to do; unless given, a training.
        Returns:
            The run's identifier: that of the one waiting or under way where there is one, for a model (or batch job)
            has one active run at most. None: declined, the model's last run ended within the cool-down.
        Raises:
            ScheduleRefused: The step is none that can be carried out.
        """
        return self.ask(model, trigger, reason, step)[0]

    def ask(
        self, model: str, trigger: str = MANUAL, reason: str = "asked for", step: Step | None = None
    ) -> tuple[str | None, bool]:
        """As :meth:`request`; with it, whether the run was made of this very question."""
        now, step = self._clock(), step or Step()
        check_steps(f"run of {model}", [step])
        with self._db.write() as connection:
            if (found := active(connection, step.lane(model))) is not None:
                return found, False
            cool_down_s = self._settings.cool_down_s
            if trigger != MANUAL and cooling(connection, model, now_ms=now, cool_down_s=cool_down_s):
                return None, False
            made = insert_run(connection, model, step, Cause(trigger=trigger, reason=reason, now_ms=now))
            return (made, True) if made is not None else (active(connection, step.lane(model)), False)

    def check_model(self, model: str) -> None:
        """Refuse a model that no package names and no worker has said it can train: a run of it would wait for good.

        Raises:
            NotFound: It is not known; the text says what is.
        """
        known = self._known()
        if known is not None and model not in known:
            there_are = f"known are: {', '.join(sorted(known))}" if known else "none is known yet"
            raise NotFound(
                f"there is no model {model!r}; {there_are}. A model becomes known when its first package is published "
                "(`shoal trainer publish`), or when a worker with its recipe is there (`shoal trainer work`)"
            )

    def unknown_models(self, models: Collection[str]) -> builtins.list[str]:
        """Those that no package names and no worker has said it can train, by name."""
        known = self._known()
        return [] if known is None else sorted({*models} - known)

    def _known(self) -> set[str] | None:
        return None if self._known_models is None else {*self._known_models(), *self._trainable}

    def cancel(self, run_id: str, reason: str) -> None:
        """End a run that waits or is under way; its worker stops at its next heartbeat.

        Raises:
            NotFound: There is none.
            Conflict: It has ended already.
        """
        with self._db.write() as connection:
            leases.cancel(connection, run_id, reason, now_ms=self._clock())
        _log.info("run %s: cancelled: %s", run_id, reason)
        self._settle()

    def retry(self, run_id: str) -> builtins.list[str]:
        """Queue a run anew that failed, was cancelled or skipped, with the steps that were skipped because of it.

        It is made from the newest data, as a new run would be; its slot and its log stay.

        Returns:
            The identifiers of the runs that wait again.
        Raises:
            NotFound: There is none.
            Conflict: It did not fail, or another run of its kind waits or is under way already.
        """
        with self._db.write() as connection:
            run = leases.find(connection, run_id)
            if RunState(run["state"]) not in FAILED:
                raise Conflict(f"run {run_id} is {run['state']}: only one that failed is tried again")
            again = [run_id, *skipped_after(connection, run)]
            try:
                with connection.begin_nested():
                    for one in again:
                        queue_anew(connection, leases.find(connection, one))
            except sa.exc.IntegrityError as error:
                raise Conflict(f"run {run_id}: another run of {run['model']} waits or is under way already") from error
        self._settle()
        return again

    # --- workers

    def claim(self, claimant: Claimant | str, models: Collection[str] = ()) -> RunFile | None:
        """Give a worker a run under a lease, or None where none waits that it can carry out.

        Args:
            claimant: The worker; a name alone is one that trains ``models`` (empty: any) and counts no resources.
        """
        asks = claimant if isinstance(claimant, Claimant) else Claimant(worker=claimant, models=tuple(models))
        now = self._clock()
        self._trainable |= set(asks.models)
        self._take_back(asks, now)
        self._expire(now)
        with self._db.read() as connection:
            waiting = set(connection.execute(sa.select(runs.c.model).where(asks.claimable(now)).distinct()).scalars())
        if not waiting:
            return None
        # Asked before the claim: where the lake cannot be read, nothing has been claimed.
        versions = self._lake_versions()
        champions = {model: self._champion(model) for model in waiting}
        try:
            with self._db.write() as connection:
                lease_ms = round(self._settings.lease_s * 1000)
                run = leases.claim(connection, asks, models=waiting, now_ms=now, lease_ms=lease_ms)
                if run is None:
                    return None
                source = made_from(run, versions, champions[run["model"]])
                connection.execute(sa.update(runs).where(runs.c.id == run["id"]).values(source))
                return run_file({**run, **source}, lake=self._lake, tried=tried(connection, run))
        except sa.exc.IntegrityError:
            _log.info("another server claimed a run of %s at the same moment", sorted(waiting))
            return None

    def progress(self, run_id: str, progress: RunProgress) -> None:
        """A worker's heartbeat: renews the lease, keeps what the run has written and measured.

        Raises:
            NotFound, LeaseLost: See :mod:`fleet_server.schedules.leases`.
        """
        now = self._clock()
        with self._db.write() as connection:
            lease_ms = round(self._settings.lease_s * 1000)
            leases.renew(connection, run_id, progress, now_ms=now, lease_ms=lease_ms)
            if not (progress.log or progress.metrics):
                return
            attempt = leases.find(connection, run_id)["attempts"]
            reports.add_log(connection, run_id, progress.log, attempt=attempt, at_ms=now)
            reports.add_metrics(
                connection, run_id, progress.metrics, attempt=attempt, at_ms=now, fraction=progress.fraction
            )

    def hand_back(self, run_id: str, fence: int, reason: str) -> None:
        """A worker that stops gives its run back: another goes on with it at once.

        Raises:
            NotFound, LeaseLost: See :mod:`fleet_server.schedules.leases`.
        """
        with self._db.write() as connection:
            leases.hand_back(connection, run_id, fence, reason)

    def finish(self, run_id: str, result: RunResult) -> None:
        """A worker's result; a release is handed on after the commit.

        Raises:
            NotFound, LeaseLost, Conflict: See :mod:`fleet_server.schedules.leases`.
        """
        with self._db.write() as connection:
            leases.end(connection, run_id, result, now_ms=self._clock())
        _log.info("run %s: %s: %s", run_id, result.state.value, "; ".join(result.reasons))
        self._settle()
        self._announce()

    # --- reading

    def identify(self, text: str) -> str:
        """The identifier of a run that a person named by it, or by the beginning of it.

        Raises:
            NotFound: None begins so.
            Conflict: Several do; the text names them.
        """
        with self._db.read() as connection:
            return leases.identify(connection, text)

    def get(self, run_id: str) -> dict[str, Any]:
        """One run; with ``graph``, the runs of its slot: each with id, step, state and needs.

        Raises:
            NotFound: There is none.
        """
        with self._db.read() as connection:
            run = dict(leases.find(connection, run_id))
            columns = (runs.c.id, runs.c.step, runs.c.kind, runs.c.state, runs.c.needs)
            if run["schedule"] is None:
                query = sa.select(*columns).where(runs.c.id == run_id)
            else:
                query = sa.select(*columns).where(same_slot(run)).order_by(runs.c.created_at_ms, runs.c.step)
            return run | {"graph": [dict(row) for row in connection.execute(query).mappings()]}

    def list(
        self,
        model: str | None = None,
        *,
        limit: int = 100,
        schedule: str | None = None,
        state: RunState | None = None,
        kind: RunKind | None = None,
        ended: bool = False,
    ) -> builtins.list[dict[str, Any]]:
        """The newest runs first, of a schedule those of the newest slot; ``ended``: of those alone that are over."""
        newest, slot = runs.c.created_at_ms.desc(), runs.c.logical_time_ms.desc()
        query = sa.select(runs).order_by(*((slot, newest) if schedule else (newest, slot)), runs.c.id)
        wanted = {"model": model, "schedule": schedule, "state": state and state.value, "kind": kind and kind.value}
        for name, value in wanted.items():
            if value is not None:
                query = query.where(runs.c[name] == value)
        if ended:
            query = query.where(runs.c.state.in_([each.value for each in ENDED]))
        with self._db.read() as connection:
            return [dict(row) for row in connection.execute(query.limit(limit)).mappings()]

    def queue(self, *, limit: int = 100) -> builtins.list[dict[str, Any]]:
        """What is under way, then what waits, in the order in which workers take it: the newest may be the last."""
        states = (RunState.RUNNING.value, RunState.QUEUED.value, RunState.BLOCKED.value)
        rank = sa.case({state: at for at, state in enumerate(states)}, value=runs.c.state)
        order = (rank, runs.c.priority.desc(), runs.c.created_at_ms, runs.c.logical_time_ms, runs.c.id)
        with self._db.read() as connection:
            query = sa.select(runs).where(runs.c.state.in_(states)).order_by(*order).limit(limit)
            return [dict(row) for row in connection.execute(query).mappings()]

    def log(self, run_id: str, after: int = 0) -> dict[str, Any]:
        """What a run has written since: ``text``, and ``next`` to ask with then.

        Raises:
            NotFound: There is no such run.
        """
        with self._db.read() as connection:
            leases.find(connection, run_id)
            text, following = reports.log_after(connection, run_id, after)
        return {"text": text, "next": following}

    def metrics(self, run_id: str) -> builtins.list[dict[str, Any]]:
        """A run's metrics over time: points with ``at_ms``, ``attempt``, ``fraction`` and ``metrics`` by name.

        Raises:
            NotFound: There is no such run.
        """
        with self._db.read() as connection:
            leases.find(connection, run_id)
            return reports.metrics_of(connection, run_id)

    def prune(self) -> int:
        """Drop the logs and metrics of old runs; the runs themselves stay."""
        kept = sa.select(runs.c.id).order_by(runs.c.created_at_ms.desc()).limit(self._settings.logs_kept)
        with self._db.write() as connection:
            return reports.forget(connection, kept)

    # --- inside

    def _take_back(self, claimant: Claimant, now: int) -> None:
        with self._db.write() as connection:
            lost = leases.take_back(connection, claimant, now_ms=now, max_attempts=self._settings.max_attempts)
        if lost:
            _log.warning("worker %s has begun anew; its runs go on: %s", claimant.worker, ", ".join(lost))

    def _expire(self, now: int) -> None:
        if now < self._begun_ms + self._settings.lease_s * 1000:
            return
        with self._db.write() as connection:
            expired = leases.expire(connection, now_ms=now, max_attempts=self._settings.max_attempts)
        if expired:
            _log.warning("leases ran out: %s", ", ".join(expired))

    def _settle(self) -> None:
        with self._db.write() as connection:
            settle_graphs(connection, now_ms=self._clock())

    def _announce(self) -> None:
        if self._on_released is None:
            return
        waiting = runs.c.state == RunState.RELEASED.value, sa.not_(runs.c.announced)
        query = sa.select(runs).where(*waiting).order_by(runs.c.ended_at_ms)
        with self._announcing:
            with self._db.read() as connection:
                released = connection.execute(query).mappings().all()
            for run in released:
                refused = run["reasons"]
                try:
                    self._on_released(run["model"], run["package"], "; ".join(run["reasons"]) or run["reason"])
                except CallerError as error:  # no such package, or it was withdrawn: tomorrow's answer is the same
                    _log.error("run %s: its release goes no further: %s", run["id"], error)
                    refused = [*run["reasons"], f"not rolled out: {error}"]
                except ShoalError:
                    _log.exception("run %s: its release is not handed on yet; the next tick tries again", run["id"])
                    continue
                with self._db.write() as connection:
                    connection.execute(
                        sa.update(runs).where(runs.c.id == run["id"]).values(announced=True, reasons=refused)
                    )
