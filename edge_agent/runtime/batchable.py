"""Whether a model answers a row the same in company as alone: only then may requests share a batch."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.checking import InputCheck
from edge_agent.contract.errors import ManifestError
from edge_agent.contract.manifest import Manifest
from edge_agent.runtime.backend import InferenceBackend, RunCancelled
from edge_agent.runtime.package import Golden

_ROWS = 3
# Other kernels for other shapes round differently; int8 models by a step of their scale.
_RTOL, _ATOL = 2e-2, 1e-3


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
        together = backend.infer(check(_cut(golden, 0, rows)).inputs)
        alone = [backend.infer(check(_cut(golden, row, row + 1)).inputs) for row in range(rows)]
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


def _cut(golden: Golden, begin: int, end: int) -> dict[str, NDArray[Any]]:
    return {name: array[begin:end] for name, array in golden.inputs.items()}


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
