"""Timing one package on several runtimes."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from numpy.typing import NDArray

from edge_agent.contract.errors import ModelUnavailable
from edge_agent.contract.manifest import Batching
from edge_agent.contract.messages import ReportedRuntime
from edge_agent.runtime.choice import CPU, Candidate
from edge_agent.runtime.loaded import OtherRuntime, load
from edge_agent.runtime.measure import measure, patience_s
from edge_agent.runtime.onnx import OnnxBackend
from tests.fakes.packages import make_package

SLOW = ReportedRuntime(name="tensorrt", precision="fp16")


class SlowBackend(OnnxBackend):
    """Sleeps for 5 ms and one per row; fails on batches when told to."""

    fails_from_rows = 1 << 30

    def infer(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        rows = len(next(iter(inputs.values())))
        if rows >= self.fails_from_rows:
            raise RuntimeError("too many rows for this engine")
        time.sleep(0.005 + 0.001 * rows)
        return super().infer(inputs)


def test_rows_and_preferred_batches_are_timed_on_each_runtime(tmp_path: Path) -> None:
    package = make_package(tmp_path / "digits", batching=Batching(max_rows=16, preferred_rows=(4, 8)))
    on_cpu, slow = load(package), load(package, runtime=OtherRuntime(lambda: SlowBackend(package), SLOW))
    first, second = measure([on_cpu, slow])
    assert (first.candidate, second.candidate) == (Candidate(CPU), Candidate("tensorrt", "fp16"))
    assert (first.batch_rows, second.batch_rows) == (8, 8)
    assert second.row_us > 5_000
    assert second.batch_us > 12_000
    assert first.row_us < second.row_us
    on_cpu.close()
    slow.close()


def test_who_watches_over_a_measurement_has_more_patience_with_slow_models(tmp_path: Path) -> None:
    package = make_package(tmp_path / "digits", batching=Batching(max_rows=8))
    on_cpu, engine = load(package), load(package, runtime=OtherRuntime(lambda: SlowBackend(package), SLOW))
    on_cpu.run_us, engine.run_us = 2e6, 1e4  # 2 s a row, 16 s a batch
    assert patience_s([on_cpu, engine]) > 5 * (2 + 16)
    on_cpu.run_us = math.inf
    assert patience_s([on_cpu, engine]) < 10
    on_cpu.close()
    engine.close()


def test_a_model_without_batching_is_timed_by_the_row_alone(tmp_path: Path) -> None:
    loaded = load(make_package(tmp_path / "digits"))
    (measured,) = measure([loaded])
    assert (measured.batch_rows, measured.batch_us) == (0, 0.0)
    loaded.close()


def test_a_runtime_that_fails_takes_for_ever_and_one_that_is_closed_ends_the_measurement(tmp_path: Path) -> None:
    package = make_package(tmp_path / "digits", batching=Batching(max_rows=8))
    backend = SlowBackend(package)
    loaded = load(package, runtime=OtherRuntime(lambda: backend, SLOW))
    backend.fails_from_rows = 8
    (measured,) = measure([loaded])
    assert math.isfinite(measured.row_us)
    assert measured.batch_us == math.inf == measured.cost
    loaded.close()
    with pytest.raises(ModelUnavailable):
        measure([loaded])
