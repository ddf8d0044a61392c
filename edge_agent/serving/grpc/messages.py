"""Inference requests and answers between the protocol's gRPC messages and the serving core."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.checking import Violation, check_unit
from edge_agent.contract.errors import MalformedRequest, SignatureMismatch
from edge_agent.contract.manifest import Classification
from edge_agent.contract.signature import Signature
from edge_agent.contract.tensors import Datatype
from edge_agent.serving.binary_tensors import check_axes, check_shape, check_size, read_binary, write_binary
from edge_agent.serving.classification import class_labels, classify
from edge_agent.serving.grpc import oip_pb2 as oip
from edge_agent.serving.json_request import (
    InputParameters,
    Output,
    OutputParameters,
    RequestParameters,
    refuse_sequences,
)
from edge_agent.serving.json_tensors import check_count
from edge_agent.serving.request import MAX_ID_LENGTH, InferenceAnswer, InferenceRequest, WantedOutput
from edge_agent.serving.shared_memory import Regions
from edge_agent.serving.wanted_outputs import read_outputs, share

T = TypeVar("T")
# Making elements of more text or numbers takes longer than a hand-over to a thread.
_LARGE_BYTES = 64 * 1024
_LARGE_ELEMENTS = 8 * 1024
# Where the elements of each datatype stand; FP16 and BF16 travel as raw bytes alone ("gRPC API", OIP v2).
_CONTENTS: Mapping[Datatype, str] = {
    Datatype.BOOL: "bool_contents",
    Datatype.INT8: "int_contents",
    Datatype.INT16: "int_contents",
    Datatype.INT32: "int_contents",
    Datatype.INT64: "int64_contents",
    Datatype.UINT8: "uint_contents",
    Datatype.UINT16: "uint_contents",
    Datatype.UINT32: "uint_contents",
    Datatype.UINT64: "uint64_contents",
    Datatype.FP32: "fp32_contents",
    Datatype.FP64: "fp64_contents",
    Datatype.BYTES: "bytes_contents",
}


def is_slow_to_read(message: oip.ModelInferRequest) -> bool:
    """Whether :func:`inference_request` makes so many elements of it that this would hold up others."""
    if message.ByteSize() <= _LARGE_BYTES and not any(
        "shared_memory_region" in one.parameters for one in message.inputs
    ):
        return False
    return any(one.datatype == Datatype.BYTES.value or one.HasField("contents") for one in message.inputs)


def is_slow_to_write(answer: InferenceAnswer) -> bool:
    """Whether :func:`inference_response` takes so long that this would hold up others."""
    return any(array.dtype.kind == "O" and array.size > _LARGE_ELEMENTS for array in answer.outputs.values())


def inference_request(
    message: oip.ModelInferRequest, signature: Signature, *, max_rows: int, regions: Regions
) -> InferenceRequest:
    """The request in a message; raw inputs become views on it.

    Args:
        signature: Of the model asked.
        max_rows: Rows that a request may hold.
        regions: Shared memory that it may name.
    Raises:
        MalformedRequest: It is no request of the protocol.
        SignatureMismatch: A tensor's data do not fill its own shape or are not of its own datatype.
        UnknownRegion: Shared memory that is not registered.
        Unsupported: It is part of a sequence.
    """
    if len(message.id) > MAX_ID_LENGTH:
        raise MalformedRequest(f"id: at most {MAX_ID_LENGTH} characters, got {len(message.id)}")
    told = _told("parameters", message.parameters, RequestParameters)
    refuse_sequences(told)
    inputs, flagged = _read_inputs(message, signature, max_rows, regions)
    outputs: tuple[WantedOutput, ...] | None = None
    if message.outputs:
        wanted = [
            Output(one.name, _told(f"output '{one.name}': parameters", one.parameters, OutputParameters))
            for one in message.outputs
        ]
        outputs = read_outputs(wanted, signature, regions, inputs, binary=True)
    return InferenceRequest(
        message.id,
        inputs,
        outputs,
        True,
        told.monitor,
        told.group,
        told.priority,
        told.timeout,
        flagged,
    )


def inference_response(
    request: InferenceRequest,
    answer: InferenceAnswer,
    signature: Signature,
    regions: Regions,
    *,
    task: Classification | None = None,
) -> oip.ModelInferResponse:
    """The message of an answer: every output's bytes in ``raw_output_contents``, empty where shared memory has them.

    Raises:
        MalformedRequest, UnknownRegion, StorageFull: An output does not fit the shared memory where it is wanted.
    """
    message = oip.ModelInferResponse(model_name=answer.model, model_version=answer.version, id=answer.request_id)
    message.parameters["package"].string_param = answer.package
    message.parameters["label_wanted"].bool_param = answer.label_wanted
    if answer.violations:
        message.parameters["violations"].string_param = answer.violations_text
    for wanted in request.outputs or [WantedOutput(name) for name in answer.outputs]:
        array = answer.outputs[wanted.name]
        if wanted.classes:
            array = classify(array, wanted.classes, class_labels(wanted.name, signature, task))
        datatype = Datatype.of(array.dtype)
        output = message.outputs.add(name=wanted.name, datatype=datatype.value, shape=array.shape)
        data = write_binary(array, datatype)
        if wanted.region is None:
            message.raw_output_contents.append(bytes(data))
            continue
        share(wanted, data, regions)
        output.parameters["shared_memory_region"].string_param = wanted.region
        output.parameters["shared_memory_byte_size"].int64_param = len(data)
        if wanted.offset:
            output.parameters["shared_memory_offset"].int64_param = wanted.offset
        message.raw_output_contents.append(b"")
    return message


def parameters(found: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as plain values; those that are set to nothing are left out."""
    plain = {}
    for name, parameter in found.items():
        choice = parameter.WhichOneof("parameter_choice")
        if choice is not None:
            plain[name] = getattr(parameter, choice)
    return plain


def _told(where: str, found: Mapping[str, Any], kind: type[T]) -> T:
    try:
        return msgspec.convert(parameters(found), kind)
    except msgspec.ValidationError as error:
        raise MalformedRequest(f"{where}: {error}") from error


def _read_inputs(
    message: oip.ModelInferRequest, signature: Signature, max_rows: int, regions: Regions
) -> tuple[dict[str, NDArray[Any]], tuple[Violation, ...]]:
    """The inputs, and the units that differ and are let through."""
    inputs: dict[str, NDArray[Any]] = {}
    flagged: tuple[Violation, ...] = ()
    raw = iter(message.raw_input_contents) if message.raw_input_contents else None
    for tensor in message.inputs:
        name, shape = tensor.name, tuple(tensor.shape)
        if name in inputs:
            raise SignatureMismatch(name, rule="name", detail="the request gives this input twice")
        check_axes(name, shape, max_rows=max_rows)
        if math.prod(shape) > _LARGE_ELEMENTS:
            check_shape(name, shape, signature)
        told = _told(f"input '{name}': parameters", tensor.parameters, InputParameters) if tensor.parameters else None
        inputs[name] = _read_input(tensor, told, shape, raw, regions)
        if told is not None and told.unit is not None:
            found = check_unit(signature.input(name), told.unit, rows=shape[0])
            flagged += (found,) if found is not None else ()
    if raw is not None and next(raw, None) is not None:
        raise MalformedRequest("raw_input_contents: more entries than inputs outside of shared memory")
    return inputs, flagged


def _read_input(
    tensor: oip.ModelInferRequest.InferInputTensor,
    told: InputParameters | None,
    shape: tuple[int, ...],
    raw: Iterator[bytes] | None,
    regions: Regions,
) -> NDArray[Any]:
    name, datatype = tensor.name, _datatype(tensor)
    if told is not None and told.shared_memory_region is not None:
        size = told.shared_memory_byte_size
        if size is None:
            raise MalformedRequest(f"input '{name}': shared_memory_region needs a shared_memory_byte_size")
        check_size(name, datatype, shape, size)
        data = regions.read(told.shared_memory_region, told.shared_memory_offset, size)
        return read_binary(name, datatype, shape, data)
    if raw is not None:
        if tensor.HasField("contents"):
            raise MalformedRequest(f"input '{name}': has contents, though the request has raw_input_contents")
        entry = next(raw, None)
        if entry is None:
            raise MalformedRequest(f"input '{name}': raw_input_contents has no entry for it")
        return read_binary(name, datatype, shape, memoryview(entry))
    return _read_contents(name, datatype, shape, tensor.contents)


def _read_contents(
    name: str, datatype: Datatype, shape: tuple[int, ...], contents: oip.InferTensorContents
) -> NDArray[Any]:
    field = _CONTENTS.get(datatype)
    if field is None:
        raise MalformedRequest(f"input '{name}': {datatype.value} travels in raw_input_contents alone")
    values: Sequence[Any] = getattr(contents, field)
    check_count(name, shape, len(values))
    if datatype is Datatype.BYTES:
        out = np.empty(len(values), dtype=object)
        out[:] = list(values)
        return out.reshape(shape)
    wide = np.array(values)
    if datatype.numpy.kind in "iu":
        limits = np.iinfo(datatype.numpy)
        if wide.min() < limits.min or wide.max() > limits.max:
            raise SignatureMismatch(name, rule="datatype", detail=f"a value does not fit in {datatype.value}")
    return wide.astype(datatype.numpy).reshape(shape)


def _datatype(tensor: oip.ModelInferRequest.InferInputTensor) -> Datatype:
    try:
        return Datatype(tensor.datatype)
    except ValueError:
        known = ", ".join(datatype.value for datatype in Datatype)
        raise MalformedRequest(
            f"input '{tensor.name}': no datatype {tensor.datatype!r:.40}; datatypes are {known}"
        ) from None
