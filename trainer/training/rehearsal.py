"""A recipe's network tried on a few rows before it trains: what cannot be released is refused in seconds, not after."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.errors import ParityFailed, RecipeError
from trainer.gates.parity import check_probabilities
from trainer.recipe import Recipe

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule

_ROWS = 3


def rehearse(recipe: Recipe, network: LightningModule, inputs: Mapping[str, NDArray[Any]]) -> None:
    """Call the untrained network once, and compare what it gives with the signature.

    Args:
        inputs: Real rows by name, at least one; axis 0 is N.
    Raises:
        RecipeError: ``forward`` fails, or gives other outputs than ``model.toml`` says.
    """
    path = recipe.folder / "model.py"
    few = recipe.front_end.encode({name: np.resize(array, (_ROWS, *array.shape[1:])) for name, array in inputs.items()})
    training = network.training
    try:
        with torch.no_grad():
            found = recipe.released(network.eval())(
                *(torch.from_numpy(few[spec.name]) for spec in recipe.signature.inputs)
            )
    except RecipeError:
        raise
    except Exception as error:
        # Whatever the recipe's author wrote may fail in whatever way.
        raise RecipeError(blame(recipe, "forward failed on real rows", error)) from error
    network.train(training)
    outputs = found if isinstance(found, tuple) else (found,)
    if len(outputs) != len(recipe.signature.outputs):
        names = ", ".join(spec.name for spec in recipe.signature.outputs)
        raise RecipeError(f"{path}: forward gave {len(outputs)} outputs, model.toml has: {names}")
    for spec, tensor in zip(recipe.signature.outputs, outputs, strict=True):
        if not isinstance(tensor, torch.Tensor):
            raise RecipeError(f"{path}: forward gave {type(tensor).__name__} for '{spec.name}', not a tensor")
        want, have = (_ROWS, *spec.shape[1:]), tuple(tensor.shape)
        if len(want) != len(have) or any(a is not None and a != b for a, b in zip(want, have, strict=True)):
            told = [-1 if axis is None else axis for axis in spec.shape]
            raise RecipeError(
                f"{path}: forward gave '{spec.name}' with the shape {[-1, *have[1:]]}, model.toml says {told}"
            )
        array = tensor.numpy()
        if array.dtype != spec.datatype.numpy:
            raise RecipeError(f"{path}: forward gave '{spec.name}' as {array.dtype}, model.toml says {spec.datatype}")
        if spec.name == recipe.task.output:
            try:
                check_probabilities(spec.name, array)
            except ParityFailed as error:
                raise RecipeError(f"{path}: {error}") from error


def blame(recipe: Recipe, what: str, error: BaseException) -> str:
    """A sentence that names the recipe's code and what it raised; the first line alone of what may be pages."""
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{recipe.folder / 'model.py'}: Model {what}: {type(error).__name__}: {first} (--debug shows where)"
