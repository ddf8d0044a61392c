"""Whether a model answers a row the same in company as alone: only then may requests share a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.checking import InputCheck
from edge_agent.contract.errors import ManifestError
from edge_agent.contract.manifest import Manifest
from edge_agent.runtime.backend import InferenceBackend, RunCancelled
from edge_agent.runtime.package import Golden

_ROWS = 3
# Requests that meet in one turn of the event loop run together in at most so many rows, and at most about so long.
_MOST_TOGETHER, _TOGETHER_US = 32, 500.0
# Of a slower model a few, where the loop may be held so long. A run goes no faster for it (a CNN of 0.87 ms takes as
# long for each of four rows, and 0.96 for each of sixteen), but what is done once a run, with cold caches, is shared.
# More take memory, and keep the first of them waiting.
_FEW_TOGETHER = 4
# Larger rows come in several pieces, and so never together with others.
_JOINED_BYTES = 64 * 1024
# Other kernels for other shapes round differently; int8 models by a step of their scale.
_RTOL, _ATOL = 2e-2, 1e-3
Tensors = Mapping[str, NDArray[Any]]


def check_batchable(backend: InferenceBackend, check: InputCheck, manifest: Manifest, golden: Golden) -> None:
    """Refuse ``batching`` for a model whose rows are not independent; nothing to do where it is not asked for.

    The first golden rows are run together and one by one. A model that reduces over its rows, or normalises by what
    else is in the batch, would give one application what belongs to another.

    Raises:
        ManifestError: It names the output and what is wrong with it; or the run was broken off.
    """
    if manifest.batching is None:
        return
    for spec in manifest.signature.inputs:
        if spec.shape[0] is not None:
            raise ManifestError(
                f"batching: input '{spec.name}' has exactly {spec.shape[0]} rows; export the model with a dynamic "
                "batch axis, or take 'batching' out of the manifest"
            )
    rows = min(_ROWS, len(next(iter(golden.inputs.values()))))
    try:
        together = backend.infer(check(_cut(golden.inputs, 0, rows)).inputs)
        alone = [backend.infer(check(_cut(golden.inputs, row, row + 1)).inputs) for row in range(rows)]
    except RunCancelled as error:
        # Never unproven: what a batch mixes up belongs to different applications.
        raise ManifestError(
            f"batching: whether rows are independent could not be seen within max_run_s, {manifest.max_run_s:g} s; "
            "raise it, or take 'batching' out of the manifest"
        ) from error
    except Exception:  # noqa: BLE001 - the self-test runs the same rows, and says what is wrong
        return
    for name, array in together.items():
        for row in range(rows):
            _compare(name, row, rows, array, alone[row][name])


def rows_together(
    backend: InferenceBackend,
    check: InputCheck,
    manifest: Manifest,
    golden: Golden,
    *,
    run_us: float,
    longest_us: float,
) -> int:
    """How many rows of different requests may run at once without anybody being able to tell; 1 for none.

    Asked of every model, whether or not its manifest speaks of batches, so nothing less will do than the very bits of
    the answers: golden rows and, where the inputs are floats, smaller ones and zeros among them are run one by one
    and in each size up to the largest. One golden row cannot tell whether its company matters.

    Args:
        run_us: What a run of one row takes; ``longest_us``: for how long the event loop may be held.
    """
    row_us = max(run_us, 1e-3)
    most = max(min(_MOST_TOGETHER, int(_TOGETHER_US / row_us)), min(_FEW_TOGETHER, int(longest_us / row_us)))
    golden_rows = len(next(iter(golden.inputs.values())))
    signature = manifest.signature
    by_row = all(spec.shape and spec.shape[0] is None for spec in (*signature.inputs, *signature.outputs))
    if sum(array.nbytes for array in golden.inputs.values()) > _JOINED_BYTES * golden_rows:
        return 1
    # A pipeline's steps may be replaced by others at any time.
    if most < 2 or golden_rows < 2 or not by_row or manifest.batching is not None or manifest.pipeline:
        return 1
    try:
        rows = _company(check(golden.inputs).inputs, most)
        alone = [backend.infer(_cut(rows, row, row + 1)) for row in range(most)]
        for size in range(2, most + 1):
            if not _same_bits(backend.infer(_cut(rows, 0, size)), alone[:size]):
                return 1
    except Exception:  # noqa: BLE001 - whatever it is, such a model runs each request by itself
        return 1
    return most


def _company(inputs: Tensors, rows: int) -> dict[str, NDArray[Any]]:
    """So many rows, different from one another: a scale or a norm taken over all of them would show."""
    found: dict[str, NDArray[Any]] = {}
    for name, array in inputs.items():
        made = np.resize(array, (rows, *array.shape[1:]))
        if array.dtype.kind == "f":
            made[2::4] /= 2
            made[3::8] = 0
        found[name] = made
    return found


def _same_bits(together: Tensors, alone: Sequence[Tensors]) -> bool:
    return all(
        len(array) == len(alone)
        and array.dtype.kind != "O"
        and all(array[row : row + 1].tobytes() == each[name].tobytes() for row, each in enumerate(alone))
        for name, array in together.items()
    )


def _cut(inputs: Tensors, begin: int, end: int) -> dict[str, NDArray[Any]]:
    return {name: array[begin:end] for name, array in inputs.items()}


def _compare(name: str, row: int, rows: int, together: NDArray[Any], alone: NDArray[Any]) -> None:
    by_row = together.ndim > 0 and alone.ndim > 0 and (len(together), len(alone)) == (rows, 1)
    if not by_row:
        raise ManifestError(
            f"batching: output '{name}' has shape {list(together.shape)} for {rows} rows and {list(alone.shape)} for "
            "one: it is not by row; take 'batching' out of the manifest"
        )
    shared, own = together[row], alone[0]
    if shared.dtype.kind == "f":
        same = shared.shape == own.shape and np.allclose(shared, own, rtol=_RTOL, atol=_ATOL, equal_nan=True)
    elif shared.dtype.kind == "O":
        same = np.array_equal(shared, own)
    else:
        # A class, or a quantised number: where two are equally near, the last digit of the run decides.
        same = shared.shape == own.shape and bool(np.mean(shared == own) >= 0.9)
    if not same:
        raise ManifestError(
            f"batching: output '{name}', row {row}: differs when the row is run alone, so that it depends on the other "
            "rows of its batch; take 'batching' out of the manifest"
        )
