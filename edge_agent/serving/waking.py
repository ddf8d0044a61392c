"""Leases of models that may be asleep: who asks for one wakes it."""

from __future__ import annotations

from edge_agent.contract.errors import ModelUnavailable
from edge_agent.runtime.slots import Lease, Slots
from edge_agent.serving.inference import Inference, Waker


async def lease_awake(
    slots: Slots, repository: Waker, inference: Inference, model: str, version: str | None = None
) -> Lease:
    """A lease, once the model is loaded; a second time if it falls asleep again meanwhile.

    Raises:
        UnknownModel, ModelUnavailable: See :meth:`edge_agent.runtime.slots.Slots.lease`.
        ShoalError: It cannot be loaded.
    """
    for _ in range(2):
        try:
            return slots.lease(model, version)
        except ModelUnavailable as error:
            if not error.asleep:
                raise
        await inference.wake(repository, model, version)
    return slots.lease(model, version)
