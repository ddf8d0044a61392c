"""Starts `shoal-agent` as a person would: with a settings file, on a free port, with no fleet to talk to."""

from __future__ import annotations

import json
import re
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.packaging.interpreters import clean_environment

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0

# What the agent writes into its state folder once it listens; it names the free port that it took.
_ADDRESS_FILE = "agent.json"
_ADDRESS = re.compile(r"127\.0\.0\.1:\d+")
_SETTINGS = """
state = "{state}"

[api]
host = "127.0.0.1"
port = 0
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningAgent:
    """An agent that has said where it listens."""

    url: str
    log: Path


@contextmanager
def running_agent(command: list[str], folder: Path) -> Iterator[RunningAgent]:
    """Run ``<command> run --config FILE`` until the block ends; it must then end cleanly on SIGTERM.

    Args:
        command: The program, and the arguments that stand before its own.
        folder: Outside the repository; holds its settings, state and log, and is where it runs.
    """
    settings, log, state = folder / "agent.toml", folder / "agent.log", folder / "state"
    settings.write_text(_SETTINGS.format(state=state))
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "run", "--config", str(settings)],
            cwd=folder,
            env=clean_environment(),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            yield RunningAgent(url=_wait_for_address(process, state / _ADDRESS_FILE, log), log=log)
            process.terminate()
            status = process.wait(timeout=STOP_TIMEOUT_S)
            assert status == 0, f"the agent ended with {status}:\n{log.read_text()}"
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


def _wait_for_address(process: subprocess.Popen[bytes], address_file: Path, log: Path) -> str:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if address_file.exists() and (found := _ADDRESS.search(address_file.read_text())):
            return f"http://{found.group(0)}"
        assert process.poll() is None, f"the agent ended with {process.returncode}:\n{log.read_text()}"
        time.sleep(0.05)
    raise AssertionError(f"the agent named no address in {START_TIMEOUT_S:.0f} s:\n{log.read_text()}")


def get_json(url: str) -> tuple[int, Any]:
    """The status and the decoded body of a GET."""
    with urllib.request.urlopen(url, timeout=10.0) as response:  # noqa: S310 - the agent's own address
        return response.status, json.loads(response.read())
