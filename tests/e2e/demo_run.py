"""The README's demo as a process of its own, begun before anybody looks at what comes of it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

DEMO = (sys.executable, "-m", "fleet_server.cli", "demo")
_END_TIMEOUT_S = 60.0


class DemoRun:
    """One run of `shoal demo`.

    Args:
        folder: For its state, its report and what it says; must exist.
        repository: Where it is started, as a newcomer would.
    """

    def __init__(self, folder: Path, repository: Path) -> None:
        self._report, self._said = folder / "report.json", folder / "said.txt"
        command = [*DEMO, "--report", str(self._report), "--folder", str(folder / "demo")]
        with self._said.open("w") as said:
            self._process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, cwd=repository)

    def wait(self, timeout_s: float) -> int:
        """Its exit status, once it has ended."""
        return self._process.wait(timeout_s)

    @property
    def said(self) -> str:
        """What it has written so far."""
        return self._said.read_text()

    def report(self) -> Any:
        """Its figures; only once it has ended."""
        return json.loads(self._report.read_text())

    def stop(self) -> None:
        """End it, and with it all that it has started, if it still runs."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(_END_TIMEOUT_S)
            finally:
                self._process.kill()
