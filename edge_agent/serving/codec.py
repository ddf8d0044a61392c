"""Inference requests and answers of the Open Inference Protocol v2 as bytes. Pure, but for shared memory.

A body is JSON, or JSON followed by raw tensors in the order of the inputs that declare a ``binary_data_size``
("Binary Tensor Data Extension"); the header ``Inference-Header-Content-Length`` then gives the JSON's length. A tensor
may also lie in shared memory ("Shared Memory Extension"), and an output be given as its best classes
("Classification Extension").
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec
from numpy.typing import NDArray

from edge_agent.contract.checking import Violation, check_unit
from edge_agent.contract.errors import MalformedRequest, SignatureMismatch
from edge_agent.contract.manifest import Classification
from edge_agent.contract.signature import Signature
from edge_agent.contract.tensors import Datatype
from edge_agent.contract.text_encoding import as_sent
from edge_agent.serving.binary_tensors import (
    MAX_AXES,
    check_axes,
    check_shape,
    check_size,
    read_binary,
    read_raw_body,
    write_binary,
)
from edge_agent.serving.classification import class_labels, classify
from edge_agent.serving.json_request import (
    LARGE_BYTES,
    Head,
    Input,
    InputParameters,
    RequestParameters,
    read_head,
    refuse_sequences,
)
from edge_agent.serving.json_tensors import read_json, read_values, write_json
from edge_agent.serving.request import InferenceAnswer, InferenceRequest, WantedOutput
from edge_agent.serving.shared_memory import Regions
from edge_agent.serving.wanted_outputs import read_outputs, share

Buffer = bytes | bytearray | memoryview

MAX_ROWS: Final = 1024
# Joining so little costs less than another buffer to write.
_JOINED_BYTES: Final = 16 * 1024
_encode = msgspec.json.Encoder().encode
_DEFAULTS: Final = RequestParameters()
_NOTHING: Final = memoryview(b"")
# The protocol's name of what nearly every output is; the others are looked for.
_NAMED: Final = {datatype.numpy: (datatype, datatype.value) for datatype in Datatype}


def decode_request(
    body: Buffer,
    json_length: int | None,
    signature: Signature,
    *,
    max_rows: int = MAX_ROWS,
    regions: Regions | None = None,
) -> InferenceRequest:
    """The request in a body.

    Args:
        body: Unpacked. Binary inputs become views on it.
        json_length: Value of ``Inference-Header-Content-Length``; None where the whole body is JSON, 0 where it is
            one raw tensor for a model of one input.
        signature: Of the model asked: a raw tensor takes datatype and shape from it, and large data are not decoded
            unless they are of its shape.
        max_rows: Rows that a request may hold; checked before its data are decoded.
        regions: Shared memory that it may name; None for none.
    Raises:
        MalformedRequest: The body is no request.
        SignatureMismatch: A tensor's data do not fill its own shape or are not of its own datatype.
        UnknownRegion: Shared memory that is not registered.
        Unsupported: It is part of a sequence.
    """
    if json_length == 0:
        spec, array = read_raw_body(body, signature)
        check_axes(spec.name, array.shape, max_rows=max_rows)
        return InferenceRequest(id="", inputs={spec.name: array}, binary=True)
    if json_length is None:
        head, raw = read_head(body, signature), None
    else:
        if not 0 < json_length <= len(body):
            raise MalformedRequest(
                f"Inference-Header-Content-Length is {json_length}, but the body has {len(body)} bytes: truncated?"
            )
        view = memoryview(body)
        head, raw = read_head(view[:json_length], signature), view[json_length:]
    inputs = _read_inputs(head, raw, signature, max_rows, regions)
    flagged = _check_units(head, signature)
    told = head.parameters or _DEFAULTS
    if told is not _DEFAULTS:
        refuse_sequences(told)
    outputs = None
    if head.outputs:
        outputs = read_outputs(head.outputs, signature, regions, inputs, binary=told.binary_data_output)
    return InferenceRequest(
        head.id,
        inputs,
        outputs,
        told.binary_data_output,
        told.monitor,
        told.group,
        told.priority,
        told.timeout,
        flagged,
    )


def encode_response(
    request: InferenceRequest,
    answer: InferenceAnswer,
    signature: Signature,
    regions: Regions | None = None,
    *,
    task: Classification | None = None,
) -> tuple[list[Buffer], int | None]:
    """The body of the answer in pieces, and the length of its JSON part where raw tensors follow it (else None).

    Args:
        signature: Of the model; names the classes of outputs.
        regions: Takes the outputs that are wanted there.
        task: Names the classes where the signature does not.
    Raises:
        MalformedRequest: A wanted output cannot be given in JSON, or does not fit where it is wanted.
        UnknownRegion: Its shared memory is not registered any more.
    """
    described: list[dict[str, Any]] = []
    raw: list[Buffer] = []
    wanted: Sequence[WantedOutput] | None = request.outputs
    if wanted is None:
        wanted = [WantedOutput(name, request.binary) for name in answer.outputs]
    for output in wanted:
        name = output.name
        array = answer.outputs[name]
        if output.classes:
            array = classify(array, output.classes, class_labels(name, signature, task))
        datatype, datatype_name = _NAMED.get(array.dtype) or _named(array)
        tensor: dict[str, Any] = {"name": name, "datatype": datatype_name, "shape": array.shape}
        if output.region is not None:
            tensor["parameters"] = _share(output, write_binary(array, datatype), regions)
        elif output.binary:
            data = write_binary(array, datatype)
            tensor["parameters"] = {"binary_data_size": len(data)}
            raw.append(data)
        else:
            tensor["data"] = write_json(name, array)
        described.append(tensor)
    parameters: dict[str, Any] = {"package": answer.package, "label_wanted": answer.label_wanted}
    if answer.violations:
        parameters["violations"] = answer.violations_text
    head = _encode(
        {
            "model_name": answer.model,
            "model_version": answer.version,
            "id": answer.request_id,
            "parameters": parameters,
            "outputs": described,
        }
    )
    if not raw:
        return [head], None
    if sum(map(len, raw)) <= _JOINED_BYTES:
        return [b"".join((head, *raw))], len(head)
    return [head, *raw], len(head)


def _read_inputs(
    head: Head[Any], raw: memoryview | None, signature: Signature, max_rows: int, regions: Regions | None
) -> dict[str, NDArray[Any]]:
    inputs: dict[str, NDArray[Any]] = {}
    at = 0
    for tensor in head.inputs:
        name, shape = tensor.name, tensor.shape
        if name in inputs:
            raise SignatureMismatch(name, rule="name", detail="the request gives this input twice")
        if not 0 < len(shape) <= MAX_AXES or min(shape) < 1 or shape[0] > max_rows:  # a call costs more than this
            check_axes(name, shape, max_rows=max_rows)
        told = tensor.parameters
        if told is not None and (told.shared_memory_region is not None or told.binary_data_size is not None):
            array, size = _read_elsewhere(tensor, told, raw[at:] if raw is not None else _NOTHING, signature, regions)
            at += size
        elif isinstance(tensor.data, list):
            array = read_values(name, tensor.datatype, shape, tensor.data)
        elif tensor.data is msgspec.UNSET:
            raise MalformedRequest(f"input '{name}': has neither data nor binary_data_size nor shared_memory_region")
        else:
            if len(memoryview(tensor.data)) > LARGE_BYTES:
                check_shape(name, tensor.shape, signature)
            array = read_json(name, tensor.datatype, shape, tensor.data)
        if tensor.datatype is Datatype.BYTES and tensor.data is not msgspec.UNSET:  # JSON's text is UTF-8
            array = as_sent(signature.input(name), array)
        inputs[name] = array
    if raw is not None and at != len(raw):
        raise MalformedRequest(f"{len(raw) - at} bytes are left over after the {at} bytes of the binary inputs")
    return inputs


def _read_elsewhere(
    tensor: Input[Any], told: InputParameters, left: memoryview, signature: Signature, regions: Regions | None
) -> tuple[NDArray[Any], int]:
    """An input whose data follow the JSON, or lie in shared memory; and how many bytes of the former it took.

    Args:
        left: What follows the JSON and the inputs before.
    """
    name, region, size = tensor.name, told.shared_memory_region, told.binary_data_size
    if tensor.data is not msgspec.UNSET or (size is not None and region is not None):
        both = [
            *(["data"] if tensor.data is not msgspec.UNSET else []),
            *(["binary_data_size"] if size is not None else []),
            *(["shared_memory_region"] if region is not None else []),
        ]
        raise MalformedRequest(f"input '{name}': has both {' and '.join(both)}")
    if size is not None:
        if size > len(left):
            advice = (
                "say where the JSON ends, in the header Inference-Header-Content-Length"
                if left is _NOTHING
                else "truncated?"
            )
            raise MalformedRequest(
                f"input '{name}': binary_data_size is {size}, but {len(left)} bytes are left: {advice}"
            )
        if size > LARGE_BYTES:
            _check_large(tensor, signature)
        return read_binary(name, tensor.datatype, tensor.shape, left[:size]), size
    size = told.shared_memory_byte_size
    if region is None or size is None:
        raise MalformedRequest(f"input '{name}': shared_memory_region needs a shared_memory_byte_size")
    if regions is None:
        raise MalformedRequest(f"input '{name}': shared memory cannot be used here; send the data")
    check_size(name, tensor.datatype, tensor.shape, size)
    if size > LARGE_BYTES:
        _check_large(tensor, signature)
    data = regions.read(region, told.shared_memory_offset, size)
    return read_binary(name, tensor.datatype, tensor.shape, data), 0


def _check_large(tensor: Input[Any], signature: Signature) -> None:
    """Refuse large data of another shape or datatype than the model's before anything is made of them.

    Whoever calls text what are numbers would have them taken apart one by one, on the event loop.
    """
    check_shape(tensor.name, tensor.shape, signature)
    datatype = signature.input(tensor.name).datatype
    if tensor.datatype is not datatype:
        raise SignatureMismatch(
            tensor.name, rule="datatype", detail=f"is {tensor.datatype.value}, the model takes {datatype.value}"
        )


def _check_units(head: Head[Any], signature: Signature) -> tuple[Violation, ...]:
    flagged: tuple[Violation, ...] = ()
    for tensor in head.inputs:
        if tensor.parameters is not None and tensor.parameters.unit is not None:
            found = check_unit(signature.input(tensor.name), tensor.parameters.unit, rows=tensor.shape[0])
            flagged += (found,) if found is not None else ()
    return flagged


def _named(array: NDArray[Any]) -> tuple[Datatype, str]:
    datatype = Datatype.of(array.dtype)
    return datatype, datatype.value


def _share(output: WantedOutput, data: Buffer, regions: Regions | None) -> dict[str, Any]:
    """Put an output into shared memory; the parameters that say so."""
    share(output, data, regions)
    parameters: dict[str, Any] = {
        "shared_memory_region": output.region,
        "shared_memory_byte_size": len(data),
    }
    if output.offset:
        parameters["shared_memory_offset"] = output.offset
    return parameters
