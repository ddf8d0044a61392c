"""A server that is killed under a training: the run goes on, its result waits, and nobody begins it a second time."""

from __future__ import annotations

import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from edge_agent.runtime.package import Package
from tests.fleet_server.running_server import Running, prepared, server
from trainer.publish.image_signing import ImageSigning
from trainer.publish.keys import KeyFolder
from trainer.server_client import ServerClient
from trainer.work.worker import Timing, Worker

LEASE_S = 4.0
PATIENCE_S = 180.0


class Shelf:
    """Keeps what is published."""

    def __init__(self) -> None:
        self.packages: list[str] = []

    def publish(self, package: Package) -> None:
        """Take it."""
        self.packages.append(package.digest)

    def refresh(self) -> None:
        """Nothing is about to expire."""


class Trainer:
    """A worker in a thread, with what it has published."""

    def __init__(self, running: Running, recipes: Path, work: Path) -> None:
        self.shelf, self.work, self._stop = Shelf(), work, threading.Event()
        self._client = ServerClient(running.url, running.token)
        timing = Timing(poll_s=0.2, heartbeat_s=0.5)
        one = Worker(self._client, self.shelf, recipes=recipes, work=work, timing=timing)
        self._thread = threading.Thread(target=one.work, args=(self._stop,))
        self._thread.start()

    @property
    def runs(self) -> list[str]:
        """The runs that it has begun."""
        return [path.name for path in (self.work / "runs").glob("*")]

    def close(self) -> None:
        """End it."""
        self._stop.set()
        self._thread.join(PATIENCE_S)
        self._client.close()


def until(client: httpx.Client, run: str, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The run once it is so."""
    end = time.monotonic() + PATIENCE_S
    while True:
        found: dict[str, Any] = client.get(f"/api/v1/runs/{run}").raise_for_status().json()
        if condition(found):
            return found
        assert time.monotonic() < end, found
        time.sleep(0.1)


def asked(client: httpx.Client) -> str:
    """A run, as soon as the server knows from a worker that it can be trained."""
    end = time.monotonic() + PATIENCE_S
    while (reply := client.post("/api/v1/runs", json={"model": "digits"})).status_code != 201:
        assert time.monotonic() < end, reply.text
        time.sleep(0.1)
    return str(reply.json()["run"])


@pytest.mark.timeout(600)
def test_a_training_outlives_a_killed_server_and_is_done_once(recipes: Path, base_lake: Path, tmp_path: Path) -> None:
    lake = shutil.copytree(base_lake, tmp_path / "lake")
    ImageSigning(KeyFolder(tmp_path / "keys")).create(("digits",))
    data = prepared(tmp_path / "data", tmp_path / "keys")
    settings = tmp_path / "shoal.toml"
    settings.write_text(f'lake = "{lake}"\n[runs]\nlease_s = {LEASE_S}\n')
    with server(data, "--config", str(settings)) as running, running.client() as client:
        port = str(client.base_url.port)
        first = Trainer(running, recipes, tmp_path / "first")
        run = asked(client)
        until(client, run, lambda one: one["stage"] == "fit")
        running.process.send_signal(signal.SIGKILL)
        running.process.wait()
    time.sleep(LEASE_S + 1)  # it cannot renew its lease, which runs out
    with server(data, "--config", str(settings), "--port", port) as again, again.client() as client:
        second = Trainer(again, recipes, tmp_path / "second")  # asks for work at once
        ended = until(client, run, lambda one: one["ended_at_ms"] is not None)
        second.close()
        first.close()
        assert len(client.get("/api/v1/runs").json()) == 1
    assert ended["state"] == "released", ended["reasons"]
    assert ended["attempts"] == 1
    assert (first.runs, second.runs) == ([run], [])
    assert first.shelf.packages == [ended["package"]]
    assert not second.shelf.packages
