"""Swaps versions of a model as often as told while threads ask for it; prints what became of requests and memory.

usage: hot_swaps.py MODELS STATE SWAPS
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path

from edge_agent.runtime.budget import MemoryBudget
from edge_agent.runtime.catalogue import Catalogue, Known
from edge_agent.runtime.memory import give_back, resident_bytes
from edge_agent.runtime.optimised import OptimisedModels
from edge_agent.runtime.package import Package
from edge_agent.runtime.repository import Repository
from edge_agent.runtime.selftest import self_test
from edge_agent.runtime.slots import Slots
from tests.fakes.packages import INPUT, reference_images

THREADS = 3


class Fleet:
    """What an installer would say."""

    def __init__(self, packages: list[Package]) -> None:
        self._packages = packages

    def installed(self) -> list[Known]:
        return [Known(package, installed=True) for package in self._packages]


class Load:
    """Threads that ask without a pause."""

    def __init__(self, slots: Slots) -> None:
        self.answered, self.failures, self.versions = 0, list[str](), set[str]()
        self._slots, self._done = slots, threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._ask, args=(rows,)) for rows in range(1, THREADS + 1)]
        for thread in self._threads:
            thread.start()

    def _ask(self, rows: int) -> None:
        inputs = {INPUT: reference_images(rows)}
        while not self._done.wait(0.0005):  # room for the swaps on a machine with few processors
            try:
                with self._slots.lease("digits") as loaded:
                    loaded.backend.infer(loaded.check(inputs).inputs)
                    loaded.statistics.answered(rows, 1, 1, 1)
            except Exception as error:  # noqa: BLE001 - any failure at all is what this looks for
                self.failures.append(repr(error))
            else:
                with self._lock:
                    self.answered += 1
                    self.versions.add(loaded.version)

    def stop(self) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()


def main(models: Path, state: Path, swaps: int) -> None:
    packages = [Package.open(folder, verify=True) for folder in sorted(models.iterdir())]
    slots, budget = Slots(), MemoryBudget(1 << 40)
    cache = OptimisedModels(state / "optimised", own=state)
    repository = Repository(slots, Catalogue(None), memory=budget, cache=cache)
    repository.follow(Fleet(packages))

    def swap(number: int) -> None:
        loaded = repository.prepare(packages[number % len(packages)])
        self_test(loaded.backend, loaded.package.golden())
        repository.serve(loaded)

    def settle() -> None:
        """Wait until what was replaced is closed: its last request may still run."""
        while budget.used_bytes > slots.get("digits").memory_bytes:
            time.sleep(0.01)
        give_back()

    swap(0)
    load = Load(slots)
    memory: list[int] = []
    for number in range(1, swaps + 1):
        swap(number)
        if number in (10, swaps):
            settle()
        memory.append(resident_bytes())
    load.stop()
    report = {
        "answered": load.answered,
        "failures": load.failures[:5],
        "versions": sorted(load.versions),
        "after_tenth": memory[9],
        "most": max(memory[9:]),
        "at_end": memory[-1],
        "budget_at_end": budget.used_bytes,
        "served": slots.get("digits").memory_bytes,
    }
    print(json.dumps(report))  # noqa: T201 - read by the test


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
