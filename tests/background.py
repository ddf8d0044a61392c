"""A long program that runs beside the tests: it is begun before anybody looks at what comes of it."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

_END_TIMEOUT_S = 60.0


class Background:
    """One run of a program, whose words go to a file.

    Args:
        command: The program and its arguments.
        said: Where all that it writes goes.
        cwd: Where it runs.
        environment: Its environment; this process's where None.
    """

    def __init__(
        self, command: Sequence[str], said: Path, *, cwd: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self._said = said
        env = dict(os.environ if environment is None else environment)
        with said.open("w") as out:
            self._process = subprocess.Popen(list(command), stdout=out, stderr=subprocess.STDOUT, cwd=cwd, env=env)

    def wait(self, timeout_s: float) -> int:
        """Its exit status, once it has ended."""
        return self._process.wait(timeout_s)

    @property
    def said(self) -> str:
        """What it has written so far."""
        return self._said.read_text()

    def stop(self) -> None:
        """End it by SIGTERM, if it still runs: what it has started is its own to end."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(_END_TIMEOUT_S)
            finally:
                self._process.kill()
