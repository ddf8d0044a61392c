"""A worker as a process of its own, to be killed: ``python -m tests.trainer.work.worker_process URL RECIPES WORK``."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from edge_agent.contract.runs import RunKind
from edge_agent.runtime.package import Package
from trainer.server_client import ServerClient
from trainer.work.room import Capacity
from trainer.work.worker import Timing, Worker

SCRIPTED = dict.fromkeys((RunKind.TRAIN, RunKind.UPKEEP), "tests.fakes.scripted_run")


class Nowhere:
    """Publishes nothing: no scripted run releases anything."""

    def publish(self, package: Package) -> None:
        """Refuse."""
        raise AssertionError(package)

    def refresh(self) -> None:
        """Nothing is about to expire."""


def worker(client: ServerClient, recipes: Path, work: Path, capacity: Capacity | None = None) -> Worker:
    """One that is quick to ask, and whose runs are scripted."""
    timing = Timing(poll_s=0.05, heartbeat_s=0.2, limit_s=60)
    return Worker(client, Nowhere(), recipes=recipes, work=work, timing=timing, capacity=capacity, modules=SCRIPTED)


if __name__ == "__main__":
    url, recipes, work = sys.argv[1:]
    worker(ServerClient(url, "secret"), Path(recipes), Path(work)).work(threading.Event())
