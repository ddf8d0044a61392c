"""Which runtime is chosen, and what is said of it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.runtime.choice import CPU, CUDA, WORTH_IT, Candidate, Measured, Refused, choose

ON_CPU = Measured(Candidate(CPU), 6_100.0)
ENGINE = Candidate("tensorrt", "fp16")


def test_the_fastest_is_chosen_and_its_figures_are_said() -> None:
    choice = choose([ON_CPU, Measured(Candidate(CUDA), 1_800.0), Measured(ENGINE, 900.0)])
    assert choice.best.candidate == ENGINE
    assert choice.reason == "tensorrt fp16: 0.90 ms against 1.8 ms on onnxruntime-cuda, 6.1 ms on onnxruntime-cpu"


def test_what_serves_stays_where_another_is_hardly_faster() -> None:
    choice = choose([ON_CPU, Measured(ENGINE, ON_CPU.row_us / WORTH_IT)])
    assert choice.best is ON_CPU
    assert choice.reason == "onnxruntime-cpu: 6.1 ms against 5.8 ms on tensorrt fp16"


def test_a_runtime_that_was_asked_for_is_taken_though_it_is_slower() -> None:
    slow = Measured(Candidate("tensorrt-rtx", "fp32"), 9_000.0)
    assert choose([ON_CPU, slow], wanted="tensorrt").best is slow
    assert choose([ON_CPU], wanted="tensorrt").best is ON_CPU, "it could not run the model"


def test_a_batch_counts_as_much_as_a_row() -> None:
    on_cpu = Measured(Candidate(CPU), 100.0, batch_rows=16, batch_us=1_600.0)
    choice = choose([on_cpu, Measured(ENGINE, 150.0, batch_rows=16, batch_us=400.0)])
    assert choice.best.candidate == ENGINE, "half slower for a row, four times as fast for sixteen"
    assert choice.reason == (
        "tensorrt fp16: 0.15 ms against 0.10 ms on onnxruntime-cpu; 16 rows: 0.40 ms against 1.6 ms"
    )


def test_what_was_refused_is_said_with_why() -> None:
    alone = choose([ON_CPU], [Refused(ENGINE, "no kernel for node 'Loop'")])
    assert (alone.best, alone.reason) == (ON_CPU, "tensorrt fp16 is not used: no kernel for node 'Loop'")


def test_a_model_that_failed_where_it_was_measured_is_never_chosen_over_one_that_answers() -> None:
    choice = choose([Measured(Candidate(CPU), math.inf), Measured(ENGINE, 50_000.0)])
    assert choice.best.candidate == ENGINE
    assert choice.reason == "tensorrt fp16: 50 ms against no answer on onnxruntime-cpu"


def test_nothing_measured_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="nothing was measured"):
        choose([])


@given(st.lists(st.floats(1.0, 1e7), min_size=1, max_size=5))
def test_nothing_is_chosen_that_is_clearly_slower_than_another(costs: list[float]) -> None:
    choice = choose([Measured(Candidate(f"runtime-{index}"), cost) for index, cost in enumerate(costs)])
    assert choice.best.cost <= min(costs) * WORTH_IT
