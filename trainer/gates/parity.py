"""The parity gate: on the runtime that devices use, the exported model answers as the trained one at any batch size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from edge_agent.contract.errors import ShoalError
from edge_agent.contract.signature import Signature
from edge_agent.runtime.backend import InferenceBackend
from trainer.errors import ParityFailed
from trainer.front_end import FrontEnd

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule

BATCH_SIZES = (1, 2, 7, 32)
_RTOL, _ATOL = 1e-3, 1e-4
_SUM_ATOL = 1e-3


def check_parity(
    network: LightningModule,
    backend: InferenceBackend,
    inputs: Mapping[str, NDArray[Any]],
    *,
    batch_sizes: tuple[int, ...] = BATCH_SIZES,
) -> float:
    """Compare the two on real rows.

    Args:
        inputs: By name; axis 0 is N, at least 1; rows are repeated where a batch is larger.
    Returns:
        The largest absolute difference seen (about 1e-6 is usual).
    Raises:
        ParityFailed: They differ, or the model refuses a batch size; it names output, batch size and row.
    """
    largest = 0.0
    for size in batch_sizes:
        batch = {name: np.resize(array, (size, *array.shape[1:])) for name, array in inputs.items()}
        expected = trained_outputs(network, backend.signature, batch)
        try:
            found = backend.infer(batch)
        except ShoalError:
            raise
        except Exception as error:
            # The runtime's exceptions share no base class but this one.
            raise ParityFailed(
                f"batch of {size}: the exported model refuses it ({error}); was its batch axis fixed on export?"
            ) from error
        for name, array in expected.items():
            largest = max(largest, compare(name, f"batch of {size}", array, found[name]))
    return largest


def trained_outputs(
    network: LightningModule, signature: Signature, inputs: Mapping[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    """What the trained network answers, by output name."""
    encoded = FrontEnd(signature).encode(inputs)
    with torch.no_grad():
        found = network.eval()(*(torch.from_numpy(np.array(encoded[spec.name])) for spec in signature.inputs))
    outputs = found if isinstance(found, tuple) else (found,)
    if len(outputs) != len(signature.outputs):
        raise ParityFailed(f"forward gave {len(outputs)} outputs, the signature has {len(signature.outputs)}")
    return {spec.name: tensor.numpy() for spec, tensor in zip(signature.outputs, outputs, strict=True)}


def check_probabilities(name: str, found: NDArray[Any]) -> None:
    """Each row of a classification's output must be a probability distribution: devices take it for one.

    Args:
        name: Of the output; ``found``: what the model answered, [N, classes].
    Raises:
        ParityFailed: A value is not finite or not in 0..1, or a row's sum is not 1; it names the row.
    """
    values = found.astype(np.float64)
    finite: NDArray[np.bool_] = np.all(np.isfinite(values), axis=1)
    inside: NDArray[np.bool_] = np.all((values >= -_SUM_ATOL) & (values <= 1 + _SUM_ATOL), axis=1)
    sums = values.sum(axis=1)
    wrong = ~(finite & inside & (np.abs(sums - 1) <= _SUM_ATOL))
    if not wrong.any():
        return
    row = int(np.flatnonzero(wrong)[0])
    if not finite[row]:
        what = "holds values that are not finite"
    elif not inside[row]:
        what = f"holds values from {values[row].min():.3g} to {values[row].max():.3g}, not in 0..1"
    else:
        what = f"sums up to {sums[row]:.4g}, not to 1"
    raise ParityFailed(
        f"output '{name}' is no probability distribution: row {row} {what} ({int(wrong.sum())} of {len(values)} rows "
        "are wrong); return torch.softmax(logits, dim=-1) from forward"
    )


def compare(name: str, where: str, expected: NDArray[Any], found: NDArray[Any], *, exact: bool = True) -> float:
    """How far an output is from what the trained network gave.

    Args:
        where: On which rows, in words.
        exact: Whether they must be the same, floats within tolerance.
    Returns:
        The largest absolute difference; of what is no number, the share of unlike values.
    Raises:
        ParityFailed: The shapes or the kinds of value differ, or, where it is exact, the values; it names the row.
    """
    if found.shape != expected.shape or found.dtype.kind != expected.dtype.kind:
        raise ParityFailed(
            f"output '{name}', {where}: {found.dtype} of shape {found.shape}, trained {expected.dtype} of shape "
            f"{expected.shape}"
        )
    if expected.dtype.kind not in "fiu":
        wrong = np.asarray(found != expected, dtype=bool)
        difference = wrong.astype(np.float64)
        most = float(difference.mean()) if difference.size else 0.0
    else:
        difference = np.abs(found.astype(np.float64) - expected.astype(np.float64))
        tolerance = _ATOL + _RTOL * np.abs(expected) if expected.dtype.kind == "f" else np.zeros(expected.shape)
        wrong = ~((difference <= tolerance) | (np.isnan(expected) & np.isnan(found)))
        most = float(np.nanmax(difference, initial=0.0))
    if exact and wrong.any():
        row = int(np.argwhere(wrong)[0][0])
        raise ParityFailed(f"output '{name}', {where}, row {row}: off by {most:.2g} from the trained model")
    return most
