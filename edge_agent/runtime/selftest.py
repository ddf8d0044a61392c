"""Whether a model answers on this machine as it did when it was packaged."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.checking import InputCheck
from edge_agent.contract.errors import ModelUnavailable, OutOfMemory, SelfTestFailed, SignatureMismatch
from edge_agent.runtime.backend import InferenceBackend, RunCancelled
from edge_agent.runtime.guard import RunGuard
from edge_agent.runtime.loaded import LoadedModel
from edge_agent.runtime.memory import is_short_of_memory
from edge_agent.runtime.package import Golden, Tolerance
from edge_agent.runtime.pipeline import PipelineBackend

_TOLERANCE = Tolerance()


def prove(loaded: LoadedModel, *, guard: RunGuard | None = None) -> None:
    """Test a loaded model on the golden samples of its package.

    Those of a pipeline are what its steps answered when it was made. Of others, which have proven themselves, it is
    only required that they run together: a step may be updated, and its pipeline must be loaded again all the same.

    Args:
        guard: See :func:`self_test`.
    Raises:
        SelfTestFailed, OutOfMemory, ModelUnavailable: See :func:`self_test`.
    """
    backend = loaded.backend
    values = not isinstance(backend, PipelineBackend) or backend.is_as_made
    max_run_s = loaded.manifest.max_run_s
    rtol, atol = loaded.tolerance
    self_test(backend, loaded.golden(), values=values, rtol=rtol, atol=atol, max_run_s=max_run_s, guard=guard)


def self_test(
    backend: InferenceBackend,
    golden: Golden,
    *,
    values: bool = True,
    rtol: float = _TOLERANCE.rtol,
    atol: float = _TOLERANCE.atol,
    max_run_s: float = 30.0,
    guard: RunGuard | None = None,
) -> None:
    """Run the golden inputs and compare with the golden outputs: floats within tolerance, all else exactly.

    Args:
        values: Whether values are compared; else shapes and datatypes alone.
        max_run_s: Seconds after which the run counts as hung, and is broken off.
        guard: Breaks it off; one of its own where None.
    Raises:
        SelfTestFailed: The model fails on them, or hangs, or an output differs; it names output, row and difference.
        OutOfMemory: There is no memory left to run them: the package is not to blame.
        ModelUnavailable: The agent stops, or a step of a pipeline is not loaded now: the package is not to blame.
    """
    try:
        inputs = InputCheck(backend.signature)(golden.inputs).inputs
        with (guard or RunGuard()).within(backend, max_run_s):
            outputs = backend.infer(inputs)
    except ModelUnavailable:
        raise
    except SignatureMismatch as error:
        raise SelfTestFailed(f"the golden samples break the model's own signature: {error}") from error
    except RunCancelled as error:
        raise SelfTestFailed(
            f"the model hangs on its golden samples: broken off, its limit is {max_run_s:g} s"
        ) from error
    except Exception as error:
        if is_short_of_memory(error):
            raise OutOfMemory(f"there is no memory left to run the golden samples: {error}") from error
        # Whatever the runtime raises, on samples that once passed: the model does not run here.
        raise SelfTestFailed(f"the model fails on its golden samples: {error}") from error
    for name, expected in golden.outputs.items():
        if name not in outputs:
            raise SelfTestFailed(f"output '{name}': the model does not give it; it gives: {sorted(outputs)}")
        _compare_form(name, outputs[name], expected)
        if values:
            _compare(name, outputs[name], expected, rtol=rtol, atol=atol)


def deviation(loaded: LoadedModel) -> float:
    """How far a model's floats are from the golden ones: the largest difference as a share of its tolerance, 0..1.

    Raises:
        Exception: Whatever the runtime raises.
    """
    golden, (rtol, atol) = loaded.golden(), loaded.tolerance
    outputs = loaded.backend.infer(loaded.check(golden.inputs).inputs)
    shares = [0.0]
    for name, expected in golden.outputs.items():
        if expected.dtype.kind == "f" and expected.size:
            difference = np.abs(outputs[name].astype(np.float64) - expected)
            shares.append(float(np.nanmax(difference / (atol + rtol * np.abs(expected)), initial=0.0)))
    return max(shares)


def _compare_form(name: str, actual: NDArray[Any], expected: NDArray[Any]) -> None:
    if actual.shape != expected.shape:
        raise SelfTestFailed(f"output '{name}': shape {list(actual.shape)}, expected {list(expected.shape)}")
    if actual.dtype.kind != expected.dtype.kind:
        raise SelfTestFailed(f"output '{name}': datatype {actual.dtype}, expected {expected.dtype}")


def _compare(name: str, actual: NDArray[Any], expected: NDArray[Any], *, rtol: float, atol: float) -> None:
    if actual.dtype.kind != "f":
        wrong = np.asarray(actual != expected, dtype=bool)
        if wrong.any():
            at = _first(wrong)
            raise SelfTestFailed(f"output '{name}', row {at[0]}: {actual[at]!r}, expected {expected[at]!r}")
        return
    wrong = ~np.isclose(actual, expected, rtol=rtol, atol=atol, equal_nan=True)
    if wrong.any():
        at = _first(wrong)
        difference = abs(float(actual[at]) - float(expected[at]))
        raise SelfTestFailed(
            f"output '{name}', row {at[0]}: {float(actual[at]):.6g} at {list(at)}, expected {float(expected[at]):.6g}: "
            f"a difference of {difference:.3g} ({int(wrong.sum())} of {wrong.size} values differ)"
        )


def _first(mask: NDArray[np.bool_]) -> tuple[int, ...]:
    return tuple(int(axis[0]) for axis in np.nonzero(mask))
