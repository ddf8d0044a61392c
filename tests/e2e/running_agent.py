"""An agent as a process of its own, as a device starts it, beside a fleet server that it may have enrolled with."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from tests.fleet_server.running_server import Running

PATIENCE_S = 100.0
T = TypeVar("T")
_AGENT = (sys.executable, "-m", "edge_agent.cli")


def shoal_agent(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run `shoal-agent` to its end."""
    command = [*_AGENT, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def until(true: Callable[[], T], what: str) -> T:
    """Wait until ``true()`` is, and give what it gave."""
    end = time.monotonic() + PATIENCE_S
    while not (found := true()):
        assert time.monotonic() < end, f"waited {PATIENCE_S} s in vain: {what}"
        time.sleep(0.05)
    return found


class Agent:
    """One device: its state folder, and the process that works on it now.

    Args:
        within: A command that runs the agent, such as one that gives it another view of the disk.
    """

    def __init__(self, state: Path, *, within: Sequence[str] = ()) -> None:
        self.state, self._within = state, within
        self.settings = state.with_suffix(".toml")
        self.settings.write_text(f'state = "{state}"\n[api]\nport = 0\n[report]\ninterval_s = 0.5\n')
        self._process: subprocess.Popen[str] | None = None
        self._log = state.with_suffix(".log")

    def enrol(self, server: Running, device: str) -> None:
        """Join the server's fleet."""
        with server.client() as client:
            claim = client.post("/api/v1/claims", json={"device": device}).json()["claim"]
        done = shoal_agent(
            "enrol", "--config", self.settings, "--server", server.url, "--claim", claim, "--device", device
        )
        assert done.returncode == 0, done.stderr

    def start(self) -> None:
        """Start the process, and wait until it listens."""
        (self.state / "agent.json").unlink(missing_ok=True)  # what a killed one left behind
        with self._log.open("a") as log:
            command = [*self._within, *_AGENT, "run", "--config", str(self.settings)]
            self._process = subprocess.Popen(command, stderr=log, text=True)
        if self._within:
            self.state = Path(f"/proc/{self._process.pid}/root{self.state}")
        until(self._listens, f"the agent to listen; it said: {self.log}")

    @property
    def log(self) -> str:
        """What it has said."""
        return self._log.read_text()

    @property
    def address(self) -> str:
        """``HOST:PORT`` of its API."""
        return str(urlsplit(json.loads((self.state / "agent.json").read_text())["api"]).netloc)

    @property
    def slots(self) -> dict[str, Any]:
        """What slots.json says of the model."""
        try:
            return dict(json.loads((self.state / "slots.json").read_text())["models"].get("digits", {}))
        except FileNotFoundError:
            return {}

    def kill(self) -> None:
        """Cut its power."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(PATIENCE_S)

    def stop(self) -> int:
        """End it by SIGTERM; its exit status."""
        if self._process is None:
            return 0
        self._process.terminate()
        return self._process.wait(PATIENCE_S)

    def _listens(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log
        return (self.state / "agent.json").exists()


@contextmanager
def agent(state: Path, *, within: Sequence[str] = ()) -> Iterator[Agent]:
    """A device, stopped in the end; not started yet."""
    one = Agent(state, within=within)
    try:
        yield one
    finally:
        one.stop()
