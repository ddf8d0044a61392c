"""The worker: claims runs from the fleet server, executes each as a process of its own, publishes what is better.

The server asks and records; the keys are here. A run's process gets no token and no key: a recipe's code cannot sign.
"""

from __future__ import annotations

import collections
import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol, Self

import msgspec

from edge_agent.contract.errors import NetworkError, ServerRefused, ShoalError
from edge_agent.contract.runs import RunFile, RunProgress, RunResult, RunState
from edge_agent.runtime.package import Package
from trainer.recipe import find_recipes
from trainer.run import PACKAGE_FOLDER, RESULT_FILE, next_version
from trainer.server_client import LeaseLost, ServerClient

log = logging.getLogger(__name__)

_ERROR_LINES = 12
_STOP_WAIT_S = 10.0
_REFRESH_S = 3600.0


class Publishing(Protocol):
    """What brings a package to the server, signed (:class:`trainer.publish.repository.Publisher`)."""

    def publish(self, package: Package) -> None:
        """Sign the package and show it on the server; what is there already is not sent again."""

    def refresh(self) -> None:
        """Sign anew what is about to expire."""


class ProgressLine(msgspec.Struct):
    """A line that a run's process writes."""

    stage: str
    fraction: float
    message: str = ""


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
        work: Folder of its own: ``runs/RUN`` of each run, ``packages/DIGEST`` of champions.
    """

    def __init__(
        self, client: ServerClient, publisher: Publishing, *, recipes: Path, work: Path, timing: Timing | None = None
    ) -> None:
        self._client, self._publisher = client, publisher
        self._recipes, self._work = recipes.resolve(), work.resolve()
        self._timing = timing or Timing()
        self._models = [recipe.name for recipe in find_recipes(recipes)]
        self._name = f"{socket.gethostname()}:{os.getpid()}"

    def work(self, stop: threading.Event) -> None:
        """Take runs one after another until told to stop; a server that is away is asked again."""
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
        with _Heartbeat(self._client, run, self._timing.heartbeat_s) as heartbeat:
            try:
                result = self._execute(run, heartbeat, stop)
            except (ShoalError, OSError) as error:
                result = _failed(run, f"{type(error).__name__}: {error}")
            if result is not None and self._deliver(run, result, heartbeat, stop):
                log.info("run %s %s: %s", run.run, result.state.value, "; ".join(result.reasons))
                return result
        log.warning("run %s was given up: %s", run.run, heartbeat.lost or "the worker is stopping")
        return None

    def _deliver(self, run: RunFile, result: RunResult, heartbeat: _Heartbeat, stop: threading.Event) -> bool:
        """Report the result until the server has taken it: it stands for minutes of work, and maybe for a release."""
        while not heartbeat.lost:
            try:
                self._client.result(run.run, result)
                return True
            except LeaseLost as error:
                heartbeat.lost = str(error)
            except ServerRefused as error:
                if error.status < 500:
                    raise
                log.warning("%s; reporting again in %g s", error, self._timing.poll_s)
            except NetworkError as error:
                log.warning("%s; reporting again in %g s", error, self._timing.poll_s)
            if stop.wait(self._timing.poll_s):
                return False
        return False

    def _execute(self, run: RunFile, heartbeat: _Heartbeat, stop: threading.Event) -> RunResult | None:
        folder = self._work / "runs" / run.run
        shutil.rmtree(folder, ignore_errors=True)  # of an earlier attempt
        folder.mkdir(parents=True)
        (folder / "run.json").write_bytes(msgspec.json.encode(run))
        command = [sys.executable, "-m", "trainer.run", str(folder / "run.json"), "--recipes", str(self._recipes)]
        command += ["--work", str(folder), "--version", self._version(run)]
        if run.champion is not None:
            heartbeat.say(ProgressLine("champion", 0.0, f"fetching package {run.champion[:12]}"))
            command += ["--champion", str(self._champion(run.champion).folder)]
        status, errors = self._process(command, folder, heartbeat, stop)
        if heartbeat.lost or stop.is_set():
            return None
        if status != 0:
            return _failed(run, f"the run's process ended with status {status}", *errors)
        result = msgspec.json.decode((folder / RESULT_FILE).read_bytes(), type=RunResult)
        if result.state is RunState.RELEASED:
            heartbeat.say(ProgressLine("publish", 0.98, f"signing and publishing version {result.version}"))
            package = Package.open(folder / PACKAGE_FOLDER, verify=True)
            self._publisher.publish(package)
            self._keep(package)
        return result

    def _version(self, run: RunFile) -> str:
        """The first free version after the champion's: an earlier attempt may have published one already."""
        taken = self._client.versions(run.model)
        version = next_version(run.champion_version)
        while version in taken:
            version = next_version(version)
        return version

    def _champion(self, digest: str) -> Package:
        folder = self._work / "packages" / digest
        if folder.exists():
            return Package.open(folder, verify=True)
        return self._client.download(digest, folder)

    def _keep(self, package: Package) -> None:
        """Keep what was released: it is the next run's champion."""
        folder = self._work / "packages" / package.digest
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(package.folder, folder)

    def _process(
        self, command: list[str], folder: Path, heartbeat: _Heartbeat, stop: threading.Event
    ) -> tuple[int, list[str]]:
        """Run to the end, or until the lease is lost; returns the exit status and its last words."""
        errors: collections.deque[str] = collections.deque(maxlen=_ERROR_LINES)
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path.cwd())
        assert process.stdout is not None  # noqa: S101 - a pipe was asked for
        assert process.stderr is not None  # noqa: S101
        readers = [
            threading.Thread(target=_read_progress, args=(process.stdout, heartbeat.say), daemon=True),
            threading.Thread(target=_read_errors, args=(process.stderr, folder / "stderr.log", errors), daemon=True),
        ]
        for reader in readers:
            reader.start()
        waited_s = 0.0
        try:
            while process.poll() is None:
                if heartbeat.lost or stop.is_set():
                    break
                if waited_s > self._timing.limit_s:
                    errors.append(f"ended after {self._timing.limit_s:g} s, the limit of a run")
                    break
                stop.wait(0.1)
                waited_s += 0.1
        finally:
            _end(process)
            for reader in readers:
                reader.join(_STOP_WAIT_S)
            process.stdout.close()
            process.stderr.close()
        return process.returncode, list(errors)


class _Heartbeat:
    """Renews a run's lease in a thread of its own, with the newest progress.

    Attributes:
        lost: Why the run is not this worker's any more; empty while it is.
    """

    def __init__(self, client: ServerClient, run: RunFile, interval_s: float) -> None:
        self.lost = ""
        self._client, self._run, self._interval_s = client, run, interval_s
        self._latest = ProgressLine("start", 0.0)
        self._news, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._ended.set()
        self._news.set()
        self._thread.join()

    def say(self, line: ProgressLine) -> None:
        """Tell the server soon; of several in a row only the newest."""
        changed = line.stage != self._latest.stage
        self._latest = line
        if changed:
            self._news.set()

    def _beat(self) -> None:
        while not self._ended.is_set() and not self.lost:
            line = self._latest
            progress = RunProgress(
                fence=self._run.fence, stage=line.stage, fraction=line.fraction, message=line.message
            )
            try:
                self._client.progress(self._run.run, progress)
            except LeaseLost as error:
                self.lost = str(error)
            except NetworkError as error:
                # The lease outlives a few missed beats; the next one may get through.
                log.warning("heartbeat of run %s: %s", self._run.run, error)
            self._news.wait(self._interval_s)
            self._news.clear()


def _read_progress(stream: IO[str], say: Callable[[ProgressLine], None]) -> None:
    for line in stream:
        try:
            say(msgspec.json.decode(line, type=ProgressLine))
        except msgspec.DecodeError:
            log.debug("the run's process wrote: %s", line.rstrip())


def _read_errors(stream: IO[str], path: Path, last: collections.deque[str]) -> None:
    """Keep all in a file and the last lines in memory."""
    with path.open("w") as file:
        for line in stream:
            file.write(line)
            if line.strip():
                last.append(line.rstrip())


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_STOP_WAIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _failed(run: RunFile, *reasons: str) -> RunResult:
    return RunResult(fence=run.fence, state=RunState.FAILED, reasons=reasons)
