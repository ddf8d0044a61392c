"""The worker: claims runs from the fleet server, executes each as a process of its own, publishes what is better.

The server asks and records; the keys are here. A run's process is given no token and no key, and what it hands back is
signed only where it is what was asked for. It does run as the same user: where recipes come from strangers, keep keys
encrypted, with the passphrase in this process's environment alone.
"""

from __future__ import annotations

import concurrent.futures
import logging
import math
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec

from edge_agent.contract.batch import JOB_OPTION, decode_job
from edge_agent.contract.errors import NetworkError, ShoalError, StorageFull
from edge_agent.contract.runs import RunFile, RunKind, RunResult, RunState
from edge_agent.runtime.package import Package
from trainer.batch.choice import chosen_digest
from trainer.errors import TokenRefused, TrainerError
from trainer.own_module import own_module
from trainer.recipe import find_recipes
from trainer.server_client import ServerClient
from trainer.work.folders import CHECKPOINTS_FOLDER, Folders
from trainer.work.lease import GivenUp, Lease
from trainer.work.room import Capacity, Room
from trainer.work.run import PACKAGE_FOLDER, RESULT_FILE, next_version
from trainer.work.run_log import RunLog
from trainer.work.run_process import ProgressLine, run_to_end

log = logging.getLogger(__name__)

_REFRESH_S = 3600.0
_APPROVALS_S = 15.0  # while a release waits for somebody's signature
_LOG_FILE = "stderr.log"
# What carries out each kind of run.
MODULES: Mapping[RunKind, str] = {
    RunKind.TRAIN: "trainer.work.run",
    RunKind.BATCH: "trainer.batch",
    RunKind.UPKEEP: "trainer.data.upkeep",
}
# Exit statuses that the same run would end with again: the settings, the recipe or a package is wrong.
_FINAL_STATUSES = (2, 3)


class Publishing(Protocol):
    """What brings a package to the server, signed (:class:`trainer.publish.repository.Publisher`)."""

    def publish(self, package: Package) -> str | None:
        """Sign the package and show it on the server; gives what it waits for where it is not visible yet."""

    def refresh(self) -> bool | None:
        """Sign anew what is about to expire, show what was signed meanwhile; True where one waits for approval."""


class ResultRefused(TrainerError):
    """A run's process handed back something else than it was asked for; nothing of it is signed."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How often the worker does what, in seconds.

    Args:
        poll_s: Between questions for work.
        heartbeat_s: Between heartbeats; well below the server's lease.
        limit_s: After which a run counts as hung and is ended.
    """

    poll_s: float = 2.0
    heartbeat_s: float = 5.0
    limit_s: float = 3_600.0


class Worker:
    """Executes runs, each as a process of its own, as many at once as there is room for.

    Args:
        recipes: Folder of recipes; their names are the models it can train.
        work: Folder of its own: ``runs/RUN`` of the newest runs, ``packages/DIGEST`` of champions. Its name goes with
            the folder: begun anew after a kill, it goes on at once with what it had.
        modules: What carries out runs, by their kinds: Python modules that are started as
            ``-m MODULE RUNFILE --work DIR --recipes DIR --checkpoints DIR [--champion DIR] [--version TEXT]``, say how
            far they are on standard output and leave ``result.json`` in their folder.
    """

    def __init__(
        self,
        client: ServerClient,
        publisher: Publishing,
        *,
        recipes: Path,
        work: Path,
        timing: Timing | None = None,
        capacity: Capacity | None = None,
        modules: Mapping[RunKind, str] = MODULES,
    ) -> None:
        self._client, self._publisher, self._publishing = client, publisher, threading.Lock()
        self._recipes = recipes.resolve()
        self._room = Room(capacity or Capacity())
        self._folders = Folders(work.resolve(), at_once=self._room.capacity.at_once)
        self._timing = timing or Timing()
        self._awaited = False
        self._models, self._modules = [recipe.name for recipe in find_recipes(recipes)], modules

    def work(self, stop: threading.Event) -> None:
        """Take runs until told to stop; a server that is away is asked again. Runs under way are handed back then.

        Raises:
            TokenRefused: The server does not take the token.
        """
        poll_s, refreshed_at = self._timing.poll_s, -math.inf
        under_way: set[concurrent.futures.Future[RunResult | None]] = set()
        with concurrent.futures.ThreadPoolExecutor(self._room.capacity.at_once, "run") as threads:
            while not stop.is_set():
                run = None
                try:
                    if time.monotonic() - refreshed_at >= (_APPROVALS_S if self._awaited else _REFRESH_S):
                        self._refresh()
                        refreshed_at = time.monotonic()
                    run = None if self._room.full else self._claim()
                except NetworkError as error:
                    log.warning("%s; asking again in %g s", error, poll_s)
                if run is not None:
                    under_way.add(threads.submit(self._carry_out, run, stop))
                elif under_way:
                    ended, under_way = concurrent.futures.wait(under_way, poll_s, concurrent.futures.FIRST_COMPLETED)
                    _raise_first(ended, stop)
                else:
                    stop.wait(poll_s)
        _raise_first(under_way, stop)

    def once(self, stop: threading.Event) -> RunResult | None:
        """Take one run, if one waits, and report how it ended.

        Returns:
            The result; None where no run waited, or where it was lost to another worker or given up on ``stop``.
        Raises:
            NetworkError: The server is away or refuses.
        """
        run = self._claim()
        return None if run is None else self._carry_out(run, stop)

    def _claim(self) -> RunFile | None:
        def ask(cpus: float | None, gpus: int | None, holding: list[str]) -> RunFile | None:
            return self._client.claim(
                self._folders.worker, self._models, kinds=tuple(self._modules), cpus=cpus, gpus=gpus, holding=holding
            )

        run = self._room.take(ask)
        if run is not None:
            log.info("run %s of '%s' (%s): %s", run.run, run.model, run.step or run.kind.value, run.reason)
        return run

    def _carry_out(self, run: RunFile, stop: threading.Event) -> RunResult | None:
        timing = self._timing
        written = RunLog(self._folders.run(run.run) / _LOG_FILE)
        lease = Lease(self._client, run, stop, heartbeat_s=timing.heartbeat_s, retry_s=timing.poll_s, written=written)
        try:
            with lease:
                try:
                    result = self._execute(run, lease)
                except TokenRefused:
                    raise
                except (ShoalError, OSError) as error:
                    may_pass = isinstance(error, (NetworkError, StorageFull, OSError))
                    result = _failed(run, f"{type(error).__name__}: {error}", retry=may_pass)
                lease.tell_all()
                lease.persist(lambda: self._client.result(run.run, result))
        except GivenUp as error:
            if lease.cancelled:
                log.info("run %s: %s", run.run, error)
            else:
                log.warning("run %s was given up: %s", run.run, error)
            self._hand_back(run, lease)
            return None
        finally:
            self._room.give_back(run)
        log.info("run %s %s: %s", run.run, result.state.value, "; ".join(result.reasons))
        return result

    def _hand_back(self, run: RunFile, lease: Lease) -> None:
        if lease.lost:
            return
        try:
            self._client.hand_back(run.run, run.fence, f"worker {self._folders.worker} stops")
        except NetworkError as error:  # then its lease runs out
            log.warning("run %s could not be handed back: %s", run.run, error)

    def _execute(self, run: RunFile, lease: Lease) -> RunResult:
        folder = self._folders.prepare(run, held=self._room.holding)
        lease.follow_log()
        command = own_module(self._modules[run.kind], str(folder / "run.json"), "--work", str(folder))
        command += ["--recipes", str(self._recipes), "--checkpoints", str(folder / CHECKPOINTS_FOLDER)]
        version = ""
        if run.kind is RunKind.TRAIN:
            # What an earlier attempt signed and could not show takes a version too.
            lease.persist(self._refresh)
            version = lease.persist(lambda: self._version(run))
            command += ["--version", version]
        if (package := lease.persist(lambda: self._needed(run))) is not None:
            lease.say(ProgressLine("champion", 0.0, f"fetching package {package[:12]}"))
            fetched = lease.persist(lambda: self._folders.package(package, self._client.download))
            command += ["--champion", str(fetched.folder)]
        status, words = run_to_end(
            command,
            folder / _LOG_FILE,
            say=lease.say,
            given_up=lambda: lease.over,
            limit_s=run.timeout_s or self._timing.limit_s,
            environment=self._room.environment(run),
        )
        lease.check()
        if status < 0 and (folder / RESULT_FILE).exists():
            # The result is the last that it writes, and is there whole or not at all.
            log.warning("run %s: its process was ended by signal %d after its result was written", run.run, -status)
        elif status != 0:
            said = f"the run's process ended with status {status}"
            return _failed(run, said, *words, retry=status not in _FINAL_STATUSES)
        result = _read_result(folder / RESULT_FILE)
        if result.state is RunState.RELEASED:
            awaited = self._release(_released(run, version, result, folder / PACKAGE_FOLDER), lease)
            if awaited is not None:
                result = msgspec.structs.replace(result, reasons=(*result.reasons, f"version {version} {awaited}"))
        return result

    def _release(self, package: Package, lease: Lease) -> str | None:
        """Publish a package; gives what it waits for where nobody sees it yet."""
        version = package.manifest.version
        lease.say(ProgressLine("publish", 0.98, f"signing and publishing version {version}"))

        def publish() -> str | None:
            lease.renew()  # a release cannot be taken back: not on the strength of an old heartbeat
            with self._publishing:
                return self._publisher.publish(package)

        awaited = lease.persist(publish)
        self._folders.keep(package, models=len(self._models))
        if awaited is not None:
            self._awaited = True
            log.info("version %s of '%s' %s: shoal models approvals", version, package.manifest.name, awaited)
        return awaited

    def _refresh(self) -> None:
        with self._publishing:
            self._awaited = bool(self._publisher.refresh())

    def _version(self, run: RunFile) -> str:
        """The first free version after the champion's: an earlier attempt may have published one already."""
        taken = self._client.versions(run.model)
        version = next_version(run.champion_version)
        while version in taken:
            version = next_version(version)
        return version

    def _needed(self, run: RunFile) -> str | None:
        """Digest of the package that a run's process is given: the one to beat, or the one that answers a batch."""
        if run.kind is RunKind.BATCH:
            choice = decode_job(run.options.get(JOB_OPTION)).model
            return None if choice.package is not None else chosen_digest(choice, self._client)
        return run.champion


def _raise_first(ended: Iterable[concurrent.futures.Future[RunResult | None]], stop: threading.Event) -> None:
    for one in ended:
        if (error := one.exception()) is not None:
            stop.set()  # the others give up too
            raise error


def _read_result(path: Path) -> RunResult:
    try:
        return msgspec.json.decode(path.read_bytes(), type=RunResult)
    except msgspec.DecodeError as error:
        raise ResultRefused(f"{path}: is no result: {error}") from error


def _released(run: RunFile, version: str, result: RunResult, folder: Path) -> Package:
    """The package that a run's process offers for release, if it is the one that was asked for.

    Raises:
        ResultRefused: It is another model's, of another version, or not what the result says.
        PackageError, DigestMismatch: It is damaged.
    """
    package = Package.open(folder, verify=True)
    found = (package.manifest.name, package.manifest.version, package.digest, result.version)
    if found != (run.model, version, result.package, version):
        raise ResultRefused(
            f"{folder}: holds '{package.manifest.name}' version {package.manifest.version} "
            f"({package.digest[:12]}); asked for was '{run.model}' version {version}, and the result names "
            f"version {result.version} ({(result.package or 'no package')[:12]})"
        )
    return package


def _failed(run: RunFile, *reasons: str, retry: bool = False) -> RunResult:
    return RunResult(fence=run.fence, state=RunState.FAILED, reasons=reasons, retry=retry)
