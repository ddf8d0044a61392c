"""A run's process, seen from outside: started under a guard, listened to, and ended with all that it has started."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

import msgspec

from trainer.own_module import own_module
from trainer.work.bounded_log import BoundedLog
from trainer.work.guard import STOP_WAIT_S

log = logging.getLogger(__name__)

_ERROR_LINES, _ERROR_BYTES = 12, 16 << 10
_GUARD_WAIT_S = STOP_WAIT_S + 10.0
# Settings of ours name tokens and passphrases; what a recipe's code does with its environment is not ours to know.
_PRIVATE = "SHOAL_"
# How runs are carried out is for them to know.
_PASSED_ON = ("SHOAL_TRAINING_", "SHOAL_BATCH_")


class ProgressLine(msgspec.Struct):
    """A line that a run's process writes."""

    stage: str
    fraction: float
    message: str = ""
    metrics: dict[str, float] = {}


def run_to_end(
    command: list[str],
    log_path: Path,
    *,
    say: Callable[[ProgressLine], None],
    given_up: Callable[[], bool],
    limit_s: float,
    environment: Mapping[str, str] | None = None,
) -> tuple[int, list[str]]:
    """Run a command to its end, or until it is given up. Should this process be killed, the command ends too.

    It gets none of our variables (``SHOAL_...``) but those that say how training and batches are carried out.

    Args:
        log_path: Where its standard error goes: the newest part of it, and the one before beside it.
        say: Told each line of progress on its standard output.
        given_up: Asked ten times a second.
        limit_s: After which it counts as hung and is ended.
        environment: Variables of its own besides.
    Returns:
        Its exit status and its last words.
    Raises:
        OSError: It cannot be started, or the log cannot be written.
    """
    heard, errors = os.pipe()
    try:
        written = BoundedLog(os.fdopen(heard, "rb", buffering=0), log_path)
        process = subprocess.Popen(
            own_module("trainer.work.guard", *command),
            stdin=subprocess.PIPE,  # closed when this process ends, however it ends
            stdout=subprocess.PIPE,
            stderr=errors,
            env=_clean() | dict(environment or {}),
            text=True,
            errors="replace",
            start_new_session=True,  # a Ctrl-C at our terminal is for us to pass on
        )
    finally:
        os.close(errors)
    assert process.stdout is not None  # noqa: S101 - a pipe was asked for
    reader = threading.Thread(target=_read_progress, args=(process.stdout, say), daemon=True)
    reader.start()
    end, words = time.monotonic() + limit_s, []
    try:
        while process.poll() is None and not given_up():
            if time.monotonic() > end:
                words = [f"ended after {limit_s:g} s, the limit of a run"]
                break
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.1)
    finally:
        _end(process, reader, written)
    return process.returncode, [*_last_lines(log_path), *words]


def _clean() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith(_PASSED_ON) or not name.startswith(_PRIVATE)
    }


def _read_progress(stream: IO[str], say: Callable[[ProgressLine], None]) -> None:
    for line in stream:
        try:
            say(msgspec.json.decode(line, type=ProgressLine))
        except msgspec.DecodeError:
            log.debug("the run's process wrote: %s", line.rstrip())


def _end(process: subprocess.Popen[str], reader: threading.Thread, written: BoundedLog) -> None:
    assert process.stdin is not None  # noqa: S101 - a pipe was asked for
    process.stdin.close()
    try:
        process.wait(_GUARD_WAIT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    reader.join(1.0)
    if reader.is_alive() or process.returncode < 0 or not written.wait(1.0):
        # Its output is still open, or the guard was killed: something that it started may have outlived it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        reader.join()
    written.wait()
    written.close()
    if process.stdout is not None:
        process.stdout.close()


def _last_lines(path: Path) -> list[str]:
    with path.open("rb") as file:  # it may be as long as the disk
        file.seek(-min(_ERROR_BYTES, file.seek(0, os.SEEK_END)), os.SEEK_END)
        lines = file.read().decode(errors="replace").splitlines()
    return [line.rstrip() for line in lines if line.strip()][-_ERROR_LINES:]
