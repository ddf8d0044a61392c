"""The client of a device's models for programs beside the agent: frames over its unix socket.

::

    from edge_agent.client import Client

    with Client("/run/shoal/frames.sock") as client:
        answer = client.infer("digits", {"image": image})  # image: float32[N, 64]
        answer.outputs["probabilities"]                    # float32[N, 10]

It needs numpy and msgspec, and none of what runs models. Errors are those of :mod:`edge_agent.contract.errors`, of the
same class as in the agent: a ``CallerError`` where the request is to blame.
"""

from __future__ import annotations

from edge_agent.client.answers import Answer, InSharedMemory, ModelMetadata
from edge_agent.client.async_client import AsyncClient
from edge_agent.client.sync_client import Client
from edge_agent.contract.errors import (
    CallerError,
    DeadlineExceeded,
    DeviceError,
    NetworkError,
    ShoalError,
    SignatureMismatch,
)

__all__ = [
    "Answer",
    "AsyncClient",
    "CallerError",
    "Client",
    "DeadlineExceeded",
    "DeviceError",
    "InSharedMemory",
    "ModelMetadata",
    "NetworkError",
    "ShoalError",
    "SignatureMismatch",
]
