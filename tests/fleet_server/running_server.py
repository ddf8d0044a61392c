"""A server as a process of its own, as an operator starts it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx

from fleet_server.data_folder import DataFolder

_SHOAL = (sys.executable, "-m", "fleet_server.cli")
_PATIENCE_S = 60.0


def shoal(*arguments: str | Path, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run `shoal` to its end."""
    command = [*_SHOAL, *map(str, arguments)]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SHOAL_")}
    full = {**clean, **(environment or {})}
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_PATIENCE_S, check=False, env=full
    )


def prepared(folder: Path, keys: Path) -> Path:
    """A data folder with its keys in it."""
    data = DataFolder(folder)
    data.prepare()
    data.take_keys(keys)
    return folder


def _is_ready(data: Path, pid: int) -> bool:
    try:
        return bool(json.loads((data / "server.json").read_text())["pid"] == pid)  # not that of a killed one
    except FileNotFoundError:
        return False


class Running:
    """A server that is ready."""

    def __init__(self, data: Path, process: subprocess.Popen[str], log: Path) -> None:
        self.data, self.process, self._log = data, process, log
        address = json.loads((data / "server.json").read_text())
        self.url, self.broker, self.pid = address["url"], address["broker"], address["pid"]
        self.token = (data / "admin.token").read_text()

    @property
    def log(self) -> str:
        """What it has logged so far."""
        return self._log.read_text()

    def client(self, token: str | None = None) -> httpx.Client:
        """A client of its REST API, as administrator where no other token is given."""
        headers = {"Authorization": f"Bearer {self.token if token is None else token}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=30.0)


@contextmanager
def server(data: Path, *options: str) -> Iterator[Running]:
    """A running server, ended by SIGTERM."""
    log = data.parent / f"{data.name}.log"
    with log.open("w") as file:
        command = [*_SHOAL, "server", "--data", str(data), "--port", "0", "--broker-port", "0", *options]
        process = subprocess.Popen(command, stderr=file, text=True)
    try:
        until = time.monotonic() + _PATIENCE_S
        while not _is_ready(data, process.pid):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.05)
        yield Running(data, process, log)
    finally:
        process.terminate()
        process.wait(_PATIENCE_S)
