"""The client of a device's models for programs beside the agent: frames over its unix socket.

::

    from edge_agent.client import Client

    with Client("/run/shoal/frames.sock") as client:
        answer = client.infer("digits", {"image": image})  # image: float32[N, 64]
        answer.outputs["probabilities"]                    # float32[N, 10]

It needs numpy and msgspec, and none of what runs models. Errors are of the same class as in the agent, a
``CallerError`` where the request is to blame; each can be imported from here (:mod:`edge_agent.contract.errors` draws
their tree).
"""

from __future__ import annotations

from edge_agent.client.answers import Answer, InSharedMemory, ModelMetadata
from edge_agent.client.async_client import AsyncClient
from edge_agent.client.sync_client import Client
from edge_agent.contract.errors import (
    BudgetExceeded,
    Busy,
    CallerError,
    DeadlineExceeded,
    DeviceError,
    Forbidden,
    MalformedRequest,
    MessageError,
    ModelFailed,
    ModelUnavailable,
    NetworkError,
    OutOfMemory,
    QuotaExceeded,
    ShoalError,
    SignatureMismatch,
    StorageFull,
    StorageNotWritable,
    Unauthenticated,
    UnknownModel,
    UnknownRegion,
    UnknownRequest,
    Unsupported,
)
from edge_agent.contract.framing import FrameTooLarge

__all__ = [
    "Answer",
    "AsyncClient",
    "BudgetExceeded",
    "Busy",
    "CallerError",
    "Client",
    "DeadlineExceeded",
    "DeviceError",
    "Forbidden",
    "FrameTooLarge",
    "InSharedMemory",
    "MalformedRequest",
    "MessageError",
    "ModelFailed",
    "ModelMetadata",
    "ModelUnavailable",
    "NetworkError",
    "OutOfMemory",
    "QuotaExceeded",
    "ShoalError",
    "SignatureMismatch",
    "StorageFull",
    "StorageNotWritable",
    "Unauthenticated",
    "UnknownModel",
    "UnknownRegion",
    "UnknownRequest",
    "Unsupported",
]
