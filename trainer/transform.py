"""What a recipe does to inputs before its network: the same in training, validation and the exported model.

It is torch code, so it is exported with the network as one graph: there is no second implementation on devices.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from trainer.errors import RecipeError

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule

# A submodule of the network that is exported, so that constants of the transform are among its tensors.
_MEMBER = "input_transform"


class Transformation:
    """A recipe's ``Transform``, applied to inputs by name.

    Args:
        module: Takes a dictionary of inputs as the contract lets them through, axis 0 is N, and gives that of what the
            network takes, in the order of ``forward``'s arguments.
        where: The recipe's file, for errors.
    """

    def __init__(self, module: nn.Module, where: str) -> None:
        self.module, self._where = module.eval(), where

    @classmethod
    def of(cls, kind: Any, options: Mapping[str, Any], where: str) -> Transformation:
        """Made of the class that a recipe gives.

        Raises:
            RecipeError: It is no module, or has weights to learn.
        """
        if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
            raise RecipeError(f"{where}: Transform must be a class derived from torch.nn.Module")
        made: Any = kind
        found = made(options=options)
        if learnt := [name for name, _ in found.named_parameters()]:
            raise RecipeError(
                f"{where}: Transform has weights ({', '.join(learnt)}), but it is not trained; weights belong in "
                "Model, constants in register_buffer"
            )
        return cls(found, where)

    def __call__(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The inputs as the network takes them.

        Raises:
            RecipeError: What came is no dictionary.
        """
        with torch.no_grad():
            return self._applied(self.module, dict(inputs))

    def before(self, network: LightningModule, names: tuple[str, ...]) -> LightningModule:
        """The network with this before its ``forward``: as it is exported, and held against what was exported.

        Args:
            names: Of the inputs, in the order of the contract.
        Returns:
            A copy that shares the network's weights, under their own names.
        """
        kind: Any = type(network)
        applied = self._applied

        def forward(self: Any, *inputs: torch.Tensor) -> Any:
            found = applied(getattr(self, _MEMBER), dict(zip(names, inputs, strict=True)))
            return kind.forward(self, *found.values())

        shown = copy.copy(network)
        shown.__dict__["_modules"] = dict(network.__dict__["_modules"])
        shown.add_module(_MEMBER, self.module)
        known = {"forward": forward, "__module__": kind.__module__, "__qualname__": kind.__qualname__}
        shown.__class__ = type(kind.__name__, (kind,), known)
        return shown

    def _applied(self, module: nn.Module, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        found = module(inputs)
        if not isinstance(found, dict):
            raise RecipeError(f"{self._where}: Transform gave {type(found).__name__}, not a dictionary of inputs")
        return found
