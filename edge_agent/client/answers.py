"""What both clients send and give back. Pure: no socket."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract import frame_messages, frames
from edge_agent.contract.checking import Violation
from edge_agent.contract.errors import MessageError
from edge_agent.contract.failures import error_of
from edge_agent.contract.frame_messages import VERSION, Failure, Infer, Inferred, Metadata, Values, Wanted
from edge_agent.contract.frames import Buffer
from edge_agent.contract.signature import Signature
from edge_agent.contract.tensors import Datatype


class InSharedMemory(NamedTuple):
    """A tensor in shared memory that is registered with the agent, in place of an array.

    Args:
        region: Its name there.
        size: Bytes that the values take; of a wanted output the room that there is for them.
        datatype, shape: Of an input; nothing for a wanted output.
    """

    region: str
    offset: int
    size: int
    datatype: Datatype = Datatype.UINT8
    shape: tuple[int, ...] = ()


Tensors = Mapping[str, NDArray[Any] | InSharedMemory]
Outputs = Sequence[str] | Mapping[str, InSharedMemory | None]


class Answer(NamedTuple):
    """What a model said.

    Args:
        version, package: Of the model that answered; ``package`` is the SHA-256 of its package.
        request_id: For feedback.
        outputs: By name, in the model's order; axis 0 is N. They are the caller's own.
        label_wanted: Whether the agent asks for a label for this request.
        violations: Values that broke a constraint and were let through: clipped, filled or flagged.
        shared: Outputs that lie in shared memory instead.
    """

    model: str
    version: str
    package: str
    request_id: str
    outputs: dict[str, NDArray[Any]]
    label_wanted: bool
    violations: tuple[Violation, ...]
    shared: dict[str, InSharedMemory]


@dataclasses.dataclass(frozen=True, slots=True)
class ModelMetadata:
    """A model as it serves; ``InputCheck(signature)`` checks inputs before they are sent."""

    model: str
    version: str
    package: str
    platform: str
    signature: Signature


def infer_message(
    number: int,
    model: str,
    *,
    version: str = "",
    id: str = "",  # noqa: A002 - as the clients have it
    group: str = "",
    outputs: Outputs | None = None,
    priority: int = 0,
    timeout_s: float | None = None,
    monitor: bool = True,
) -> Infer:
    """The request, still without its inputs; see :meth:`edge_agent.client.sync_client.Client.infer`."""
    return Infer(
        v=VERSION,
        id=number,
        model=model,
        version=version,
        request=id,
        group=group,
        priority=priority,
        timeout_us=0 if timeout_s is None else max(1, int(timeout_s * 1e6)),
        monitor=monitor,
        outputs=None if outputs is None else _wanted(outputs),
        inputs=[],
    )


def infer_frame(message: Infer, inputs: Tensors) -> list[Buffer]:
    """The frame of a request, in parts; large ones are views on the arrays.

    Raises:
        MessageError: The inputs are no mapping, or a tensor is no array, or has no datatype of the Open Inference
            Protocol.
    """
    try:
        items = inputs.items()
    except AttributeError:  # cheaper than to look first: it is done for every request
        raise MessageError(
            f"inputs: expected a mapping from input name to array, got {type(inputs).__name__}: "
            f"metadata('{message.model}') gives the names that the model takes"
        ) from None
    return frames.encode_tensors(message, {name: _sent(name, tensor) for name, tensor in items})


def answer_of(inferred: Inferred) -> Answer:
    """The answer in its message.

    Raises:
        MessageError: The values of an output do not fill its shape.
    """
    outputs: dict[str, NDArray[Any]] = {}
    shared: dict[str, InSharedMemory] = {}
    for values in inferred.outputs:
        if values.region:
            place = InSharedMemory(values.region, values.offset, values.size, values.type, values.shape)
            shared[values.name] = place
        else:
            outputs[values.name] = frames.array_of(values)
    return Answer(
        inferred.model,
        inferred.version,
        inferred.package,
        inferred.request,
        outputs,
        inferred.label_wanted,
        frames.violations_of(inferred.violations) if inferred.violations else (),
        shared,
    )


def metadata_of(told: Metadata) -> ModelMetadata:
    """A model's metadata in their message."""
    return ModelMetadata(told.model, told.version, told.package, told.platform, told.signature)


def expect(answer: frame_messages.Answer, kind: type[frame_messages.A]) -> frame_messages.A:
    """The answer, if it is of this kind.

    Raises:
        ShoalError: It is an error: the one that the agent raised.
        MessageError: It is another answer.
    """
    if isinstance(answer, kind):
        return answer
    if isinstance(answer, Failure):
        raise error_of(answer)
    raise MessageError(f"the agent answered with {type(answer).__name__} where {kind.__name__} was due")


def _sent(name: str, tensor: NDArray[Any] | InSharedMemory) -> NDArray[Any] | Values:
    if isinstance(tensor, InSharedMemory):
        place = tensor
        return Values(name, place.datatype, place.shape, region=place.region, offset=place.offset, size=place.size)
    if not isinstance(tensor, np.ndarray):
        raise MessageError(
            f"input '{name}': expected a numpy array, got {type(tensor).__name__}: make one of the model's datatype, "
            "such as np.asarray(values, dtype=np.float32)"
        )
    return tensor


def _wanted(outputs: Outputs) -> list[Wanted]:
    if not isinstance(outputs, Mapping):
        return [Wanted(name) for name in outputs]
    return [
        Wanted(name) if place is None else Wanted(name, place.region, place.offset, place.size)
        for name, place in outputs.items()
    ]
