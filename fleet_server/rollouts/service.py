"""Carries rollouts out: looks at the devices once a second, signs and announces what follows from the rules."""

from __future__ import annotations

import dataclasses
import logging
import secrets
import threading
from collections.abc import Iterable, Mapping, Sequence

import sqlalchemy as sa

from edge_agent.contract.errors import ShoalError
from fleet_server.clock import Clock, now_ms
from fleet_server.database import Database
from fleet_server.devices import twin_store
from fleet_server.devices.records import DeviceRecord
from fleet_server.devices.service import DeviceService
from fleet_server.errors import Conflict
from fleet_server.models.records import PackageRecord, ReleaseState
from fleet_server.models.service import ModelService
from fleet_server.rollouts import state, store
from fleet_server.rollouts.assigning import Assigner, Director
from fleet_server.rollouts.rollout import ALLOWED, Gate, Rollout, State, check_waves
from fleet_server.rollouts.store import RolloutRecord

DEFAULT_WAVES: tuple[int | float, ...] = (1, 0.5, 1.0)
# Devices told in one step, which is one transaction of the director, one of the database, and a message to each;
# whoever halts the rollout waits for the step.
_AT_ONCE = 50
_LOOK_AT_HARDWARE_MS = 10_000

_log = logging.getLogger(__name__)


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
        self._db, self._devices, self._models, self._clock = db, devices, models, clock
        self._assigner = Assigner(db, director)
        self._hardware_seen_ms: int | None = None
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
            waves=check_waves(waves),
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
                if rollout.package == package.digest and State.HALTED in ALLOWED[rollout.state]:
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
            failures += self._look_at_hardware(now)
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
        due = [(one, False) for one in state.due(rollout, sights)]
        due += [(member.device, True) for member in state.to_revert(rollout)]
        rollout, stuck = self._tell(rollout, dict(due[:_AT_ONCE]), now)
        note = "; ".join(stuck[:3])
        if note and self._said.get(rollout_id) != note:
            _log.error("rollout %s: %s", rollout_id, note)
        self._said[rollout_id] = note
        if note and rollout.state is not State.HALTED:  # whose note says why it was halted
            with self._db.write() as connection:
                store.save(connection, rollout, dataclasses.replace(rollout, note=note), now)

    def _tell(self, rollout: Rollout, due: Mapping[str, bool], now: int) -> tuple[Rollout, Sequence[str]]:
        """Sign for devices, then announce; gives the rollout after it, and which could not be told and why.

        Args:
            due: Whether to send the device back, by its name.
        """
        if not due:
            return rollout, ()
        packages: dict[str, tuple[PackageRecord, str]] = {}
        stuck: dict[str, Exception] = {}
        with self._db.read() as connection:
            twins = {one.name: one for one in twin_store.records(connection, list(due))}
            for device, back in due.items():
                try:
                    digest = rollout.members[device].previous if back else rollout.package
                    package = self._models.package(connection, digest)
                    before = "" if back else self._way_back(connection, twins[device], package)
                    packages[device] = (package, before)
                except ShoalError as error:
                    stuck[device] = error
        releases, failed = self._assigner.sign({one: package for one, (package, _) in packages.items()}, rollout.id)
        stuck |= failed
        after = rollout
        for device, release in releases.items():
            previous = packages[device][1]
            after = (
                state.reverted(after, device)
                if due[device]
                else state.assigned(after, device, release=release, previous=previous, now_ms=now)
            )
        with self._db.write() as connection:  # one transaction: no device is told of what the rollout forgot
            for device, release in releases.items():
                self._assigner.announce(connection, device, packages[device][0], release, rollout.id)
            store.save(connection, rollout, after, now)
        for device in releases:
            self._devices.publish_desired(device)
        return after, [f"{device} cannot be told: {error}" for device, error in stuck.items()]

    def _way_back(self, connection: sa.Connection, twin: DeviceRecord, package: PackageRecord) -> str:
        """What to send a device back to on a halt: what it proved to run, rather than what it was last told."""
        actual, told = twin.reported.get(package.model), twin.desired.get(package.model)
        candidates = [one.package for one in (actual, told) if one is not None and one.package != package.digest]
        return next((digest for digest in candidates if self._models.is_known(connection, digest)), "")

    def _welcome(self) -> Sequence[Exception]:
        """Give devices that enrolled during or after a rollout what the whole fleet has; gives what went wrong."""
        failures: list[Exception] = []
        with self._db.read() as connection:
            current = [self._models.current(connection, model) for model in self._models.names(connection)]
            new = [(one, self._devices.without(connection, one.model)) for one in current if one is not None]
        for package, devices in new:
            releases, failed = self._assigner.sign(dict.fromkeys(devices[:_AT_ONCE], package), "")
            failures += failed.values()  # the other devices are welcome all the same
            if not releases:
                continue
            with self._db.write() as connection:
                for device, release in releases.items():
                    self._assigner.announce(connection, device, package, release, "")
            for device in releases:
                self._devices.publish_desired(device)
        return failures

    def _look_at_hardware(self, now: int) -> Iterable[Exception]:
        """Sign anew what was assigned to a device that is other hardware by now: it refuses it until then."""
        seen_ms = self._hardware_seen_ms
        if seen_ms is not None and now - seen_ms < _LOOK_AT_HARDWARE_MS:
            return ()
        self._hardware_seen_ms = now
        return self._assigner.readdress().values()

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
        if by.automatic and not active.automatic and State.HALTED in ALLOWED[active.state]:
            raise Conflict(
                f"rollout {active.id} of {active.model} {active.version}, which a person made, is {active.state.value} "
                f"and goes first. {by.version} is published and waits; to bring it on: "
                f"shoal rollouts create {by.model} {by.version} --supersede"
            )
        if State.HALTED in ALLOWED[active.state]:
            ended = state.move(active, State.HALTED, f"superseded by {by.id}")
        else:
            ended = active
        # Its package was not found wrong: devices are not sent back, the new rollout's waves bring them on.
        for member in state.to_revert(ended):
            ended = state.reverted(ended, member.device)
        store.save(connection, active, ended, self._clock())
