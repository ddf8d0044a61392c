"""What a worker has room for: how many runs at once, on how many processors and GPUs, and who has them now."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edge_agent.contract.runs import RunFile


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """The limits of a worker.

    Args:
        at_once: Runs.
        cpus: Processors to give away; None: they are not counted.
        gpus: Names of GPUs, as ``CUDA_VISIBLE_DEVICES`` takes them; None: they are not counted.
    """

    at_once: int = 1
    cpus: float | None = None
    gpus: tuple[str, ...] | None = None

    @classmethod
    def of_this_machine(cls, *, at_once: int = 1, cpus: float | None = None, gpus: int | None = None) -> Capacity:
        """What this machine has, or as much of it as is given."""
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if visible is None:
            names = [path.name.removeprefix("nvidia") for path in sorted(Path("/dev").glob("nvidia[0-9]*"))]
        else:
            names = [name for name in visible.split(",") if name.strip()]
        processors = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
        return cls(
            at_once=at_once,
            cpus=processors if cpus is None else cpus,
            gpus=tuple(names if gpus is None else [*names, *map(str, range(len(names), gpus))][:gpus]),
        )


class Room:
    """Who has what. Safe to use from several threads."""

    def __init__(self, capacity: Capacity) -> None:
        self.capacity = capacity
        self._held: dict[str, tuple[RunFile, tuple[str, ...]]] = {}
        self._lock = threading.Lock()

    @property
    def holding(self) -> list[str]:
        """The runs under way."""
        with self._lock:
            return sorted(self._held)

    @property
    def full(self) -> bool:
        """Whether no other run may begin, however small."""
        return len(self.holding) >= self.capacity.at_once

    def free(self) -> tuple[float | None, int | None]:
        """Processors and GPUs that nobody has; None where they are not counted."""
        with self._lock:
            return self._free_cpus(), None if self.capacity.gpus is None else len(self._free_gpus())

    def take(self, claim: Callable[[float | None, int | None, list[str]], RunFile | None]) -> RunFile | None:
        """Claim a run with what is free; from then on it has its share."""
        cpus, gpus = self.free()
        run = claim(cpus, gpus, self.holding)
        if run is not None:
            with self._lock:
                given = () if self.capacity.gpus is None else self._free_gpus()[: run.gpus]
                self._held[run.run] = run, tuple(given)
        return run

    def give_back(self, run: RunFile) -> None:
        """A run is over: others may have its share."""
        with self._lock:
            self._held.pop(run.run, None)

    def environment(self, run: RunFile) -> dict[str, str]:
        """The variables that keep a run to its share: only where the worker carries out several at once."""
        if self.capacity.at_once == 1 or self.capacity.gpus is None:
            return {}
        with self._lock:
            return {"CUDA_VISIBLE_DEVICES": ",".join(self._held[run.run][1])}

    def _free_cpus(self) -> float | None:
        if self.capacity.cpus is None:
            return None
        return max(0.0, self.capacity.cpus - sum(run.cpus for run, _ in self._held.values()))

    def _free_gpus(self) -> list[str]:
        taken = {name for _, names in self._held.values() for name in names}
        return [name for name in self.capacity.gpus or () if name not in taken]
