"""A repository whose machine has a GPU: TensorRT's stand-in, on memory that needs no GPU."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edge_agent.contract.messages import Event
from edge_agent.runtime.acceleration import Acceleration
from edge_agent.runtime.accelerator import Accelerator, AcceleratorRules
from edge_agent.runtime.catalogue import Catalogue
from edge_agent.runtime.choice import CPU, Candidate, Measured
from edge_agent.runtime.gpu.survey import Survey, TensorRtLibrary
from edge_agent.runtime.loaded import LoadedModel
from edge_agent.runtime.package import Package
from edge_agent.runtime.repository import Repository
from edge_agent.runtime.runtimes import RUNTIMES_FILE, RuntimesFile
from edge_agent.runtime.slots import IndexEntry, Slots
from tests.fakes.host_memory import HostMemory, a_gpu
from tests.fakes.packages import make_package

PATIENCE_S = 60.0
MODULE = "tests.fakes.tensorrt_module"
WITH_GPU = Survey(a_gpu(), TensorRtLibrary(MODULE, "tensorrt", (10, 13, 3, 9)), "pycuda", ())
WITHOUT = Survey(None, None, None, ("the NVIDIA driver does not work: cuInit: CUDA_ERROR_NO_DEVICE (100)",))


def engines_are_fast(models: Sequence[LoadedModel]) -> list[Measured]:
    """As it would be on a GPU: 6.1 ms on the CPU, 0.9 ms elsewhere."""
    candidates = [Candidate(each.runtime.name, each.runtime.precision) for each in models]
    return [Measured(each, 6_100.0 if each.runtime == CPU else 900.0) for each in candidates]


def engines_are_slow(models: Sequence[LoadedModel]) -> list[Measured]:
    """As it is for tiny models."""
    return [dataclasses.replace(each, row_us=1e7 / each.row_us) for each in engines_are_fast(models)]


@dataclasses.dataclass
class AcceleratedDevice:
    """The device's parts, and what it told the fleet."""

    slots: Slots
    repository: Repository
    models: Path
    runtimes: RuntimesFile
    memory: HostMemory
    events: list[Event]

    def add(self, version: str, *, name: str = "digits", **settings: Any) -> Package:
        """A package in its folder of models."""
        place = self.models / f"{name}-{version}"
        return make_package(place, version=version, name=name, **{"seed": int(version), **settings})

    def entry(self, version: str = "1", name: str = "digits") -> IndexEntry:
        """What the index says."""
        return next(each for each in self.repository.index() if (each.name, each.version) == (name, version))

    def runs_on(self, version: str = "1", name: str = "digits") -> str:
        """Where a model runs now."""
        runtime = self.slots.get(name, version).runtime
        return str(Candidate(runtime.name, runtime.precision))

    def settled(self, version: str = "1", name: str = "digits") -> str:
        """The reason in the index once there is one and nothing is being made ready."""

        def is_settled() -> bool:
            runtime = self.slots.get(name, version).runtime
            return bool(runtime.reason) and not runtime.building

        until(is_settled, f"for {name} {version} to settle: {self.entry(version, name).reason}")
        return self.entry(version, name).reason


def until(true: Callable[[], object], what: str = "", *, patience_s: float = PATIENCE_S) -> None:
    """Wait until ``true()`` is."""
    end = time.monotonic() + patience_s
    while not true():
        assert time.monotonic() < end, f"waited {patience_s} s in vain {what}"
        time.sleep(0.02)


@contextmanager
def accelerated(
    state: Path,
    *,
    rules: AcceleratorRules | None = None,
    survey: Survey = WITH_GPU,
    look: Callable[[], Survey] | None = None,
    measure: Callable[[Sequence[LoadedModel]], list[Measured]] = engines_are_fast,
    gpu_bytes: int = 1 << 30,
) -> Iterator[AcceleratedDevice]:
    """A device on ``state``, whose packages lie in ``state/models``; it has not started yet."""
    slots, memory, events = Slots(), HostMemory(limit_bytes=gpu_bytes), list[Event]()
    runtimes = RuntimesFile(state / RUNTIMES_FILE)
    accelerator = Accelerator(
        state,
        rules or AcceleratorRules(),
        look=look or (lambda: survey),
        open_memory=lambda _: memory,
    )
    acceleration = Acceleration(accelerator, runtimes, slots, tell=events.append, measure=measure)
    repository = Repository(slots, Catalogue(state / "models"), acceleration=acceleration)
    try:
        yield AcceleratedDevice(slots, repository, state / "models", runtimes, memory, events)
    finally:
        repository.close()
        slots.close()
        acceleration.let_go()
