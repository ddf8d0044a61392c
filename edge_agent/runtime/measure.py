"""How long a model takes on each runtime, measured on its golden samples while it serves.

The runtimes take turns, so that whatever else the machine does meanwhile slows all of them alike.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.errors import ModelUnavailable
from edge_agent.runtime.choice import Candidate, Measured
from edge_agent.runtime.loaded import LoadedModel

_WARM_UP = 2
_MOST_RUNS = 50
# Of each runtime and size; and fewer runs than these say nothing.
_BUDGET_S = 1.0
_LEAST_RUNS = 3


def measure(models: Sequence[LoadedModel]) -> list[Measured]:
    """The median times of one package, loaded on several runtimes: of one row, and of the batch that it prefers.

    A runtime that fails on its golden samples takes infinitely long.

    Args:
        models: The same package, each on a runtime of its own; leased or not, they stay open meanwhile.
    Raises:
        ModelUnavailable: One was closed meanwhile.
    """
    golden, batch_rows = models[0].package.golden().inputs, _batch_rows(models[0])
    rows_us = _medians_us(models, golden, 1)
    batch_us = _medians_us(models, golden, batch_rows) if batch_rows else [0.0] * len(models)
    return [
        Measured(Candidate(each.runtime.name, each.runtime.precision), row, batch_rows, batch)
        for each, row, batch in zip(models, rows_us, batch_us, strict=True)
    ]


def patience_s(models: Sequence[LoadedModel]) -> float:
    """How long :func:`measure` may well take, going by what a row took when each model was loaded."""
    rows = 1 + _batch_rows(models[0])
    slow_us = sum(each.run_us for each in models if math.isfinite(each.run_us))
    return 2 * _BUDGET_S * len(models) + 2 * (_WARM_UP + _LEAST_RUNS) * rows * slow_us * 1e-6


def _batch_rows(loaded: LoadedModel) -> int:
    """Rows of the batch that it prefers; 0 where it asks for none."""
    batching = loaded.manifest.batching
    return max(batching.preferred_rows, default=batching.max_rows) if batching is not None else 0


def _medians_us(models: Sequence[LoadedModel], golden: dict[str, NDArray[Any]], rows: int) -> list[float]:
    raw = {name: np.resize(array, (rows, *array.shape[1:])) for name, array in golden.items()}
    times: list[list[float]] = [[] for _ in models]
    spent = [0.0] * len(models)
    for turn in range(_WARM_UP + _MOST_RUNS):
        waiting = [index for index in range(len(models)) if not _is_enough(times[index], spent[index])]
        if not waiting:
            break
        for index in waiting:
            took = _time_s(models[index], raw)
            spent[index] += took
            if turn >= _WARM_UP or not math.isfinite(took):
                times[index].append(took)
    return [sorted(each)[len(each) // 2] * 1e6 for each in times]


def _is_enough(times: Sequence[float], spent_s: float) -> bool:
    return len(times) >= _LEAST_RUNS and (spent_s > _BUDGET_S or not math.isfinite(times[-1]))


def _time_s(loaded: LoadedModel, raw: dict[str, NDArray[Any]]) -> float:
    try:
        inputs = loaded.check(raw).inputs
        begin = time.perf_counter()
        loaded.backend.infer(inputs)
        return time.perf_counter() - begin
    except ModelUnavailable:
        raise
    except Exception:  # noqa: BLE001 - whatever the runtime raises, it is not the one to choose
        return math.inf
