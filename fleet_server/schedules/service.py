"""Schedules make runs, requests make runs, workers carry them out; runs are rows, so nothing is lost or done twice."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import threading
import uuid
from collections.abc import Callable, Collection
from typing import Any

import sqlalchemy as sa

from edge_agent.contract.errors import CallerError, ShoalError
from edge_agent.contract.runs import RunFile, RunProgress, RunResult, RunState
from fleet_server.clock import Clock, now_ms
from fleet_server.database import Database
from fleet_server.errors import NotFound
from fleet_server.schedules import leases
from fleet_server.schedules.slots import CatchUp, Schedule, ScheduleRefused, due_slots, next_slot, rfc3339, trigger_of
from fleet_server.schedules.tables import runs, schedules
from fleet_server.upsert import upsert

_log = logging.getLogger(__name__)

MANUAL = "manual"
HARM = "harm"
SCHEDULE = "schedule"

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
    """How runs are handed out.

    Args:
        lease_s: A worker not heard of for so long has lost its run.
        max_attempts: Claims after which a run whose workers vanish is given up.
        cool_down_s: Automatic requests for a model are declined for so long after its last run ended, so that one harm
            does not start run after run while labels of the new model are still scarce.
        grace_s: How late a slot may be found and still count as on time.
    """

    lease_s: float = 60.0
    max_attempts: int = 3
    cool_down_s: float = 3_600.0
    grace_s: float = 60.0


class RunService:
    """Schedules and runs.

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

    # --- schedules

    def put_schedule(self, schedule: Schedule) -> None:
        """Create or change a schedule. Slots before now are not caught up; a changed one keeps its cursor.

        Raises:
            ScheduleRefused: It will never come.
        """
        now = self._clock()
        if next_slot(trigger_of(schedule, anchor_ms=now), now) is None:
            raise ScheduleRefused(
                f"schedule {schedule.name}: {schedule.expression!r} never comes: no year has such a day"
            )
        values = dataclasses.asdict(schedule) | {"catch_up": schedule.catch_up.value}
        name = values.pop("name")
        with self._db.write() as connection:
            upsert(connection, schedules, {"name": name}, values, first={"anchor_ms": now, "cursor_ms": now})

    def delete_schedule(self, name: str) -> None:
        """Delete a schedule; its runs stay.

        Raises:
            NotFound: There is none of that name.
        """
        with self._db.write() as connection:
            if not connection.execute(sa.delete(schedules).where(schedules.c.name == name)).rowcount:
                raise NotFound(f"schedule {name!r} does not exist; see GET /api/v1/schedules")

    def schedules(self) -> list[dict[str, Any]]:
        """All schedules by name, each with ``next_ms``, its next slot."""
        with self._db.read() as connection:
            rows = connection.execute(sa.select(schedules).order_by(schedules.c.name)).mappings().all()
        found = []
        for row in rows:
            trigger = trigger_of(_schedule_of(row), anchor_ms=row["anchor_ms"])
            found.append(dict(row) | {"next_ms": next_slot(trigger, row["cursor_ms"]) if row["enabled"] else None})
        return found

    def tick(self) -> list[str]:
        """Make runs of due slots, take back expired leases, hand on releases; returns the identifiers of new runs."""
        now = self._clock()
        made: list[str] = []
        with self._db.write() as connection:
            enabled = sa.select(schedules).where(schedules.c.enabled).with_for_update(skip_locked=True)
            for row in connection.execute(enabled).mappings().all():
                made += self._make_due(connection, row, now)
        self._expire(now)
        self._announce()
        return made

    def _make_due(self, connection: sa.Connection, row: sa.RowMapping, now: int) -> list[str]:
        schedule = _schedule_of(row)
        slots, cursor = due_slots(
            schedule,
            anchor_ms=row["anchor_ms"],
            cursor_ms=row["cursor_ms"],
            now_ms=now,
            grace_ms=round(self._settings.grace_s * 1000),
        )
        reason = f"schedule {schedule.name} ({schedule.kind} {schedule.expression})"
        made = []
        for slot in slots:
            run = _insert(connection, schedule.model, SCHEDULE, reason, now, schedule=schedule.name, slot_ms=slot)
            if run is not None:
                made.append(run)
        if cursor != row["cursor_ms"]:
            connection.execute(sa.update(schedules).where(schedules.c.name == schedule.name).values(cursor_ms=cursor))
        return made

    # --- requests

    def request(self, model: str, trigger: str = MANUAL, reason: str = "asked for") -> str | None:
        """Ask for a run of ``model``.

        Args:
            trigger: ``manual`` is a person's; any other is automatic and subject to the cool-down.
        Returns:
            The run's identifier: that of the one waiting or under way where there is one, for a model has one active
            run at most. None: declined, the model's last run ended within the cool-down.
        """
        now = self._clock()
        with self._db.write() as connection:
            if (active := _active(connection, model)) is not None:
                return active
            if trigger != MANUAL and self._cooling(connection, model, now):
                return None
            made = _insert(connection, model, trigger, reason, now)
            return made if made is not None else _active(connection, model)

    def check_model(self, model: str) -> None:
        """Refuse a model that no package names and no worker has said it can train: a run of it would wait for good.

        Raises:
            NotFound: It is not known; the text says what is.
        """
        if self._known_models is None:
            return
        known = {*self._known_models(), *self._trainable}
        if model not in known:
            there_are = f"known are: {', '.join(sorted(known))}" if known else "none is known yet"
            raise NotFound(
                f"there is no model {model!r}; {there_are}. A model becomes known when its first package is published "
                "(`shoal trainer publish`), or when a worker with its recipe is there (`shoal trainer work`)"
            )

    def cancel(self, run_id: str, reason: str) -> None:
        """End a run that waits or is under way; its worker stops at its next heartbeat.

        Raises:
            NotFound: There is none.
            Conflict: It has ended already.
        """
        with self._db.write() as connection:
            leases.cancel(connection, run_id, reason, now_ms=self._clock())
        _log.info("run %s: cancelled: %s", run_id, reason)

    def _cooling(self, connection: sa.Connection, model: str, now: int) -> bool:
        last = connection.execute(sa.select(sa.func.max(runs.c.ended_at_ms)).where(runs.c.model == model)).scalar()
        return last is not None and now - last < self._settings.cool_down_s * 1000

    # --- workers

    def claim(self, worker: str, models: Collection[str] = ()) -> RunFile | None:
        """Give ``worker`` a run under a lease, or None where none waits.

        Args:
            models: Those that the worker can train; empty: any.
        """
        now = self._clock()
        self._trainable |= set(models)
        self._expire(now)
        if not (waiting := self._waiting(models)):
            return None
        # Asked before the claim: where the lake cannot be read, nothing has been claimed.
        samples, labels = self._lake_versions()
        champions = {model: self._champion(model) for model in waiting}
        try:
            with self._db.write() as connection:
                lease_ms = round(self._settings.lease_s * 1000)
                run = leases.claim(connection, worker=worker, models=waiting, now_ms=now, lease_ms=lease_ms)
                if run is None:
                    return None
                digest, version = champions[run["model"]] or (None, None)
                made_from = {
                    "samples_version": samples,
                    "labels_version": labels,
                    "champion": digest,
                    "champion_version": version,
                }
                connection.execute(sa.update(runs).where(runs.c.id == run["id"]).values(made_from))
                return self._run_file({**run, **made_from})
        except sa.exc.IntegrityError:
            _log.info("another server claimed a run of %s at the same moment", sorted(waiting))
            return None

    def progress(self, run_id: str, progress: RunProgress) -> None:
        """A worker's heartbeat: renews the lease.

        Raises:
            NotFound, LeaseLost: See :mod:`fleet_server.schedules.leases`.
        """
        with self._db.write() as connection:
            lease_ms = round(self._settings.lease_s * 1000)
            leases.renew(connection, run_id, progress, now_ms=self._clock(), lease_ms=lease_ms)

    def finish(self, run_id: str, result: RunResult) -> None:
        """A worker's result; a release is handed on after the commit.

        Raises:
            NotFound, LeaseLost, Conflict: See :mod:`fleet_server.schedules.leases`.
        """
        with self._db.write() as connection:
            leases.end(connection, run_id, result, now_ms=self._clock())
        _log.info("run %s: %s: %s", run_id, result.state.value, "; ".join(result.reasons))
        self._announce()

    # --- reading

    def get(self, run_id: str) -> dict[str, Any]:
        """One run.

        Raises:
            NotFound: There is none.
        """
        with self._db.read() as connection:
            return dict(leases.find(connection, run_id))

    def list(self, model: str | None = None, *, limit: int = 100) -> list[dict[str, Any]]:
        """The newest runs first."""
        query = sa.select(runs).order_by(runs.c.created_at_ms.desc(), runs.c.logical_time_ms.desc()).limit(limit)
        if model is not None:
            query = query.where(runs.c.model == model)
        with self._db.read() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    # --- inside

    def _waiting(self, models: Collection[str]) -> set[str]:
        query = sa.select(runs.c.model).where(runs.c.state == RunState.QUEUED.value).distinct()
        if models:
            query = query.where(runs.c.model.in_(list(models)))
        with self._db.read() as connection:
            return set(connection.execute(query).scalars())

    def _expire(self, now: int) -> None:
        with self._db.write() as connection:
            expired = leases.expire(connection, now_ms=now, max_attempts=self._settings.max_attempts)
        if expired:
            _log.warning("leases ran out: %s", ", ".join(expired))

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

    def _run_file(self, run: dict[str, Any]) -> RunFile:
        return RunFile(
            run=run["id"],
            model=run["model"],
            trigger=run["trigger"],
            reason=run["reason"],
            logical_time=rfc3339(run["logical_time_ms"]),
            lake=self._lake,
            seed=run["seed"],
            fence=run["fence"],
            samples_version=run["samples_version"],
            labels_version=run["labels_version"],
            champion=run["champion"],
            champion_version=run["champion_version"],
        )


def _schedule_of(row: sa.RowMapping) -> Schedule:
    return Schedule(
        name=row["name"],
        model=row["model"],
        kind=row["kind"],
        expression=row["expression"],
        timezone=row["timezone"],
        catch_up=CatchUp(row["catch_up"]),
        enabled=row["enabled"],
    )


def _active(connection: sa.Connection, model: str) -> str | None:
    active = runs.c.state.in_([RunState.QUEUED.value, RunState.RUNNING.value])
    query = sa.select(runs.c.id).where(runs.c.model == model, active).order_by(runs.c.created_at_ms).limit(1)
    return connection.execute(query).scalar()


def _insert(
    connection: sa.Connection,
    model: str,
    trigger: str,
    reason: str,
    now: int,
    *,
    schedule: str | None = None,
    slot_ms: int | None = None,
) -> str | None:
    """A new run's identifier; None where the slot has its run already, or another request came first."""
    run_id = uuid.uuid4().hex
    values = {
        "id": run_id,
        "schedule": schedule,
        "logical_time_ms": now if slot_ms is None else slot_ms,
        "model": model,
        "lane": f"train:{model}",
        "trigger": trigger,
        "reason": reason,
        "seed": int.from_bytes(hashlib.sha256(run_id.encode()).digest()[:4], "big") >> 1,
        "state": RunState.QUEUED.value,
        "created_at_ms": now,
    }
    try:
        with connection.begin_nested():
            connection.execute(sa.insert(runs).values(values))
    except sa.exc.IntegrityError:
        return None  # the unique index has spoken
    return run_id
