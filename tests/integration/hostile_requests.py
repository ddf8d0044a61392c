"""One inference request in every form that the agent takes, which need not tell the truth."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

import grpc
import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.frame_messages import VERSION, Infer, Wanted
from edge_agent.contract.tensors import Datatype
from edge_agent.serving.grpc import oip_pb2 as oip
from tests.fakes.packages import INPUT, answer, model_weights, reference_images

IMAGES = reference_images(2)
EXPECTED = answer(*model_weights(), IMAGES)

GRPC_STATUS = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 413,
    grpc.StatusCode.INTERNAL: 500,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One input as a request claims it: nothing here need be true.

    Args:
        region: Shared memory in place of the data: name, offset, size.
    """

    name: str = INPUT
    datatype: str = "FP32"
    shape: tuple[int, ...] = IMAGES.shape
    data: bytes = IMAGES.tobytes()
    region: tuple[str, int, int] | None = None

    @classmethod
    def of(cls, array: NDArray[Any], name: str = INPUT) -> Tensor:
        """A tensor that tells the truth."""
        return cls(name, Datatype.of(array.dtype).value, array.shape, array.tobytes())


@dataclasses.dataclass(frozen=True)
class Request:
    """One inference, whatever carries it.

    Args:
        outputs: Names of those wanted, and the shared memory that takes them: name, offset, size.
    """

    model: str = "digits"
    version: str = ""
    inputs: tuple[Tensor, ...] = (Tensor(),)
    outputs: Mapping[str, tuple[str, int, int] | None] | None = None
    timeout_us: int = 0
    id: str = ""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a request: a status as HTTP has it, the error's text, the outputs."""

    status: int
    error: str = ""
    outputs: Mapping[str, NDArray[Any]] = dataclasses.field(default_factory=dict)


def http_body(request: Request) -> tuple[bytes, bytes]:
    """The JSON and the raw tensors after it."""
    inputs = []
    for tensor in request.inputs:
        told: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
        told["parameters"] = {"binary_data_size": len(tensor.data)} if tensor.region is None else _shared(tensor.region)
        inputs.append(told)
    head: dict[str, Any] = {
        "inputs": inputs,
        "id": request.id,
        "parameters": {"binary_data_output": request.outputs is None, "timeout": request.timeout_us},
    }
    if request.outputs is not None:
        head["outputs"] = [
            {"name": name, "parameters": {"binary_data": True} if region is None else _shared(region)}
            for name, region in request.outputs.items()
        ]
    return json.dumps(head).encode(), b"".join(tensor.data for tensor in request.inputs if tensor.region is None)


def frame_of(request: Request, number: int = 1) -> bytes:
    """The frame."""
    outputs = None
    if request.outputs is not None:
        outputs = [Wanted(name, *(region or ())) for name, region in request.outputs.items()]
    message = Infer(
        v=VERSION,
        id=number,
        model=request.model,
        version=request.version,
        request=request.id,
        timeout_us=request.timeout_us,
        outputs=outputs,
        inputs=[],
    )
    head = msgspec.msgpack.encode(message)[:-1]
    tensors = []
    for tensor in request.inputs:
        one: dict[str, Any] = {"name": tensor.name, "type": tensor.datatype, "shape": tensor.shape}
        if tensor.region is None:
            one["data"] = tensor.data
        else:
            one.update(zip(("region", "offset", "size"), tensor.region, strict=True))
        tensors.append(one)
    body = head + msgspec.msgpack.encode(tensors)
    return len(body).to_bytes(4, "little") + body


def grpc_message(request: Request) -> Any:
    """The message."""
    message = oip.ModelInferRequest(model_name=request.model, model_version=request.version, id=request.id)
    message.parameters["timeout"].int64_param = request.timeout_us
    for tensor in request.inputs:
        one = message.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        if tensor.region is None:
            message.raw_input_contents.append(tensor.data)
        else:
            _share(one, tensor.region)
    for name, region in (request.outputs or {}).items():
        wanted = message.outputs.add(name=name)
        if region is not None:
            _share(wanted, region)
    return message


def _shared(region: tuple[str, int, int]) -> dict[str, Any]:
    name, offset, size = region
    return {"shared_memory_region": name, "shared_memory_offset": offset, "shared_memory_byte_size": size}


def _share(tensor: Any, region: tuple[str, int, int]) -> None:
    for key, value in _shared(region).items():
        if isinstance(value, str):
            tensor.parameters[key].string_param = value
        else:
            tensor.parameters[key].int64_param = value


def read_http_answer(body: bytes, length: int | None) -> dict[str, NDArray[Any]]:
    """The outputs in the body of an answer over HTTP."""
    told = json.loads(body[:length])
    at = len(body) if length is None else length
    found = {}
    for tensor in told["outputs"]:
        shape = tuple(tensor["shape"])
        size = tensor.get("parameters", {}).get("binary_data_size")
        if size is not None:
            found[tensor["name"]] = array_of_raw(tensor["datatype"], shape, body[at : at + size])
            at += size
        elif "data" in tensor:
            found[tensor["name"]] = np.array(tensor["data"]).reshape(shape)
    return found


def array_of_raw(datatype: str, shape: tuple[int, ...], raw: bytes) -> NDArray[Any]:
    """An output out of its raw bytes."""
    dtype = Datatype(datatype)
    if dtype is Datatype.BYTES:
        return np.array([raw], dtype=object)
    assert len(raw) == math.prod(shape) * dtype.numpy.itemsize
    return np.frombuffer(raw, dtype.numpy).reshape(shape)
