"""The demo's processes: each with a log of its own, all ended in the end, whatever happens."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from edge_agent.contract.errors import ShoalError

# What ends the demo, and with it its processes.
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class DemoFailed(ShoalError):
    """The demo cannot go on; its text names the log to read."""


class Processes:
    """Starts commands, keeps their logs in ``logs`` and ends them in reverse order."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._running: list[tuple[str, subprocess.Popen[bytes]]] = []
        logs.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def log_of(self, name: str) -> Path:
        """The log of the process called ``name``."""
        return self._logs / f"{name}.log"

    def start(
        self, name: str, command: Sequence[str], *, environment: Mapping[str, str] | None = None, pipes: bool = False
    ) -> subprocess.Popen[bytes]:
        """Start ``command`` in the background.

        Args:
            pipes: Whether its standard input and output are kept for a conversation; its errors still go to the log.
        """
        with self.log_of(name).open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE if pipes else subprocess.DEVNULL,
                stdout=subprocess.PIPE if pipes else log,
                stderr=log,
                env=_environment(environment),
                # Ctrl-C reaches the demo alone, which then ends its processes in order.
                start_new_session=True,
            )
        self._running.append((name, process))
        return process

    def run(self, name: str, command: Sequence[str], *, environment: Mapping[str, str] | None = None) -> str:
        """Run ``command`` to its end and return what it printed.

        Raises:
            DemoFailed: It failed; the message holds its last lines.
        """
        done = subprocess.run(command, capture_output=True, text=True, env=_environment(environment), check=False)
        with self.log_of(name).open("a") as log:
            log.write(f"$ {' '.join(command)}\n{done.stdout}{done.stderr}\n")
        if done.returncode:
            tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-8:])
            raise DemoFailed(f"{name} ended with {done.returncode}:\n{tail}\n(log: {self.log_of(name)})")
        return done.stdout

    def check(self) -> None:
        """See that all background processes still run.

        Raises:
            DemoFailed: One has ended by itself.
        """
        for name, process in self._running:
            code = process.poll()
            if code is not None:
                tail = "\n".join(self.log_of(name).read_text(errors="replace").strip().splitlines()[-8:])
                raise DemoFailed(f"{name} ended by itself with {code}:\n{tail}\n(log: {self.log_of(name)})")

    def wait_for_file(self, path: Path, *, timeout_s: float = 60.0) -> dict[str, Any]:
        """The JSON object in ``path``, as soon as a process has written it.

        Raises:
            DemoFailed: It does not appear in time, or a process has ended.
        """
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            self.check()
            with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
                return dict(json.loads(path.read_text()))
            time.sleep(0.05)
        raise DemoFailed(f"{path} did not appear within {timeout_s:g} s (logs: {self._logs})")

    def stop(self, *, patience_s: float = 10.0) -> None:
        """End each, the last first, so that what depends on another goes before it: SIGTERM, then SIGKILL."""
        with _undisturbed():
            for _, process in reversed(self._running):
                if process.poll() is None:
                    process.terminate()
                try:
                    process.wait(timeout=patience_s)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                for pipe in (process.stdin, process.stdout):
                    if pipe is not None:
                        with contextlib.suppress(BrokenPipeError):
                            pipe.close()
            self._running.clear()


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """A second Ctrl-C while ending, or a terminal that closes, would leave processes behind."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _environment(more: Mapping[str, str] | None) -> dict[str, str]:
    """Ours without settings of a real fleet: a demo that found SHOAL_DATABASE would write into its database."""
    return {name: value for name, value in os.environ.items() if not name.startswith("SHOAL_")} | dict(more or {})
