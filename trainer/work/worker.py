"""The worker: claims runs from the fleet server, executes each as a process of its own, publishes what is better.

The server asks and records; the keys are here. A run's process is given no token and no key, and what it hands back is
signed only where it is what was asked for. It does run as the same user: where recipes come from strangers, keep keys
encrypted, with the passphrase in this process's environment alone.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec

from edge_agent.contract.errors import DigestMismatch, NetworkError, PackageError, ShoalError
from edge_agent.contract.runs import RunFile, RunResult, RunState
from edge_agent.runtime.package import Package
from trainer.errors import TokenRefused, TrainerError
from trainer.recipe import find_recipes
from trainer.server_client import ServerClient
from trainer.work.lease import GivenUp, Lease
from trainer.work.run import PACKAGE_FOLDER, RESULT_FILE, next_version
from trainer.work.run_process import ProgressLine, run_to_end

log = logging.getLogger(__name__)

_REFRESH_S = 3600.0
_RUNS_KEPT = 20
_PACKAGES_KEPT = 5


class Publishing(Protocol):
    """What brings a package to the server, signed (:class:`trainer.publish.repository.Publisher`)."""

    def publish(self, package: Package) -> None:
        """Sign the package and show it on the server; what is there already is not sent again."""

    def refresh(self) -> None:
        """Sign anew what is about to expire, and show what was signed while the server was away."""


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
    """Executes one run at a time.

    Args:
        recipes: Folder of recipes; their names are the models it can train.
        work: Folder of its own: ``runs/RUN`` of the newest runs, ``packages/DIGEST`` of champions.
    """

    def __init__(
        self, client: ServerClient, publisher: Publishing, *, recipes: Path, work: Path, timing: Timing | None = None
    ) -> None:
        self._client, self._publisher = client, publisher
        self._recipes = recipes.resolve()
        self._runs, self._packages = work.resolve() / "runs", work.resolve() / "packages"
        self._timing = timing or Timing()
        self._models = [recipe.name for recipe in find_recipes(recipes)]
        self._name = f"{socket.gethostname()}:{os.getpid()}"
        for half in self._packages.glob(".*"):  # downloads that a kill has cut short
            shutil.rmtree(half)

    def work(self, stop: threading.Event) -> None:
        """Take runs one after another until told to stop; a server that is away is asked again.

        Raises:
            TokenRefused: The server does not take the token.
        """
        since_refresh_s = _REFRESH_S
        while not stop.is_set():
            busy = False
            try:
                if since_refresh_s >= _REFRESH_S:
                    self._publisher.refresh()
                    since_refresh_s = 0.0
                busy = self.once(stop) is not None
            except NetworkError as error:
                log.warning("%s; asking again in %g s", error, self._timing.poll_s)
            if not busy:
                stop.wait(self._timing.poll_s)
                since_refresh_s += self._timing.poll_s

    def once(self, stop: threading.Event) -> RunResult | None:
        """Take one run, if one waits, and report how it ended.

        Returns:
            The result; None where no run waited, or where it was lost to another worker or given up on ``stop``.
        Raises:
            NetworkError: The server is away or refuses.
        """
        run = self._client.claim(self._name, self._models)
        if run is None:
            return None
        log.info("run %s of '%s': %s", run.run, run.model, run.reason)
        timing = self._timing
        try:
            with Lease(self._client, run, stop, heartbeat_s=timing.heartbeat_s, retry_s=timing.poll_s) as lease:
                try:
                    result = self._execute(run, lease)
                except TokenRefused:
                    raise
                except (ShoalError, OSError) as error:
                    result = _failed(run, f"{type(error).__name__}: {error}")
                lease.persist(lambda: self._client.result(run.run, result))
        except GivenUp as error:
            log.warning("run %s was given up: %s", run.run, error)
            return None
        log.info("run %s %s: %s", run.run, result.state.value, "; ".join(result.reasons))
        return result

    def _execute(self, run: RunFile, lease: Lease) -> RunResult:
        folder = self._new_folder(run)
        # What an earlier attempt signed and could not show takes a version too.
        lease.persist(self._publisher.refresh)
        version = lease.persist(lambda: self._version(run))
        command = [sys.executable, "-m", "trainer.work.run", str(folder / "run.json"), "--recipes", str(self._recipes)]
        command += ["--work", str(folder), "--version", version]
        if run.champion is not None:
            champion = run.champion
            lease.say(ProgressLine("champion", 0.0, f"fetching package {champion[:12]}"))
            command += ["--champion", str(lease.persist(lambda: self._champion(champion)).folder)]
        status, words = run_to_end(
            command,
            folder / "stderr.log",
            say=lease.say,
            given_up=lambda: lease.over,
            limit_s=self._timing.limit_s,
        )
        lease.check()
        if status != 0:
            return _failed(run, f"the run's process ended with status {status}", *words)
        result = _read_result(folder / RESULT_FILE)
        if result.state is RunState.RELEASED:
            self._release(_released(run, version, result, folder / PACKAGE_FOLDER), lease)
        return result

    def _release(self, package: Package, lease: Lease) -> None:
        version = package.manifest.version
        lease.say(ProgressLine("publish", 0.98, f"signing and publishing version {version}"))

        def publish() -> None:
            lease.renew()  # a release cannot be taken back: not on the strength of an old heartbeat
            self._publisher.publish(package)

        lease.persist(publish)
        self._keep(package)

    def _new_folder(self, run: RunFile) -> Path:
        """An empty folder with the run's file; the oldest of earlier runs go."""
        folder = self._runs / run.run
        shutil.rmtree(folder, ignore_errors=True)  # of an earlier attempt
        folder.mkdir(parents=True)
        (folder / "run.json").write_bytes(msgspec.json.encode(run))
        for old in sorted(self._runs.iterdir(), key=lambda path: path.stat().st_mtime)[:-_RUNS_KEPT]:
            shutil.rmtree(old, ignore_errors=True)
        return folder

    def _version(self, run: RunFile) -> str:
        """The first free version after the champion's: an earlier attempt may have published one already."""
        taken = self._client.versions(run.model)
        version = next_version(run.champion_version)
        while version in taken:
            version = next_version(version)
        return version

    def _champion(self, digest: str) -> Package:
        folder = self._packages / digest
        if folder.exists():
            try:
                found = Package.open(folder, verify=True)
                os.utime(folder)
                return found
            except (PackageError, DigestMismatch, OSError) as error:
                log.warning("%s: %s; fetching it again", folder, error)
                shutil.rmtree(folder)
        return self._client.download(digest, folder)

    def _keep(self, package: Package) -> None:
        """Keep what was released: it is the next run's champion."""
        folder = self._packages / package.digest
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            if not folder.exists():
                package.folder.rename(folder)  # whole or not at all
            os.utime(folder)
        except OSError as error:
            # It is released all the same, and can be fetched.
            log.warning("%s: cannot be kept: %s", folder, error)
        else:
            self._prune()

    def _prune(self) -> None:
        """The packages that were used longest ago go; one that is asked for again is fetched again."""
        kept = max(_PACKAGES_KEPT, 2 * len(self._models))
        for old in sorted(self._packages.iterdir(), key=lambda path: path.stat().st_mtime)[:-kept]:
            shutil.rmtree(old, ignore_errors=True)


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


def _failed(run: RunFile, *reasons: str) -> RunResult:
    return RunResult(fence=run.fence, state=RunState.FAILED, reasons=reasons)
