"""Agents whose power can be cut: real processes, with ``interposer.c`` between them and the disk."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

_SOURCE = Path(__file__).with_name("interposer.c")
_ROOT = Path(__file__).parents[2]
PATIENCE_S = 60.0
# What becomes of an agent's operations on its state folder; as interposer.c has them.
OFF, RECORD, KILL, TEAR, FULL = range(5)
KILLED = -signal.SIGKILL


def compiler() -> str | None:
    """The C compiler of this machine; None where it has none."""
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


def build_interposer(folder: Path) -> Path:
    """Compile it; gives the library.

    Raises:
        subprocess.CalledProcessError: The compiler refuses.
    """
    cc = compiler()
    assert cc is not None, "no C compiler: install gcc"
    library = folder / "power_cut.so"
    command = [cc, "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o", str(library), str(_SOURCE), "-ldl"]
    subprocess.run([*command, "-lpthread"], check=True, capture_output=True, text=True)
    return library


class PoweredAgent:
    """One running agent.

    Args:
        state: Its state folder; ``log``: what it says.
    """

    def __init__(self, outlet: Outlet, pid: int, state: Path, log: Path) -> None:
        self._outlet, self.pid, self.state, self.log = outlet, pid, state, log
        self.status: int | None = None

    def has_ended(self) -> bool:
        """Whether the process is over; found without waiting."""
        if self.status is None:
            try:
                if Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                    self.wait()
            except FileNotFoundError:
                self.wait()
        return self.status is not None

    def wait(self) -> int:
        """Its exit status; negative for the signal that ended it."""
        if self.status is None:
            self.status = self._outlet.ask({"wait": self.pid})["status"]
        return self.status

    def stop(self) -> int:
        """End it in an orderly way; one that does not within a minute is killed, which its status then tells."""
        if not self.has_ended():
            os.kill(self.pid, signal.SIGTERM)
            until = time.monotonic() + PATIENCE_S
            while not self.has_ended() and time.monotonic() < until:
                time.sleep(0.01)
            self.kill()
        return self.wait()

    def kill(self) -> None:
        """Cut its power now."""
        if not self.has_ended():
            os.kill(self.pid, signal.SIGKILL)
            self.wait()


class Outlet:
    """Where agents get their power from: one process, of which each agent is a fork."""

    def __init__(self, library: Path) -> None:
        environment = {**os.environ, "LD_PRELOAD": str(library)}
        command = [sys.executable, "-m", "tests.power_cut.forks"]
        self._process = subprocess.Popen(
            command, cwd=_ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._running: list[PoweredAgent] = []

    def start(
        self, state: Path, config: Path, *, fate: int = OFF, at: int = 0, record: Path | None = None
    ) -> PoweredAgent:
        """Start an agent.

        Args:
            fate: What becomes of its operation number ``at``: nothing, a kill before it, a kill in the middle of its
                write, or from then on no room on the disk. With RECORD all are written to ``record``.
        """
        (state / "agent.json").unlink(missing_ok=True)  # what an earlier one left would be taken for this one's
        log = state.with_suffix(".log")
        order = {
            "state": str(state), "config": str(config), "log": str(log), "fate": fate, "at": at,
            "record": str(record) if record else "",
        }  # fmt: skip
        agent = PoweredAgent(self, self.ask({"start": order})["pid"], state, log)
        self._running.append(agent)
        return agent

    def ask(self, order: dict[str, object]) -> dict[str, int]:
        """One order to the forking process, and its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"the process that agents are forks of has ended with {self._process.poll()}"
        answer: dict[str, int] = json.loads(line)
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for agent in self._running:
            agent.kill()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(PATIENCE_S)
        self._process.stdout.close()
