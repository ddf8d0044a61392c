"""Lightning without what it does at each step for nobody: of a small network's step it would take a tenth.

What it does for the recipe's author stays as it is: each hook is called, and each of theirs that is overridden counts.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
from pytorch_lightning.profilers import PassThroughProfiler
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch import nn

# What could change a batch on its way to where it is trained on.
_TRANSFER_HOOKS = ("transfer_batch_to_device", "on_after_batch_transfer")
# Lightning notes on the module whose hook runs, forty times a step.
_CURRENT_HOOK = "_current_fx_name"


class NoProfiler(PassThroughProfiler):
    """Measures nothing, as Lightning's own, but without a generator around each of thirty calls a step."""

    _nothing = contextlib.nullcontext()

    if not TYPE_CHECKING:  # there it is a generator

        def profile(self, action_name: str) -> contextlib.AbstractContextManager[None]:  # noqa: ARG002
            """A context that does nothing."""
            return self._nothing


class _InPlace:
    """Batches are where the network is: there is nothing to search them for."""

    def batch_to_device(self, batch: Any, device: Any = None, dataloader_idx: int = 0) -> Any:  # noqa: ARG002
        """The batch."""
        return batch


class OneProcess(_InPlace, SingleDeviceStrategy):
    """One process on the processor."""


class SeveralProcesses(_InPlace, DDPStrategy):
    """Several processes on processors."""


def moves_batches(network: pl.LightningModule) -> bool:
    """Whether the recipe has a say in how batches come to the device."""
    return any(is_overridden(hook, network) for hook in _TRANSFER_HOOKS)


def lighten(network: pl.LightningModule) -> None:
    """Spare an author's network what costs Lightning most: it stays what it was, of a class derived from its own."""
    kind: Any = type(network)
    known: dict[str, Any] = {"__module__": kind.__module__, "__doc__": kind.__doc__, "__qualname__": kind.__qualname__}
    if kind.__setattr__ is nn.Module.__setattr__:
        known["__setattr__"] = _set_attribute
    if inspect.isfunction(step := kind.training_step):
        known["training_step"] = _with_known_signature(step)
    network.__class__ = type(kind.__name__, (kind,), known)


def _set_attribute(self: nn.Module, name: str, value: Any) -> None:
    if name == _CURRENT_HOOK:
        # torch would look for it among parameters, modules and buffers first.
        self.__dict__[name] = value
    else:
        nn.Module.__setattr__(self, name, value)


def _with_known_signature(step: Any) -> Any:
    """Lightning reads the signature of ``training_step`` at each step, whether it wants the batch's number."""

    def known(*args: Any, **kwargs: Any) -> Any:
        return step(*args, **kwargs)

    functools.update_wrapper(known, step)
    known.__signature__ = inspect.signature(step)  # type: ignore[attr-defined]
    del known.__wrapped__  # type: ignore[attr-defined]  # what is wrapped would be read instead
    return known
