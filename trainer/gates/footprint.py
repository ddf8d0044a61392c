"""What a model costs where it is served: time and memory of each of its forms, measured in a process of their own.

A training process is no place to measure: torch's threads and memory would be counted in. The forms take turns, so that
whatever else the machine does meanwhile slows all of them alike.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.checking import InputCheck
from edge_agent.contract.errors import ShoalError
from edge_agent.contract.manifest import Batching
from edge_agent.runtime.memory import give_back, resident_bytes
from edge_agent.runtime.onnx import OnnxBackend
from edge_agent.runtime.onnx_session import take_own_memory
from edge_agent.runtime.package import Package
from trainer.errors import MeasurementFailed

_START_LIMIT_S = 60.0
# Of each form and size; a p99 needs some hundred runs, of a slow model there are fewer.
_BUDGET_S = 0.4
_MOST_RUNS, _LEAST_RUNS, _BLOCK = 1_000, 5, 20
_WARM_UP = 5
# Of the times of one form: less than the median, as what else the machine does only adds.
_TYPICAL = 0.25


class Footprint(msgspec.Struct, frozen=True, kw_only=True):
    """What one form of a model takes.

    Args:
        row_us, p99_us: Typical and 99th percentile time of a single row, in microseconds.
        batch_rows, batch_us: Rows of the batch that the model prefers, and its typical time.
        memory_bytes: What loading it and running both has taken.
    """

    row_us: float
    p99_us: float
    batch_rows: int
    batch_us: float
    memory_bytes: int


def preferred_rows(batching: Batching | None) -> int:
    """Rows of the batch that a model prefers; 16 where it asks for none."""
    return 16 if batching is None else max(batching.preferred_rows, default=batching.max_rows)


def measure(package: Package) -> dict[str, Footprint]:
    """Each variant's footprint on this machine, one thread each, on the package's golden samples.

    Raises:
        MeasurementFailed: The process ended without an answer.
    """
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(each for each in (root, os.environ.get("PYTHONPATH", "")) if each)
    limit_s = _START_LIMIT_S + 20 * package.manifest.max_run_s
    try:
        done = subprocess.run(
            [sys.executable, "-m", "trainer.gates.footprint", str(package.folder)],
            env=os.environ | {"PYTHONPATH": path},
            capture_output=True,
            timeout=limit_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise MeasurementFailed(
            f"{package.folder}: not measured within {limit_s:.0f} s: is the model so slow?"
        ) from error
    if done.returncode:
        words = done.stderr.decode(errors="replace").strip().splitlines()[-3:]
        raise MeasurementFailed(f"{package.folder}: the process that measures it failed: {' | '.join(words)}")
    return msgspec.json.decode(done.stdout, type=dict[str, Footprint])


def measure_here(package: Package) -> dict[str, Footprint]:
    """As :func:`measure`, in this process."""
    take_own_memory()
    manifest = package.manifest
    golden = InputCheck(manifest.signature)(package.golden().inputs).inputs
    size = preferred_rows(manifest.batching)
    row, batch = _resized(golden, 1), _resized(golden, size)
    backends: dict[str, OnnxBackend] = {}
    memory: dict[str, int] = {}
    for name in sorted(manifest.variants):
        give_back()
        before = resident_bytes()
        backends[name] = OnnxBackend(package, variant=name)
        for inputs in (row, batch):
            backends[name].infer(inputs)
        memory[name] = max(0, resident_bytes() - before)
    rows_us, batches_us = (_times_us(list(backends.values()), inputs) for inputs in (row, batch))
    return {
        name: Footprint(
            row_us=float(np.quantile(alone, _TYPICAL)),
            p99_us=float(np.quantile(alone, 0.99)),
            batch_rows=size,
            batch_us=float(np.quantile(together, _TYPICAL)),
            memory_bytes=memory[name],
        )
        for name, alone, together in zip(backends, rows_us, batches_us, strict=True)
    }


def _resized(inputs: Mapping[str, NDArray[Any]], rows: int) -> dict[str, NDArray[Any]]:
    return {name: np.resize(array, (rows, *array.shape[1:])) for name, array in inputs.items()}


def _times_us(backends: Sequence[OnnxBackend], inputs: dict[str, NDArray[Any]]) -> list[list[float]]:
    """Times of each, in turns of some runs: one run each would measure how fast caches are filled."""
    times: list[list[float]] = [[] for _ in backends]
    end = time.perf_counter() + _BUDGET_S * len(backends)
    while len(times[-1]) < _LEAST_RUNS or (len(times[-1]) < _MOST_RUNS and time.perf_counter() < end):
        for backend, own in zip(backends, times, strict=True):
            slow = bool(own) and own[-1] * _BLOCK > _BUDGET_S * 1e6
            for run in range(1 if slow else _WARM_UP + _BLOCK):
                begin = time.perf_counter()
                backend.infer(inputs)
                took = (time.perf_counter() - begin) * 1e6
                if slow or run >= _WARM_UP:
                    own.append(took)
    return times


def main() -> int:
    """Print what :func:`measure_here` finds of the package folder in the first argument, as JSON."""
    try:
        found = measure_here(Package.open(Path(sys.argv[1]), verify=False))
    except ShoalError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return error.exit_code
    sys.stdout.buffer.write(msgspec.json.encode(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
