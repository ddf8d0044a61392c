"""The README's demo as a process of its own."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tests.background import Background

DEMO = (sys.executable, "-m", "fleet_server.cli", "demo")


class DemoRun(Background):
    """One run of `shoal demo`.

    Args:
        folder: For its state, its report and what it says; must exist.
        repository: Where it is started, as a newcomer would.
    """

    def __init__(self, folder: Path, repository: Path) -> None:
        self._report = folder / "report.json"
        command = [*DEMO, "--report", str(self._report), "--folder", str(folder / "demo")]
        super().__init__(command, folder / "said.txt", cwd=repository)

    def report(self) -> Any:
        """Its figures; only once it has ended."""
        return json.loads(self._report.read_text())
