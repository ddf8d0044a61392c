"""Processes that train together, seen by who started them: torchrun on this machine, or any command of the operator.

torchrun starts a group anew when one of its processes dies (torch elastic); the group goes on from the last checkpoint.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
from pathlib import Path

import msgspec

from edge_agent.contract.errors import ConfigurationError
from trainer.errors import WorkersLost
from trainer.own_module import own_module
from trainer.training.job import PROGRESS_FILE, ProgressLine, raise_failure
from trainer.training.plan import LAUNCH, Compute, Plan, Progress
from trainer.training.worker import DRIVER_ON_STDIN

_LOG_FILE = "processes.log"
# torchrun otherwise keeps one key-value store for all its attempts, in which a group that is started anew finds the
# addresses of the processes that died, and waits for them (torch 2.13, DynamicRendezvousHandler.next_rendezvous).
_OWN_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
_LOOK_S = 0.1
_STOP_WAIT_S = 10.0
_LAST_LINES = 8


def run_local(folder: Path, plan: Plan, compute: Compute, progress: Progress, *, restarts: int) -> None:
    """Train with ``compute.processes`` processes of this machine.

    Args:
        restarts: How often the group may be started anew.
    Raises:
        ShoalError: What stopped the training, as the process said that met it.
        WorkersLost: Processes died too often, or could not be started.
    """
    command = own_module("torch.distributed.run", "--standalone", "--nnodes=1")
    command += [f"--nproc-per-node={compute.processes}", f"--max-restarts={restarts}", "--monitor-interval=0.2"]
    # Its own `-m` would start `python -m`, which looks into the current folder first.
    command += ["--no-python", *own_module("trainer.training.worker", str(folder))]
    environment = os.environ | _OWN_STORE | {DRIVER_ON_STDIN: "1", "OMP_NUM_THREADS": str(plan.threads)}
    _run(command, folder, progress, environment)


def run_launched(folder: Path, compute: Compute, progress: Progress) -> None:
    """Train with whatever processes the operator's command starts; they share the folder with this one.

    Raises:
        ConfigurationError: The command is not there.
        ShoalError: As :func:`run_local`.
    """
    command = [*shlex.split(compute.launch), str(folder)]
    _run(command, folder, progress, os.environ | _OWN_STORE)


def _run(command: list[str], folder: Path, progress: Progress, environment: dict[str, str]) -> None:
    tail = _Tail(folder / PROGRESS_FILE, progress)
    with (folder / _LOG_FILE).open("ab") as log:
        try:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment)
        except OSError as error:
            raise ConfigurationError(f"{LAUNCH}: {command[0]} cannot be started: {error.strerror}") from error
    try:
        while process.poll() is None:
            tail.read()
            raise_failure(folder)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_LOOK_S)
    finally:
        _end(process, gently=DRIVER_ON_STDIN not in environment)
    tail.read()
    raise_failure(folder)
    if process.returncode != 0:
        last = _last_lines(folder / _LOG_FILE)
        raise WorkersLost(
            f"training's processes ended with status {process.returncode}, and were started again as often as "
            f"[training] restarts allows; {folder / _LOG_FILE} ends with: {last}"
        )


class _Tail:
    """What is new in the lines of progress."""

    def __init__(self, path: Path, progress: Progress) -> None:
        self._path, self._progress = path, progress
        self._at = 0

    def read(self) -> None:
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._at)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._at += len(whole)
        for line in whole.splitlines():
            with contextlib.suppress(msgspec.DecodeError):  # a process was killed while it wrote
                said = msgspec.json.decode(line, type=ProgressLine)
                self._progress(said.fraction, said.message, said.metrics)


def _end(process: subprocess.Popen[bytes], *, gently: bool) -> None:
    """End the command and, through it, what it has started.

    Args:
        gently: It must end its processes itself; else these see that their standard input is closed.
    """
    if process.stdin is not None:
        process.stdin.close()
    if process.poll() is None and gently:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_WAIT_S)
    if process.poll() is None:
        process.kill()
        process.wait()


def _last_lines(path: Path) -> str:
    lines = [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return " | ".join(lines[-_LAST_LINES:])
