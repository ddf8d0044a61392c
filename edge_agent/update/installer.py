"""Brings models to what the server signed for this device, step by step, each written down before it is done.

::

    RESOLVED -> DOWNLOADING -> VERIFIED -> STAGED -> SELF_TESTED -> PROBATION -> COMMITTED
        any step but the last two --> FAILED: the old model never stopped serving
        PROBATION -> FAILED: rolled back to the last known good one

A kill leaves ``slots.json`` at one of these steps. Up to SELF_TESTED the old package is active and the update begins
again, using what is on disk; from PROBATION on the new one is.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import psutil

from edge_agent.contract.enrolment import Enrolment
from edge_agent.contract.errors import (
    BudgetExceeded,
    ConfigurationError,
    DeviceError,
    DigestMismatch,
    ManifestError,
    MetadataRefused,
    ModelUnavailable,
    NetworkError,
    PackageError,
    ShoalError,
    storage_error,
)
from edge_agent.contract.messages import Desired, DesiredModel, Event, EventKind, ReportedModel, UpdateStep
from edge_agent.runtime.catalogue import Known
from edge_agent.runtime.package import Package
from edge_agent.runtime.selftest import prove
from edge_agent.runtime.slots import LoadedModel, ModelState, Slots
from edge_agent.update import slots_file
from edge_agent.update.package_store import PackageStore
from edge_agent.update.server_files import ServerFiles
from edge_agent.update.slots_file import MAX_CRASHES, SLOTS_FILE, SlotRecord, SlotsFile

if TYPE_CHECKING:
    from edge_agent.update.resolver import ResolvedTarget, Resolver

_log = logging.getLogger(__name__)
_WATCH_EVERY_S = 0.5
_SAID_ONCE = frozenset({EventKind.METADATA_REFUSED, EventKind.UPDATE_FAILED, EventKind.STORAGE})


def _utc_now() -> dt.datetime:
    return dt.datetime.now(dt.timezone.utc)


def _nothing(_model: str, _step: UpdateStep) -> None:
    """No hook."""


class _Earlier(NamedTuple):
    """What can be gone back to, or why nothing can."""

    loaded: LoadedModel | None
    why_not: str


class Installer:
    """Installs, watches and rolls back. What does not say otherwise is called from one thread.

    Args:
        state: The agent's state folder.
        enrolment: None on a device that serves factory models alone: it asks no server.
        slots: Where models serve.
        events: Told everything worth knowing; must not block.
        load: Makes a package ready to serve.
        serve: Lets a model serve from now on; the slots themselves where nobody else has to know.
        utc_now: Time for metadata expiry; ``monotonic``: for probations.
        after_step: Called when a step has been written down and before it begins; tests kill the process there.
    Raises:
        StorageNotWritable: The state folder cannot be read or written.
    """

    def __init__(
        self,
        state: Path,
        enrolment: Enrolment | None,
        slots: Slots,
        events: Callable[[Event], None],
        load: Callable[[Package], LoadedModel],
        *,
        serve: Callable[[LoadedModel], object] | None = None,
        utc_now: Callable[[], dt.datetime] = _utc_now,
        monotonic: Callable[[], float] = time.monotonic,
        after_step: Callable[[str, UpdateStep], None] = _nothing,
    ) -> None:
        self._state, self._enrolment, self._slots = state, enrolment, slots
        self._events, self._load, self._after_step = events, load, after_step
        self._serve = serve or slots.install  # the slot closes the old one when its last request has ended
        self._utc_now, self._monotonic = utc_now, monotonic
        self._told: dict[str, tuple[EventKind, str]] = {}
        self._files = ServerFiles(enrolment.server, enrolment.secret) if enrolment else ServerFiles("", "")
        self._store = PackageStore(state / "packages", self._files)
        self._journal_is_new = False
        self._journal = self._read_journal(state / SLOTS_FILE)
        self._interrupted = threading.Event()
        self._resolver: Resolver | None = None
        self._watched_since: dict[str, float] = {}
        self._next_watch = 0.0
        self._has_started = False

    @property
    def bytes_down(self) -> int:
        """Bytes of metadata and files that came from the server since the start."""
        return self._files.bytes_down

    def start(self) -> None:
        """Load each model's active package, or its last known good one. Needs no network and no fresh metadata."""
        for model in sorted(self._journal.models(), key=self._is_pipeline):  # whose steps must be there before it
            self._start(model)
        self._has_started = True
        self._collect()

    def apply(self, desired: Desired) -> bool:
        """Bring each model to what is signed for this device.

        Returns:
            Whether nothing is left to do: else call again later (the server was away, a probation goes on, metadata
            was refused and may be put right).
        """
        settled = True
        for model, wanted in desired.models.items():
            settled = self._apply(model, wanted) and settled
        return settled

    def watch(self, now: float | None = None) -> None:
        """Commit or roll back models on probation.

        Args:
            now: Monotonic seconds.
        """
        now = self._monotonic() if now is None else now
        for model, record in self._journal.models().items():
            if record.step is UpdateStep.PROBATION:
                self._watch(model, record, now)

    def preinstall(self, folder: Path) -> str:
        """Install a package by hand, in place of the one that is active, which is kept as the last known good one.

        Returns:
            The digest of the package that was active for the model before; empty where none was.
        Raises:
            PackageError, DigestMismatch: The package is wrong, or fails its self-test; what was active stays so.
            ModelUnavailable: It is a pipeline, and a step is not installed.
            ConfigurationError: The fleet decides about this model.
            StorageFull, StorageNotWritable: The disk refuses.
        """
        package = Package.open(folder, verify=True)
        model = package.manifest.name
        record = self._journal.get(model)
        if package.digest != record.active:
            self._refuse_fleets(model, record, "release the package there instead")
        if not self._is_whole(package.digest):
            self._store.add(package)
        loaded = self._tested(package.digest)
        try:
            self._put(model, slots_file.installed(record, package.digest))
        except BaseException:
            loaded.close()
            raise
        self._serve(loaded)
        self._collect()
        return record.active

    def remove(self, model: str) -> None:
        """Forget a model that was installed by hand, and remove its packages from the disk.

        Raises:
            ConfigurationError: No such model is installed, or the fleet decides about it.
            StorageFull, StorageNotWritable: The disk refuses.
        """
        models = self._journal.models()
        if model not in models:
            names = ", ".join(sorted(models)) or "none"
            raise ConfigurationError(f"no model '{model}' is installed here; installed are: {names}")
        self._refuse_fleets(model, models[model], "take it from this device there")
        with self._writing():
            self._journal.remove(model)
        self._collect()

    def reported(self) -> dict[str, ReportedModel]:
        """What each model is, for the twin; safe from any thread."""
        return {model: self._reported(model, record) for model, record in self._journal.models().items()}

    def installed(self) -> list[Known]:
        """The packages that are on the disk: of each model the active one and the last known good one; any thread."""
        found: list[Known] = []
        for record in self._journal.models().values():
            for digest in {record.active, record.last_known_good} - {""}:
                with contextlib.suppress(ShoalError):  # spoilt by the disk: the start has said so
                    active = digest == record.active
                    watched = active and record.step is UpdateStep.PROBATION
                    package = self._store.open(digest, verify=False)
                    found.append(Known(package, installed=True, active=active, watched=watched))
        return found

    def interrupt(self) -> None:
        """Break off a download under way, to be resumed after the next start; safe from any thread."""
        self._interrupted.set()

    def close(self) -> None:
        """An orderly stop; no package is blamed for it."""
        if self._has_started:
            for model, record in self._journal.models().items():
                self._note(model, slots_file.stopped(record))
        self._files.close()

    def _read_journal(self, path: Path) -> SlotsFile:
        try:
            return SlotsFile(path)
        except OSError as error:
            raise storage_error(error, str(path)) or DeviceError(f"{path}: {error.strerror}") from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            self._journal_is_new = True
            aside = path.with_suffix(".damaged")
            path.replace(aside)
            self._tell(EventKind.STORAGE, "", "", f"{path}: {error}; set aside as {aside.name}, models come anew")
            return SlotsFile(path)

    def _start(self, model: str) -> None:
        record = slots_file.started(self._journal.get(model))
        self._note(model, record)
        if record.crashes >= MAX_CRASHES:
            reason = f"the agent died {record.crashes} times while it was tested or watched"
            if record.step is UpdateStep.PROBATION:
                self._roll_back(model, record, reason, self._earlier(record), refuse=True)
                return
            record = self._fail(model, record, EventKind.UPDATE_FAILED, reason, refuse=True)
        if not record.active:
            return
        try:
            package = self._store.open(record.active, verify=True)
            try:
                self._serve(self._load(package))
            except (BudgetExceeded, ModelUnavailable) as error:
                if record.step is UpdateStep.PROBATION:
                    raise
                # No package is to blame: a setting has changed, or a pipeline's steps are not there yet.
                _log.warning("%s: package %s is not loaded: %s", model, record.active[:12], error)
                version, unavailable = package.manifest.version, ModelState.UNAVAILABLE
                self._slots.mark(model, version, record.active, unavailable, str(error), installed=True)
                return
        except Exception as error:  # noqa: BLE001 - see below
            # Most likely the disk: the same package may be fetched again, and is refused then if it is to blame. And
            # whatever else it is, an agent that serves an older model is better than one that does not start.
            _log.warning("%s: package %s could not start", model, record.active[:12], exc_info=error)
            self._roll_back(model, record, f"could not start: {error}", self._earlier(record), refuse=False)
        else:
            self._watched_since[model] = self._monotonic()

    def _collect(self) -> None:
        if not self._journal_is_new:  # else the packages on disk spare a download when the server names them again
            self._store.collect(self._journal.packages())

    def _refuse_fleets(self, model: str, record: SlotRecord, instead: str) -> None:
        """Refuse to change by hand what the fleet would change back."""
        if self._enrolment is not None and (record.release or record.announced):
            raise ConfigurationError(
                f"model '{model}' on this device is the business of fleet '{self._enrolment.fleet}' "
                f"({self._enrolment.server}): {instead}"
            )

    def _is_whole(self, digest: str) -> bool:
        try:
            self._store.open(digest, verify=True)
        except ShoalError:
            return False
        return True

    def _is_pipeline(self, model: str) -> bool:
        try:
            return bool(self._store.open(self._journal.get(model).active, verify=False).manifest.pipeline)
        except ShoalError:
            return False  # its start says what is wrong with it

    def _apply(self, model: str, wanted: DesiredModel) -> bool:
        record = self._journal.get(model)
        if record.step is UpdateStep.PROBATION:
            return False  # one thing at a time: first see what becomes of the one on probation
        if slots_file.is_settled(record, wanted.package, wanted.release):
            return True
        if self._enrolment is None:
            return True
        try:
            return self._update(model, wanted)
        except MetadataRefused as error:
            self._fail(model, self._announced(model, wanted), EventKind.METADATA_REFUSED, str(error), refuse=False)
            return False
        except (PackageError, DigestMismatch) as error:
            self._fail(model, self._journal.get(model), EventKind.UPDATE_FAILED, str(error), refuse=True)
            self._store.collect(self._journal.packages())
            return True
        except NetworkError as error:
            self._wait(model, wanted, str(error))
            return False
        except (DeviceError, OSError) as error:
            self._fail(model, self._announced(model, wanted), EventKind.UPDATE_FAILED, str(error), refuse=False)
            return False

    def _update(self, model: str, wanted: DesiredModel) -> bool:
        """All steps up to the swap; gives whether the matter is closed."""
        record = self._announced(model, wanted)
        target = self._resolve().resolve(model, lowest_release=record.release)
        if record.refused.get(target.digest, -1) >= target.release:
            self._put(model, msgspec.structs.replace(record, step=UpdateStep.FAILED))
            return True
        if target.release < wanted.release:
            raise NetworkError(
                f"{model}: release {wanted.release} was announced, the director has signed {target.release} so far"
            )
        record = slots_file.begun(record, target.digest, release=target.release, rollout=target.rollout)
        if target.digest == record.active:
            self._put(model, slots_file.committed(record))
            return True
        self._step(model, record)
        self._download(model, record, target)
        self._step(model, slots_file.at(record, UpdateStep.VERIFIED))
        self._store.stage(target.digest)
        self._step(model, slots_file.at(record, UpdateStep.STAGED))
        loaded = self._tested(target.digest)
        try:
            self._step(model, slots_file.at(record, UpdateStep.SELF_TESTED))
            self._watched_since[model] = self._monotonic()
            self._step(model, slots_file.swapped(record))
        except BaseException:  # a full disk: else each try would hold the memory of one more
            loaded.close()
            raise
        self._serve(loaded)
        return False

    def _download(self, model: str, record: SlotRecord, target: ResolvedTarget) -> None:
        self._step(model, slots_file.at(record, UpdateStep.DOWNLOADING))
        manifest = self._store.fetch_manifest(target.digest, target.length, between_chunks=self._between_chunks)
        if (manifest.name, manifest.version) != (model, target.version):
            raise ManifestError(
                f"the signed target is {model} {target.version}, its manifest says {manifest.name} {manifest.version}"
            )
        memory_bytes = psutil.virtual_memory().total
        if manifest.resources.memory_bytes > memory_bytes:
            raise PackageError(
                f"needs {manifest.resources.memory_bytes} bytes of memory, the machine has {memory_bytes}"
            )
        self._store.fetch_files(target.digest, manifest, between_chunks=self._between_chunks)

    def _tested(self, digest: str) -> LoadedModel:
        """The package, freshly loaded and found to answer its golden samples."""
        loaded = self._load(self._store.open(digest, verify=False))
        try:
            prove(loaded)
        except BaseException:
            loaded.close()
            raise
        return loaded

    def _between_chunks(self) -> None:
        """Neither an orderly stop nor another model's probation waits for a download."""
        if self._interrupted.is_set():
            raise NetworkError("the agent stops; the download goes on after the next start")
        now = self._monotonic()
        if now >= self._next_watch:
            self._next_watch = now + _WATCH_EVERY_S
            self.watch(now)

    def _watch(self, model: str, record: SlotRecord, now: float) -> None:
        loaded = self._slots.last_served(model)  # its counts hold, whether somebody has unloaded it meanwhile or not
        if loaded is None:
            return
        rule = loaded.package.manifest.probation
        requests, bad = loaded.requests, loaded.failed
        seen = max(requests, bad)
        if seen and bad / seen > rule.max_error_rate:
            reason = f"{bad} of {seen} requests failed on probation, {rule.max_error_rate:.1%} are allowed"
            if (earlier := self._earlier(record)).loaded is None:  # answers that sometimes fail beat none
                reason = f"{reason}; {earlier.why_not}"
                self._fail(model, record, EventKind.UPDATE_FAILED, reason, refuse=True)
            else:
                self._roll_back(model, record, reason, earlier, refuse=True)
        elif now - self._watched_since.setdefault(model, now) >= rule.seconds:
            try:
                self._put(model, slots_file.committed(record))
            except DeviceError as error:  # the next look tries again; until then both packages stay
                self._tell(EventKind.STORAGE, model, record.active, str(error))
                return
            self._tell(EventKind.UPDATE_COMMITTED, model, record.active, "", release=record.release)
            self._after_step(model, UpdateStep.COMMITTED)
            self._store.collect(self._journal.packages())

    def _earlier(self, record: SlotRecord) -> _Earlier:
        """The last known good package, freshly loaded, where there is one beside the one that is to go."""
        digest = record.last_known_good
        if digest in ("", record.active):
            return _Earlier(None, "there is no earlier package to go back to")
        try:
            return _Earlier(self._load(self._store.open(digest, verify=True)), "")
        except Exception as error:  # noqa: BLE001 - whatever it is, the agent must go on
            return _Earlier(None, f"nor can the earlier package serve: {error}")

    def _roll_back(self, model: str, record: SlotRecord, reason: str, earlier: _Earlier, *, refuse: bool) -> None:
        """Serve the earlier package again, or nothing where there is none."""
        bad = record.active
        back = slots_file.rolled_back(record, reason, refuse=refuse)
        loaded = earlier.loaded
        if loaded is None:
            back = msgspec.structs.replace(back, active="", reason=f"{reason}; {earlier.why_not}")
        self._note(model, back)
        if loaded is not None:
            self._serve(loaded)
        self._tell(EventKind.ROLLED_BACK, model, bad, back.reason, to=back.active, release=back.release)
        self._store.collect(self._journal.packages())

    def _resolve(self) -> Resolver:
        if self._resolver is None:
            # Only here is python-tuf needed: 22 MB that a device which never updates does not spend.
            from edge_agent.update.resolver import Resolver

            if self._enrolment is None:
                raise DeviceError("this device is not enrolled; enrol it first")
            self._resolver = Resolver(self._state / "trust", self._enrolment, self._files, clock=self._utc_now)
        return self._resolver

    def _announced(self, model: str, wanted: DesiredModel) -> SlotRecord:
        record = self._journal.get(model)
        return msgspec.structs.replace(record, announced=wanted.release)

    def _step(self, model: str, record: SlotRecord) -> None:
        self._put(model, record)
        self._tell(
            EventKind.UPDATE_STEP, model, record.target, record.reason, step=record.step.value, release=record.release
        )
        self._after_step(model, record.step)

    def _put(self, model: str, record: SlotRecord) -> None:
        with self._writing():
            self._journal.put(model, record)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            path = str(self._state / SLOTS_FILE)
            raise storage_error(error, path) or DeviceError(f"{path}: {error.strerror}") from error

    def _note(self, model: str, record: SlotRecord) -> None:
        """Write down what has happened already; a disk that refuses keeps no model from serving."""
        if record == self._journal.get(model):
            return
        try:
            self._put(model, record)
        except DeviceError as error:
            self._journal.keep_in_memory(model, record)
            self._tell(EventKind.STORAGE, model, "", str(error))

    def _wait(self, model: str, wanted: DesiredModel, reason: str) -> None:
        record = msgspec.structs.replace(self._announced(model, wanted), reason=reason)
        self._journal.keep_in_memory(model, record)  # nothing was decided: not worth a write to flash
        _log.info("%s: update waits: %s", model, reason)

    def _fail(self, model: str, record: SlotRecord, kind: EventKind, reason: str, *, refuse: bool) -> SlotRecord:
        after = slots_file.failed(record, reason, refuse=refuse)
        self._note(model, after)
        self._tell(kind, model, after.target, reason, release=after.announced)
        return after

    def _tell(self, kind: EventKind, model: str, package: str, reason: str, **detail: str | int) -> None:
        if kind in _SAID_ONCE:
            if self._told.get(model) == (kind, reason):
                return  # a retry that found the same: said once
            self._told[model] = (kind, reason)
        at_ms = int(self._utc_now().timestamp() * 1000)
        self._events(Event(kind=kind, at_ms=at_ms, model=model, package=package, reason=reason, detail=dict(detail)))

    def _reported(self, model: str, record: SlotRecord) -> ReportedModel:
        version, package, requests, bad = "", record.active, 0, 0
        loaded = self._slots.last_served(model)
        if loaded is not None:
            # Not the record's package: a swap writes it down before it serves, and counts must not be given to it yet.
            version, package, requests, bad = loaded.version, loaded.digest, loaded.requests, loaded.failed
        return ReportedModel(
            version=version, package=package, step=record.step, target=record.target, reason=record.reason,
            release=max(record.announced, record.release), rollout=record.rollout, requests=requests, failed=bad,
            runtime=loaded.runtime if loaded is not None else None,
        )  # fmt: skip
