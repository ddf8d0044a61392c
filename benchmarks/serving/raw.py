"""The limit: the model run with nothing around it, in a process on the servers' core."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from benchmarks.serving.models import Model
from benchmarks.serving.peer import program
from benchmarks.serving.processes import on_core


class RawRuns:
    """A process that waits on the servers' core, and runs the model for a while when asked.

    It is asked beside each server, so that both figures are of the same second.
    """

    def __init__(self, model: Model, core: int) -> None:
        with tempfile.NamedTemporaryFile(suffix=".npy", delete=False) as file:
            np.save(file, model.row)
            self._row = Path(file.name)
        command = [sys.executable, program("raw_runs.py"), str(model.onnx_file), file.name]
        with on_core(core):
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._line()

    def measure(self, seconds: float) -> dict[str, float]:
        """``requests_per_s``, ``p50_us`` and ``p99_us`` of so many seconds."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{seconds}\n")
        self._process.stdin.flush()
        figures: dict[str, float] = json.loads(self._line())
        return figures

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()
        self._row.unlink()

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the raw run ended with {self._process.wait(10)}")
        return line
