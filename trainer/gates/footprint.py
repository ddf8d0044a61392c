"""What a model costs where it is served: time and memory of each of its forms, measured in a process of their own.

A training process is no place to measure: torch's threads and memory would be counted in. The forms take turns, so that
whatever else the machine does meanwhile slows all of them alike; how many times faster one is comes from the ratios of
neighbouring turns, and from the figures of neither alone.
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
from edge_agent.contract.manifest import FULL_PRECISION, Batching
from edge_agent.runtime.memory import give_back, resident_bytes
from edge_agent.runtime.onnx import OnnxBackend
from edge_agent.runtime.onnx_session import take_own_memory
from edge_agent.runtime.package import Package
from trainer.errors import MeasurementFailed
from trainer.gates.statistics import median_interval
from trainer.own_module import own_module

_START_LIMIT_S = 60.0
# Of each form and size; a p99 needs some hundred runs, of a slow model there are fewer.
_BUDGET_S = 0.4
_MOST_ROUNDS, _LEAST_ROUNDS, _BLOCK = 50, 5, 20
_WARM_UP = 5
_CONFIDENCE = 0.9
# Of the times of one form: less than the median, as what else the machine does only adds.
_TYPICAL = 0.25


class Speedup(msgspec.Struct, frozen=True, kw_only=True):
    """How many times as fast as full precision: the median over turns, and its interval (90 %)."""

    times: float
    low: float
    high: float


_NONE = Speedup(times=1.0, low=1.0, high=1.0)


class Footprint(msgspec.Struct, frozen=True, kw_only=True):
    """What one form of a model takes.

    Args:
        row_us, p99_us: Typical and 99th percentile time of a single row, in microseconds.
        batch_rows, batch_us: Rows of the batch that the model prefers, and its typical time.
        memory_bytes: What loading it and running both has taken.
        row_speedup, batch_speedup: Against full precision, for a single row and for that batch.
    """

    row_us: float
    p99_us: float
    batch_rows: int
    batch_us: float
    memory_bytes: int
    row_speedup: Speedup = _NONE
    batch_speedup: Speedup = _NONE


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
            own_module("trainer.gates.footprint", str(package.folder)),
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
    rows, batches = (_rounds(list(backends.values()), inputs) for inputs in (row, batch))
    full = list(backends).index(FULL_PRECISION)
    found: dict[str, Footprint] = {}
    for at, name in enumerate(backends):
        alone = np.concatenate([each[at] for each in rows])
        together = np.concatenate([each[at] for each in batches])
        found[name] = Footprint(
            row_us=float(np.quantile(alone, _TYPICAL)),
            p99_us=float(np.quantile(alone, 0.99)),
            batch_rows=size,
            batch_us=float(np.quantile(together, _TYPICAL)),
            memory_bytes=memory[name],
            row_speedup=speedup(rows, at, full),
            batch_speedup=speedup(batches, at, full),
        )
    return found


def speedup(rounds: Sequence[Sequence[Sequence[float]]], at: int, full: int) -> Speedup:
    """How many times as fast one form is as another.

    A burst of something else slows a whole turn, or the turns of a whole second: the ratio of two turns that follow
    each other hardly sees it, and their median does not see what is left.

    Args:
        rounds: Of each round the times of each form.
        at, full: Which form, and which one it is held against.
    """
    ratios = [float(np.median(each[full]) / np.median(each[at])) for each in rounds]
    low, high = median_interval(ratios, confidence=_CONFIDENCE)
    return Speedup(times=float(np.median(ratios)), low=low, high=high)


def _resized(inputs: Mapping[str, NDArray[Any]], rows: int) -> dict[str, NDArray[Any]]:
    return {name: np.resize(array, (rows, *array.shape[1:])) for name, array in inputs.items()}


def _rounds(backends: Sequence[OnnxBackend], inputs: dict[str, NDArray[Any]]) -> list[list[list[float]]]:
    """Microseconds of each, in turns of some runs: one run each would measure how fast caches are filled."""
    rounds: list[list[list[float]]] = []
    end = time.perf_counter() + _BUDGET_S * len(backends)
    while len(rounds) < _LEAST_ROUNDS or (len(rounds) < _MOST_ROUNDS and time.perf_counter() < end):
        times: list[list[float]] = [[] for _ in backends]
        # Whoever comes second finds the machine as the first has left it: they take turns in that too.
        order = range(len(backends)) if len(rounds) % 2 else reversed(range(len(backends)))
        for at in order:
            slow = bool(rounds) and rounds[-1][at][-1] * _BLOCK > _BUDGET_S * 1e6
            for run in range(1 if slow else _WARM_UP + _BLOCK):
                begin = time.perf_counter()
                backends[at].infer(inputs)
                took = (time.perf_counter() - begin) * 1e6
                if slow or run >= _WARM_UP:
                    times[at].append(took)
        rounds.append(times)
    return rounds


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
