"""Brings models to what the server signed for this device, step by step, each written down before it is done.

The steps and what may follow which are in :mod:`edge_agent.update.transitions`; here they are taken, for one model or
for several that swap together (:mod:`edge_agent.update.groups`).
"""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from edge_agent.config import UpdateSettings
from edge_agent.contract.enrolment import Enrolment
from edge_agent.contract.errors import ConfigurationError, DeviceError, NetworkError, ShoalError
from edge_agent.contract.messages import Desired, Event, ReportedModel, UpdateStep
from edge_agent.runtime.beside import swap_together
from edge_agent.runtime.catalogue import Known
from edge_agent.runtime.package import Package
from edge_agent.runtime.slots import LoadedModel, Slots
from edge_agent.update import transitions
from edge_agent.update.candidates import CandidateLoader, Loading
from edge_agent.update.going_back import GoingBack, Serving
from edge_agent.update.journal import Journal, boot_id
from edge_agent.update.judgement import Seen
from edge_agent.update.outcome import MemberFailed, NotYet
from edge_agent.update.package_store import PackageStore
from edge_agent.update.preparing import Device, Preparing
from edge_agent.update.probation import Probations, Stopwatch
from edge_agent.update.seen import Sight
from edge_agent.update.server_files import ServerFiles
from edge_agent.update.shadow_step import ShadowRunner, ShadowStep
from edge_agent.update.slots_file import SlotRecord
from edge_agent.update.updating import Updating
from edge_agent.update.watching import Watching
from edge_agent.update.window import Waits

if TYPE_CHECKING:
    from edge_agent.update.resolver import ResolvedTarget, Resolver

_WATCH_EVERY_S = 0.5


def _utc_now() -> dt.datetime:
    return dt.datetime.now(dt.timezone.utc)


def _nothing(_model: str, _step: UpdateStep) -> None:
    """No hook."""


class Installer:
    """Installs, watches and rolls back. What does not say otherwise is called from one thread.

    Args:
        state: The agent's state folder.
        enrolment: None on a device that serves factory models alone: it asks no server.
        slots: Where models serve.
        events: Told everything worth knowing; must not block.
        load: Makes a package ready to serve.
        serve: Lets models serve from now on; the slots themselves where nobody else has to know.
        settings: How new versions come.
        shadows: Lets candidates shadow what serves; None leaves that step out.
        seen: What a loaded model did since it serves.
        device: What packages are held against before they are downloaded.
        utc_now: Time for metadata expiry and the window; ``monotonic``: for durations.
        zone: Of the window; None for the machine's.
        boot: Which start of the machine this is.
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
        load: Loading,
        *,
        serve: Serving | None = None,
        settings: UpdateSettings = UpdateSettings(),  # noqa: B008 - a frozen value
        shadows: ShadowRunner | None = None,
        seen: Callable[[LoadedModel], Seen] = Sight(),  # noqa: B008 - it holds no state
        device: Device = Device(),  # noqa: B008 - a frozen value
        utc_now: Callable[[], dt.datetime] = _utc_now,
        monotonic: Callable[[], float] = time.monotonic,
        zone: dt.tzinfo | None = None,
        boot: str | None = None,
        after_step: Callable[[str, UpdateStep], None] = _nothing,
    ) -> None:
        self._state, self._enrolment, self._slots = state, enrolment, slots
        self._utc_now, self._monotonic, self._hardware = utc_now, monotonic, device.hardware
        server, secret = (enrolment.server, enrolment.secret) if enrolment else ("", "")
        self._files = ServerFiles(server, secret, while_waiting=self._while_waiting)
        self._store = PackageStore(state / "packages", self._files, settings, monotonic=monotonic)
        self._journal = Journal(
            state, events, utc_now=utc_now, after_step=after_step, boot=boot_id() if boot is None else boot
        )
        self._stopwatch = Stopwatch(self._journal)
        self._probations = Probations(self._journal, slots, self._stopwatch, seen)
        self._shadow = ShadowStep(self._journal, slots, shadows, self._stopwatch)
        self._loader = CandidateLoader(self._store, slots, load)
        self._back = GoingBack(
            self._journal, self._store, slots, load, serve or functools.partial(swap_together, slots),
            on_probation=lambda model: self._probations.begin(model, self._monotonic()),
        )  # fmt: skip
        self._preparing = Preparing(
            self._journal, self._store, slots, device, resolve=self._resolve,
            between_chunks=self._between_chunks, collect=self._back.collect,
        )  # fmt: skip
        self._waits = Waits(settings, utc_now=utc_now, monotonic=monotonic, zone=zone)
        self._watching = Watching(
            self._journal, self._back, probations=self._probations, shadow=self._shadow,
            stopwatch=self._stopwatch, waits=self._waits,
        )  # fmt: skip
        self._updating = Updating(
            self._journal, slots, preparing=self._preparing, loader=self._loader, watching=self._watching,
            shadow=self._shadow, back=self._back, waits=self._waits, monotonic=monotonic,
        )  # fmt: skip
        self._interrupted = threading.Event()
        self._newest: Desired | None = None
        self._resolver: Resolver | None = None
        self._next_watch = 0.0
        self._has_started = False

    @property
    def bytes_down(self) -> int:
        """Bytes of metadata and files that came from the server since the start."""
        return self._files.bytes_down

    @property
    def waits_s(self) -> float | None:
        """Seconds after which :meth:`apply` is worth another call; None where nothing says so."""
        return self._updating.waits_s

    def start(self) -> None:
        """Load each model's active package, or its last known good one. Needs no network and no fresh metadata."""
        self._back.start()
        self._has_started = True
        self._back.collect()

    def want(self, desired: Desired) -> None:
        """This is wished for from now on: a download for an older wish is broken off. Safe from any thread."""
        self._newest = desired

    def apply(self, desired: Desired) -> bool:
        """Bring each model to what is signed for this device.

        Returns:
            Whether nothing is left to do: else call again later (the server was away, a probation goes on, metadata
            was refused and may be put right).
        """
        if self._enrolment is None:
            return all(self._journal.get(model).step is not UpdateStep.PROBATION for model in desired.models)
        return self._updating.attempt(desired)

    def watch(self, now: float | None = None) -> None:
        """Commit or roll back models on probation; let candidates serve, or give them up, that shadow.

        Args:
            now: Monotonic seconds.
        """
        self._watching.watch(self._monotonic() if now is None else now)

    def preinstall(self, folder: Path) -> str:
        """Install a package by hand, in place of the one that is active, which is kept as the last known good one.

        Returns:
            The digest of the package that was active for the model before; empty where none was.
        Raises:
            PackageError, DigestMismatch: The package is wrong, or fails its self-test; what was active stays so.
            ModelUnavailable: It is a pipeline, and a step is not installed.
            ConfigurationError: The fleet decides about this model.
            StorageFull, StorageNotWritable: The disk refuses.
            DeviceError: It cannot be let serve; what was active stays so.
        """
        package = Package.open(folder, verify=True)
        model = package.manifest.name
        record = self._journal.get(model)
        if package.digest != record.active:
            self._refuse_fleets(model, record, "release the package there instead")
        if not self._is_whole(package.digest):
            self._store.add(package)
        try:
            candidates = self._loader.tested({model: package.digest})
        except MemberFailed as error:
            raise error.cause from error
        try:
            self._journal.put({model: transitions.installed(record, package.digest)})
        except BaseException:
            candidates.close()
            raise
        try:
            self._back.let_serve(*candidates.models.values(), again=candidates.again)
        except DeviceError:
            if record == SlotRecord():
                self._journal.remove(model)
            else:
                self._journal.note({model: record})
            raise
        finally:
            candidates.beside.forget()
            self._back.collect()
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
        self._journal.remove(model)
        self._back.collect()

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
                    watched = active and record.step in (UpdateStep.SHADOW, UpdateStep.PROBATION)
                    package = self._store.open(digest, verify=False)
                    found.append(Known(package, installed=True, active=active, watched=watched))
        return found

    def interrupt(self) -> None:
        """Break off a download under way, to be resumed after the next start; safe from any thread."""
        self._interrupted.set()

    def close(self) -> None:
        """An orderly stop; no package is blamed for it."""
        watched_s = self._stopwatch.running(self._monotonic())
        self._shadow.close()
        self._note_stop(watched_s)
        self._store.close()
        self._files.close()

    def excuse(self) -> None:
        """The agent ends in the middle of a step: no package is blamed for that either. Safe from any thread."""
        self._note_stop({})

    def _note_stop(self, watched_s: Mapping[str, float]) -> None:
        if self._has_started:
            models = self._journal.models().items()
            self._journal.note({model: transitions.stopped(record, watched_s.get(model)) for model, record in models})

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

    def _between_chunks(self) -> None:
        """Neither an orderly stop, nor a newer wish, nor another model's probation waits for a download."""
        if self._newest is not None:
            for model, release in self._updating.fetching.items():
                wanted = self._newest.models.get(model)
                if wanted is None or wanted.release > release:
                    raise NotYet(f"release {release} is wanted no more: its download was broken off", seconds=0.0)
        if self._while_waiting():
            self._waits.check_window()

    def _while_waiting(self) -> bool:
        """Neither an orderly stop nor a probation waits for a server that does not answer; whether it was looked."""
        if self._interrupted.is_set():
            raise NetworkError("the agent stops; the download goes on after the next start")
        now = self._monotonic()
        if now < self._next_watch:
            return False
        self._next_watch = now + _WATCH_EVERY_S
        self.watch(now)
        return True

    def _resolve(self, model: str, lowest_release: int) -> ResolvedTarget:
        if self._resolver is None:
            # Only here is python-tuf needed: 22 MB that a device which never updates does not spend.
            from edge_agent.update.resolver import Resolver

            if self._enrolment is None:
                raise DeviceError("this device is not enrolled; enrol it first")
            self._resolver = Resolver(
                self._state / "trust", self._enrolment, self._files, clock=self._utc_now, hardware=self._hardware
            )
        return self._resolver.resolve(model, lowest_release=lowest_release)

    def _reported(self, model: str, record: SlotRecord) -> ReportedModel:
        version, package, requests, bad = "", record.active, 0, 0
        loaded = self._slots.last_served(model)
        if loaded is not None:
            # Not the record's package: a swap writes it down before it serves, and counts must not be given to it yet.
            version, package, requests, bad = loaded.version, loaded.digest, loaded.requests, loaded.failed
        reason = record.reason
        if record.step is UpdateStep.DOWNLOADING and not reason and (progress := self._store.progress) is not None:
            done, wanted = (part / 1e6 for part in (progress.done_bytes, progress.wanted_bytes))
            reason = f"{done:.1f} of {wanted:.1f} MB, of which {progress.received_bytes / 1e6:.1f} MB were received"
        if record.step is UpdateStep.PROBATION and not reason:
            reason = self._probations.so_far.get(model, "")
        return ReportedModel(
            version=version, package=package, step=record.step, target=record.target, reason=reason,
            release=max(record.announced, record.release), rollout=record.rollout, requests=requests, failed=bad,
            runtime=loaded.runtime if loaded is not None else None, waits_until_ms=self._waits.until_ms.get(model),
            retries=record.step is UpdateStep.FAILED and not self._updating.has_given_up(model, record),
        )  # fmt: skip
