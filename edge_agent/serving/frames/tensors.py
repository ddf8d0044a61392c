"""Inference requests and answers between frames and the serving core. Pure but for shared memory."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract import frames
from edge_agent.contract.errors import MalformedRequest, MessageError, SignatureMismatch
from edge_agent.contract.frame_messages import Infer, Inferred, Values, Wanted
from edge_agent.contract.frames import Buffer
from edge_agent.contract.signature import Signature
from edge_agent.contract.tensors import Datatype
from edge_agent.serving.binary_tensors import MAX_AXES, check_axes, check_shape, write_binary
from edge_agent.serving.json_request import Output, OutputParameters
from edge_agent.serving.request import MAX_ID_LENGTH, InferenceAnswer, InferenceRequest, WantedOutput
from edge_agent.serving.shared_memory import Regions
from edge_agent.serving.wanted_outputs import read_outputs, share

# Taking more text apart, or putting more of it together, takes longer than a hand-over to a thread.
_LARGE_BYTES = 64 * 1024
_LARGE_ELEMENTS = 8 * 1024
# Datatypes whose bytes are an array as they stand: text is not, and truth is any byte but 0.
_PLAIN: dict[Datatype, np.dtype[Any]] = {
    each: each.numpy for each in Datatype if each not in (Datatype.BYTES, Datatype.BOOL)
}


def has_much_text(frame: Infer) -> bool:
    """Whether :func:`inference_request` makes so many elements of it that this would hold up others."""
    return any(values.type is Datatype.BYTES and _size(values) > _LARGE_BYTES for values in frame.inputs)


def gives_much_text(answer: InferenceAnswer) -> bool:
    """Whether :func:`answer_parts` takes so long that this would hold up others."""
    return any(array.dtype.kind == "O" and array.size > _LARGE_ELEMENTS for array in answer.outputs.values())


def inference_request(frame: Infer, signature: Signature, *, max_rows: int, regions: Regions) -> InferenceRequest:
    """The request in a decoded frame, not yet checked against the model; its inputs are views on the frame.

    Args:
        signature: Of the model: of large inputs the shape is checked before they are looked at.
        max_rows: Rows that a request may hold.
        regions: Where inputs in shared memory are read.
    Raises:
        MalformedRequest: A name is too long, too many rows, an output that cannot be given as it is wanted.
        SignatureMismatch: A tensor's values do not fill its own shape.
        UnknownRegion: Its shared memory is not registered.
    """
    for what, text in (("request", frame.request), ("group", frame.group)):
        if len(text) > MAX_ID_LENGTH:
            raise MalformedRequest(f"{what}: at most {MAX_ID_LENGTH} characters, got {len(text)}")
    inputs: dict[str, NDArray[Any]] = {}
    for values in frame.inputs:
        if values.name in inputs:
            raise SignatureMismatch(values.name, rule="name", detail="the request gives this input twice")
        inputs[values.name] = _input(values, signature, max_rows, regions)
    return InferenceRequest(
        id=frame.request,
        inputs=inputs,
        outputs=_wanted(frame.outputs, signature, regions, inputs) if frame.outputs else None,
        binary=True,
        monitored=frame.monitor,
        group=frame.group,
        priority=frame.priority,
        timeout_us=frame.timeout_us,
    )


def answer_parts(number: int, request: InferenceRequest, answer: InferenceAnswer, *, regions: Regions) -> list[Buffer]:
    """The frame of an answer, in parts; outputs that are wanted in shared memory are put there.

    Raises:
        MalformedRequest, UnknownRegion, StorageFull: An output does not fit its shared memory.
    """
    tensors: dict[str, NDArray[Any] | Values] = {}
    if request.outputs is None:
        tensors.update(answer.outputs)
    else:
        for wanted in request.outputs:
            array = answer.outputs[wanted.name]
            tensors[wanted.name] = array if wanted.region is None else _into_region(wanted, array, regions)
    message = Inferred(
        id=number,
        model=answer.model,
        version=answer.version,
        package=answer.package,
        request=answer.request_id,
        label_wanted=answer.label_wanted,
        violations=frames.broken_rules(answer.violations) if answer.violations else [],
        outputs=[],
    )
    return frames.encode_tensors(message, tensors)


def _size(values: Values) -> int:
    return len(values.data) if isinstance(values.data, memoryview) else values.size


def plain_array(values: Values, max_rows: int) -> NDArray[Any] | None:
    """The array of a small tensor that stands in its frame as it should, as nearly all do: a view; else None.

    In a third of the time that finding out takes what is wrong where something is.
    """
    shape, data, dtype = values.shape, values.data, _PLAIN.get(values.type)
    if dtype is None or values.region or type(data) is not memoryview or len(data) > _LARGE_BYTES:
        return None
    sound = 0 < len(shape) <= MAX_AXES and min(shape) > 0 and shape[0] <= max_rows
    if not sound or math.prod(shape) * dtype.itemsize != len(data):
        return None
    array: NDArray[Any] = np.ndarray(shape, dtype, data)
    return array if array.flags.aligned else None


def _input(values: Values, signature: Signature, max_rows: int, regions: Regions) -> NDArray[Any]:
    array = plain_array(values, max_rows)
    if array is not None:
        return array
    shape = values.shape
    check_axes(values.name, shape, max_rows=max_rows)
    if _size(values) > _LARGE_BYTES:
        check_shape(values.name, shape, signature)
    try:
        if not values.region:
            return frames.array_of(values)
        if isinstance(values.data, memoryview):
            raise MalformedRequest(f"input '{values.name}': has both data and a shared memory region")
        return frames.array_over(regions.read(values.region, values.offset, values.size), values.type, shape)
    except MessageError as error:
        raise SignatureMismatch(values.name, rule="shape", detail=str(error)) from error


def _wanted(
    outputs: list[Wanted], signature: Signature, regions: Regions, inputs: dict[str, NDArray[Any]]
) -> tuple[WantedOutput, ...] | None:
    """The outputs wanted; None for all."""
    described = [
        Output(
            each.name,
            OutputParameters(
                shared_memory_region=each.region,
                shared_memory_offset=each.offset,
                shared_memory_byte_size=each.size,
            )
            if each.region
            else None,
        )
        for each in outputs
    ]
    return read_outputs(described, signature, regions, inputs, binary=True) or None


def _into_region(wanted: WantedOutput, array: NDArray[Any], regions: Regions) -> Values:
    datatype = Datatype.of(array.dtype)
    data = write_binary(array, datatype)
    share(wanted, data, regions)
    return Values(wanted.name, datatype, array.shape, region=wanted.region or "", offset=wanted.offset, size=len(data))
