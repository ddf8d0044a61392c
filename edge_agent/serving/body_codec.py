"""Inference requests and answers of the Open Inference Protocol v2 as bytes. Pure: no socket, no model.

A body is JSON, or JSON followed by raw tensors in the order of the inputs that declare a ``binary_data_size``
("Binary Tensor Data Extension"); the header ``Inference-Header-Content-Length`` then gives the JSON's length.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.errors import MalformedRequest, MessageError, SignatureMismatch
from edge_agent.contract.signature import Signature, TensorSpec
from edge_agent.contract.tensors import Datatype, pack_bytes, unpack_bytes
from edge_agent.serving.json_tensors import LARGE_BYTES, read_json, write_json

MAX_ID_LENGTH = 128
MAX_AXES = 32
MAX_ROWS = 1024


@dataclasses.dataclass(frozen=True)
class InferenceRequest:
    """A decoded request; the tensors' names, datatypes and shapes are not yet checked against a model.

    Args:
        id: As the application chose it; empty where it chose none.
        inputs: By name. Binary ones are read-only views on the body.
        outputs: Wanted outputs, and whether each is wanted in binary, in the request's order; None wants all.
        binary: Whether outputs are wanted in binary where nothing else is said.
        monitored: False for a probe, which is neither counted nor sampled.
        group: What the rows of one subject share; empty where the application says nothing.
    """

    id: str
    inputs: dict[str, NDArray[Any]]
    outputs: tuple[tuple[str, bool], ...] | None = None
    binary: bool = False
    monitored: bool = True
    group: str = ""


# Not decoded with the rest: a few megabytes of lists in lists would become hundreds as Python objects.
_NO_PARAMETERS = msgspec.Raw(b"")
_PARAMETERS_BYTES = 16 * 1024


class _Input(msgspec.Struct):
    name: str
    shape: tuple[int, ...]
    datatype: Datatype
    parameters: msgspec.Raw = _NO_PARAMETERS
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _Output(msgspec.Struct):
    name: str
    parameters: msgspec.Raw = _NO_PARAMETERS


class _Request(msgspec.Struct):
    inputs: list[_Input]
    id: str = ""
    parameters: msgspec.Raw = _NO_PARAMETERS
    outputs: list[_Output] | None = None


_decoder = msgspec.json.Decoder(_Request)
_parameters_decoder = msgspec.json.Decoder(dict[str, Any])
_encoder = msgspec.json.Encoder()


def decode_request(
    body: bytes, header_length: int | None, signature: Signature, *, max_rows: int = MAX_ROWS
) -> InferenceRequest:
    """The request in a body.

    Args:
        header_length: Value of ``Inference-Header-Content-Length``; None where the whole body is JSON, 0 where it is
            one raw tensor for a model of one input.
        signature: Of the model asked: a raw tensor takes datatype and shape from it, and large data are not decoded
            unless they are of its shape.
        max_rows: Rows that a request may hold; checked before its data are decoded.
    Raises:
        MalformedRequest: The body is no request.
        SignatureMismatch: A tensor's data do not fill its own shape or are not of its own datatype.
    """
    if header_length == 0:
        return InferenceRequest(id="", inputs=_raw_input(body, signature, max_rows), binary=True)
    if header_length is not None and not 0 < header_length <= len(body):
        raise MalformedRequest(
            f"Inference-Header-Content-Length is {header_length}, but the body has {len(body)} bytes: truncated?"
        )
    view = memoryview(body)
    json_length = len(body) if header_length is None else header_length
    try:
        request = _decoder.decode(view[:json_length])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedRequest(f"the request's JSON: {error}") from error
    if len(request.id) > MAX_ID_LENGTH:
        raise MalformedRequest(f"id: at most {MAX_ID_LENGTH} characters, got {len(request.id)}")
    parameters = _parameters("parameters", request.parameters)
    binary = _flag("parameters", parameters, "binary_data_output", default=False)
    return InferenceRequest(
        id=request.id,
        inputs=_read_inputs(request.inputs, view[json_length:], signature, max_rows),
        outputs=_wanted_outputs(request.outputs, binary) if request.outputs else None,
        binary=binary,
        monitored=_flag("parameters", parameters, "monitor", default=True),
        group=_group(parameters),
    )


def check_outputs(request: InferenceRequest, signature: Signature) -> None:
    """Refuse wanted outputs that the model does not have, before it runs.

    Raises:
        MalformedRequest: It names the output and those that there are.
    """
    if request.outputs is None:
        return
    known = [spec.name for spec in signature.outputs]
    for name, _ in request.outputs:
        if name not in known:
            raise MalformedRequest(f"output '{name}': the model has no such output; it has: {', '.join(known)}")


def encode_response(
    request: InferenceRequest,
    outputs: Mapping[str, NDArray[Any]],
    *,
    model: str,
    version: str,
    request_id: str,
    parameters: Mapping[str, Any],
) -> tuple[bytes, int | None]:
    """The body of the answer, and the length of its JSON part where raw tensors follow it (else None).

    Args:
        outputs: All of the model's, by name; the wanted ones are among them.
        parameters: What stands in the answer's top-level ``parameters``.
    Raises:
        MalformedRequest: A wanted output cannot be given in JSON.
    """
    described: list[dict[str, Any]] = []
    raw: list[bytes] = []
    for name, binary in request.outputs or tuple((name, request.binary) for name in outputs):
        array = outputs[name]
        datatype = Datatype.of(array.dtype)
        tensor: dict[str, Any] = {"name": name, "datatype": datatype.value, "shape": array.shape}
        if binary:
            data = pack_bytes(array) if datatype is Datatype.BYTES else array.tobytes()
            tensor["parameters"] = {"binary_data_size": len(data)}
            raw.append(data)
        else:
            tensor["data"] = write_json(name, array)
        described.append(tensor)
    answer = {
        "model_name": model,
        "model_version": version,
        "id": request_id,
        "parameters": parameters,
        "outputs": described,
    }
    head = _encoder.encode(answer)
    return (b"".join((head, *raw)), len(head)) if raw else (head, None)


def _read_inputs(
    described: list[_Input], raw: memoryview, signature: Signature, max_rows: int
) -> dict[str, NDArray[Any]]:
    inputs: dict[str, NDArray[Any]] = {}
    at = 0
    for tensor in described:
        if tensor.name in inputs:
            raise SignatureMismatch(tensor.name, rule="name", detail="the request gives this input twice")
        if len(tensor.shape) > MAX_AXES or any(axis < 1 for axis in tensor.shape):
            detail = f"needs 1 to {MAX_AXES} axes, each at least 1, got {list(tensor.shape[: MAX_AXES + 1])}"
            raise SignatureMismatch(tensor.name, rule="shape", detail=detail)
        _check_rows(tensor.name, tensor.shape, max_rows)
        size = _binary_size(tensor)
        if max(size, len(memoryview(tensor.data)) if isinstance(tensor.data, msgspec.Raw) else 0) > LARGE_BYTES:
            _check_shape(tensor, signature)
        if isinstance(tensor.data, msgspec.Raw):
            inputs[tensor.name] = read_json(tensor.name, tensor.datatype, tensor.shape, tensor.data)
            continue
        if size > len(raw) - at:
            raise MalformedRequest(
                f"input '{tensor.name}': binary_data_size is {size}, but {len(raw) - at} bytes are left: truncated?"
            )
        inputs[tensor.name] = _read_binary(tensor.name, tensor.datatype, tensor.shape, raw[at : at + size])
        at += size
    if at != len(raw):
        raise MalformedRequest(f"{len(raw) - at} bytes are left over after the {at} bytes of the binary inputs")
    return inputs


def _check_rows(name: str, shape: tuple[int, ...], max_rows: int) -> None:
    if shape and shape[0] > max_rows:
        raise MalformedRequest(
            f"input '{name}': {shape[0]} rows, the limit is {max_rows} (max_rows under [api] in the agent's settings): "
            "send fewer rows per request"
        )


def _check_shape(tensor: _Input, signature: Signature) -> None:
    """What :meth:`Signature.check` would refuse anyway, before memory is spent on it."""
    spec = signature.input(tensor.name)
    same_axes = len(spec.shape) == len(tensor.shape)
    if not same_axes or any(want not in (None, have) for want, have in zip(spec.shape, tensor.shape, strict=True)):
        expected = ", ".join("-1" if axis is None else str(axis) for axis in spec.shape)
        raise SignatureMismatch(spec.name, rule="shape", detail=f"expected [{expected}], got {list(tensor.shape)}")


def _binary_size(tensor: _Input) -> int:
    """Bytes of an input's raw tensor; 0 for one whose data stand in the JSON."""
    parameters = _parameters(f"input '{tensor.name}': parameters", tensor.parameters)
    if "shared_memory_region" in parameters:
        raise MalformedRequest(f"input '{tensor.name}': shared memory is not supported; send the data")
    size = parameters.get("binary_data_size")
    in_json = isinstance(tensor.data, msgspec.Raw)
    if size is None:
        if not in_json:
            raise MalformedRequest(f"input '{tensor.name}': has neither data nor binary_data_size")
        return 0
    if in_json:
        raise MalformedRequest(f"input '{tensor.name}': has both data and binary_data_size")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise MalformedRequest(f"input '{tensor.name}': binary_data_size must be a size in bytes, got {size!r:.80}")
    return size


def _read_binary(name: str, datatype: Datatype, shape: tuple[int, ...], data: memoryview) -> NDArray[Any]:
    count = math.prod(shape)
    if datatype is Datatype.BYTES:
        try:
            return unpack_bytes(data, count).reshape(shape)
        except MessageError as error:
            raise SignatureMismatch(name, rule="shape", detail=f"shape {list(shape)}: {error}") from error
    dtype = datatype.numpy
    expected = count * dtype.itemsize
    if len(data) != expected:
        detail = f"{datatype.value} of shape {list(shape)} needs {expected} bytes, got {len(data)}"
        raise SignatureMismatch(name, rule="shape", detail=detail)
    if datatype is Datatype.BOOL:  # any byte but 0 is true; numpy's own bytes must be 0 or 1
        return np.not_equal(np.frombuffer(data, dtype=np.uint8), 0).reshape(shape)
    array = np.frombuffer(data, dtype=dtype).reshape(shape)
    return array if array.flags.aligned else array.copy()  # not every processor reads floats at odd addresses


def _raw_input(body: bytes, signature: Signature, max_rows: int) -> dict[str, NDArray[Any]]:
    """A body without JSON: the shape follows from the signature, with at most one dynamic axis."""
    if len(signature.inputs) != 1:
        raise MalformedRequest(f"a raw body needs a model of one input, this one has {len(signature.inputs)}")
    spec = signature.inputs[0]
    size = spec.datatype.size_bytes
    if size is None:  # the whole body is one element
        element = np.empty(1, dtype=object)
        element[0] = body
        return {spec.name: element.reshape((1,) * len(spec.shape))}
    shape = _raw_shape(spec, len(body), size)
    _check_rows(spec.name, shape, max_rows)
    return {spec.name: _read_binary(spec.name, spec.datatype, shape, memoryview(body))}


def _raw_shape(spec: TensorSpec, body_bytes: int, size: int) -> tuple[int, ...]:
    fixed = size * math.prod(axis for axis in spec.shape if axis is not None)
    if spec.shape.count(None) > 1:
        raise SignatureMismatch(spec.name, rule="shape", detail="has several dynamic axes: send its shape in JSON")
    if body_bytes == 0 or body_bytes % fixed or (None not in spec.shape and body_bytes != fixed):
        raise SignatureMismatch(spec.name, rule="shape", detail=f"a row has {fixed} bytes, the body {body_bytes}")
    return tuple(body_bytes // fixed if axis is None else axis for axis in spec.shape)


def _wanted_outputs(outputs: list[_Output], binary: bool) -> tuple[tuple[str, bool], ...]:
    wanted: dict[str, bool] = {}
    for output in outputs:
        parameters = _parameters(f"output '{output.name}': parameters", output.parameters)
        for unsupported in ("classification", "shared_memory_region"):
            if unsupported in parameters:
                raise MalformedRequest(f"output '{output.name}': {unsupported} is not supported")
        if output.name in wanted:
            raise MalformedRequest(f"output '{output.name}': the request wants it twice")
        wanted[output.name] = _flag(f"output '{output.name}'", parameters, "binary_data", default=binary)
    return tuple(wanted.items())


def _parameters(where: str, raw: msgspec.Raw) -> dict[str, Any]:
    size = len(memoryview(raw))
    if size == 0:
        return {}
    if size > _PARAMETERS_BYTES:
        raise MalformedRequest(f"{where}: take {size} bytes, the limit is {_PARAMETERS_BYTES}")
    try:
        return _parameters_decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedRequest(f"{where}: {error}") from error


def _flag(where: str, parameters: Mapping[str, Any], key: str, *, default: bool) -> bool:
    value = parameters.get(key, default)
    if not isinstance(value, bool):
        raise MalformedRequest(f"{where}: {key} must be true or false, got {value!r:.80}")
    return value


def _group(parameters: Mapping[str, Any]) -> str:
    group = parameters.get("group", "")
    if not isinstance(group, str) or len(group) > MAX_ID_LENGTH:
        raise MalformedRequest(f"parameters: group must be text of at most {MAX_ID_LENGTH} characters")
    return group
