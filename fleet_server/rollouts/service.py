"""Carries rollouts out: looks at the devices once a second, signs and announces what follows from the rules."""

from __future__ import annotations

import dataclasses
import logging
import secrets
import threading
from collections.abc import Sequence
from typing import Protocol

import sqlalchemy as sa

from edge_agent.contract.errors import ShoalError
from edge_agent.contract.messages import DesiredModel
from edge_agent.contract.repository import Assignment, target_name
from fleet_server.clock import Clock, now_ms
from fleet_server.database import Database
from fleet_server.devices import twin_store
from fleet_server.devices.records import DeviceRecord
from fleet_server.devices.service import DeviceService
from fleet_server.errors import Conflict
from fleet_server.models.records import PackageRecord, ReleaseState
from fleet_server.models.service import ModelService
from fleet_server.rollouts import state, store
from fleet_server.rollouts.state import Gate, Rollout, State
from fleet_server.rollouts.store import RolloutRecord

DEFAULT_WAVES: tuple[int | float, ...] = (1, 0.5, 1.0)
# Devices told in one step: each is a signature and a transaction, and whoever halts the rollout waits for the step.
_AT_ONCE = 50

_log = logging.getLogger(__name__)


class Director(Protocol):
    """Signs what each device is to install; :class:`fleet_server.updates.director.Director` is one."""

    def assign(self, device: str, target: str, length: int, sha256: str, assignment: Assignment) -> None:
        """Name ``target`` for ``device``; the same assignment again changes nothing.

        Raises:
            Conflict: The release is not above the last one.
        """

    def release_of(self, device: str, model: str) -> int:
        """The last release signed for a device and model; 0 where there was none."""


class RolloutService:
    """Rollouts of all models.

    The director signs first, the twin announces after it is written down: a crash in between signs the same package
    again, under a higher release counter.
    """

    def __init__(
        self,
        db: Database,
        devices: DeviceService,
        models: ModelService,
        director: Director,
        *,
        clock: Clock = now_ms,
    ) -> None:
        self._db, self._devices, self._models, self._director, self._clock = db, devices, models, director, clock
        self._said: dict[str, str] = {}  # by rollout: what the log was told last
        self._lock = threading.RLock()  # a tick and a person's command never work on a rollout at once

    def create(
        self,
        model: str,
        package: str,
        waves: Sequence[int | float] = DEFAULT_WAVES,
        reason: str = "",
        *,
        gate: Gate | None = None,
        revert: bool = False,
        start: bool = True,
        supersede: bool = False,
        automatic: bool = False,
    ) -> str:
        """Begin to bring a package to the fleet; gives the rollout's identifier.

        Args:
            package: Version or digest.
            revert: On a halt, send back the devices that have committed, too.
            start: Else it stays a draft until :meth:`resume`.
            supersede: End an active rollout of the model first; its devices go on to this package in its waves.
            automatic: No person asks for it; it never supersedes a rollout that a person made.
        Raises:
            NotFound: There is no such package.
            MalformedRequest: The waves make no sense.
            Conflict: It is withdrawn, or another rollout of the model is active.
        """
        found = self._models.find(model, package)
        rollout = Rollout(
            id=f"r-{secrets.token_hex(4)}",
            model=model,
            package=found.digest,
            version=found.version,
            waves=state.check_waves(waves),
            gate=gate if gate is not None else Gate(),
            reason=reason,
            revert=revert,
            automatic=automatic,
        )
        if start:
            rollout = state.move(rollout, State.RUNNING)
        with self._lock, self._db.write() as connection:
            found = self._models.package(connection, found.digest)
            if found.state is ReleaseState.WITHDRAWN:
                raise Conflict(f"{model} {found.version} is withdrawn ({found.state_reason}); roll out another version")
            for active in store.unsettled(connection, model):
                self._supersede(connection, active, rollout, allowed=supersede)
            store.insert(connection, rollout, self._clock())
        return rollout.id

    def list(self, model: str | None = None, *, limit: int = 50) -> Sequence[RolloutRecord]:
        """Rollouts, newest first."""
        with self._db.read() as connection:
            return [store.record(connection, one) for one in store.newest(connection, model, limit)]

    def get(self, rollout_id: str) -> RolloutRecord:
        """One rollout.

        Raises:
            NotFound: There is none of that identifier.
        """
        with self._db.read() as connection:
            return store.record(connection, rollout_id)

    def pause(self, rollout_id: str) -> None:
        """Assign no further device; those that are assigned go on.

        Raises:
            NotFound, Conflict: There is none, or it does not run.
        """
        self._move(rollout_id, State.PAUSED)

    def resume(self, rollout_id: str) -> None:
        """Go on with a paused rollout, or begin a draft.

        Raises:
            NotFound, Conflict: There is none, or it is over.
        """
        self._move(rollout_id, State.RUNNING)

    def halt(self, rollout_id: str, reason: str, *, revert: bool | None = None) -> None:
        """End a rollout: no further device gets the package, those that have not committed to it go back.

        Args:
            revert: Send back those that have committed, too; None: as the rollout was created.
        Raises:
            NotFound, Conflict: There is none, or it is over.
        """
        self._move(rollout_id, State.HALTED, reason, revert=revert)

    def withdraw(self, package: PackageRecord, reason: str) -> PackageRecord:
        """Take a package back: halt its rollout, and never give it to a new device."""
        with self._lock:
            with self._db.read() as connection:
                active = [store.load(connection, one) for one in store.unsettled(connection, package.model)]
            for rollout in active:
                if rollout.package == package.digest and State.HALTED in state.ALLOWED[rollout.state]:
                    self.halt(rollout.id, f"withdrawn: {reason}")
            with self._db.write() as connection:
                self._models.set_state(connection, package.digest, ReleaseState.WITHDRAWN, reason)
                return self._models.package(connection, package.digest)

    def tick(self, now: int) -> None:
        """Carry every rollout one step on, and give new devices what the fleet has. Call it about once a second.

        Raises:
            ExceptionGroup: What went wrong with single rollouts and devices; the others were carried on.
        """
        failures: list[Exception] = []
        with self._lock:
            with self._db.read() as connection:
                active = store.unsettled(connection)
            for rollout_id in active:
                try:
                    self._step(rollout_id, now)
                except Exception as error:  # noqa: BLE001  raised below: other models must not wait for this one
                    failures.append(error)
            failures += self._welcome()
        if failures:
            raise ExceptionGroup("rollouts that could not be carried on", failures)

    def _step(self, rollout_id: str, now: int) -> None:
        with self._db.write() as connection:
            before = rollout = store.load(connection, rollout_id)
            if before.state in {State.RUNNING, State.PAUSED}:
                rollout = state.join(before, self._devices.active(connection))
            sights = {one.name: store.sight(one, rollout.model) for one in twin_store.records(connection)}
            rollout = state.observe(rollout, sights, now)
            self._save(connection, before, rollout, now)
        due = [(one, self._assign) for one in state.due(rollout, sights)]
        due += [(member.device, self._send_back) for member in state.to_revert(rollout)]
        stuck = []
        for device, carry_on in due[:_AT_ONCE]:
            try:
                rollout = carry_on(rollout, device, now)
            except (ShoalError, OSError) as error:  # the other devices are told all the same
                stuck.append(f"{device} cannot be told: {error}")
        note = "; ".join(stuck[:3])
        if note and self._said.get(rollout_id) != note:
            _log.error("rollout %s: %s", rollout_id, note)
        self._said[rollout_id] = note
        if note and rollout.state is not State.HALTED:  # whose note says why it was halted
            with self._db.write() as connection:
                store.save(connection, rollout, dataclasses.replace(rollout, note=note), now)

    def _assign(self, rollout: Rollout, device: str, now: int) -> Rollout:
        with self._db.read() as connection:
            package = self._models.package(connection, rollout.package)
            twin = twin_store.records(connection, [device])[0]
            previous = self._way_back(connection, twin, package)
        release = self._sign(device, package, rollout.id)
        after = state.assigned(
            rollout, device, release=release, previous="" if previous == package.digest else previous, now_ms=now
        )
        self._announce(device, package, release, before=rollout, after=after, now=now)
        return after

    def _way_back(self, connection: sa.Connection, twin: DeviceRecord, package: PackageRecord) -> str:
        """What to send a device back to on a halt: what it proved to run, rather than what it was last told."""
        actual, told = twin.reported.get(package.model), twin.desired.get(package.model)
        candidates = [one.package for one in (actual, told) if one is not None and one.package != package.digest]
        return next((digest for digest in candidates if self._models.is_known(connection, digest)), "")

    def _send_back(self, rollout: Rollout, device: str, now: int) -> Rollout:
        with self._db.read() as connection:
            package = self._models.package(connection, rollout.members[device].previous)
        release = self._sign(device, package, rollout.id)
        after = state.reverted(rollout, device)
        self._announce(device, package, release, before=rollout, after=after, now=now)
        return after

    def _announce(
        self, device: str, package: PackageRecord, release: int, *, before: Rollout, after: Rollout, now: int
    ) -> None:
        wanted = DesiredModel(version=package.version, package=package.digest, release=release, rollout=before.id)
        with self._db.write() as connection:  # one transaction: no device is told of what the rollout forgot
            twin_store.set_desired_model(connection, device, package.model, wanted)
            store.save(connection, before, after, now)
        self._devices.publish_desired(device)

    def _sign(self, device: str, package: PackageRecord, rollout: str) -> int:
        with self._db.read() as connection:
            announced = twin_store.release_of(connection, device, package.model)
        release = max(announced, self._director.release_of(device, package.model)) + 1
        target = target_name(package.model, package.version)
        assignment = Assignment(device=device, release=release, rollout=rollout)
        self._director.assign(device, target, package.manifest_bytes, package.digest, assignment)
        return release

    def _welcome(self) -> Sequence[Exception]:
        """Give devices that enrolled during or after a rollout what the whole fleet has; gives what went wrong."""
        failures: list[Exception] = []
        with self._db.read() as connection:
            current = [self._models.current(connection, model) for model in self._models.names(connection)]
            new = [(one, self._devices.without(connection, one.model)) for one in current if one is not None]
        for package, devices in new:
            for device in devices[:_AT_ONCE]:
                try:
                    release = self._sign(device, package, "")
                    wanted = DesiredModel(version=package.version, package=package.digest, release=release)
                    self._devices.desire_model(device, package.model, wanted)
                except (ShoalError, OSError) as error:  # the other devices are welcome all the same
                    failures.append(error)
        return failures

    def _move(self, rollout_id: str, wanted: State, note: str = "", *, revert: bool | None = None) -> None:
        now = self._clock()
        with self._lock, self._db.write() as connection:
            before = store.load(connection, rollout_id)
            after = state.move(before, wanted, note)
            if revert is not None:
                after = dataclasses.replace(after, revert=revert)
            self._save(connection, before, after, now)

    def _save(self, connection: sa.Connection, before: Rollout, after: Rollout, now: int) -> None:
        store.save(connection, before, after, now)
        if before.state is after.state:
            return
        _log.info("rollout %s of %s %s: %s %s", after.id, after.model, after.version, after.state.value, after.note)
        if after.state is State.DONE:
            self._models.set_state(connection, after.package, ReleaseState.ROLLED_OUT, f"rollout {after.id}")
        # A package that was rolled out once stays good: only its way back was stopped.
        was = self._models.package(connection, after.package).state
        if after.state is State.HALTED and was is ReleaseState.PUBLISHED:
            self._models.set_state(connection, after.package, ReleaseState.HALTED, after.note)

    def _supersede(self, connection: sa.Connection, active_id: str, by: Rollout, *, allowed: bool) -> None:
        active = store.load(connection, active_id)
        if not allowed:
            raise Conflict(
                f"rollout {active.id} of {active.model} {active.version} is {active.state.value}: "
                "halt it first, or supersede it"
            )
        if by.automatic and not active.automatic and State.HALTED in state.ALLOWED[active.state]:
            raise Conflict(
                f"rollout {active.id} of {active.model} {active.version}, which a person made, is {active.state.value} "
                f"and goes first. {by.version} is published and waits; to bring it on: "
                f"shoal rollouts create {by.model} {by.version} --supersede"
            )
        if State.HALTED in state.ALLOWED[active.state]:
            ended = state.move(active, State.HALTED, f"superseded by {by.id}")
        else:
            ended = active
        # Its package was not found wrong: devices are not sent back, the new rollout's waves bring them on.
        for member in state.to_revert(ended):
            ended = state.reverted(ended, member.device)
        store.save(connection, active, ended, self._clock())
