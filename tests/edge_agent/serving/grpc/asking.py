"""Requests over gRPC, made by tritonclient or by hand."""

from __future__ import annotations

from typing import Any

import grpc
import numpy as np
import tritonclient.grpc
from tritonclient.grpc import service_pb2

from edge_agent.serving.grpc import oip_pb2 as oip
from tests.fakes.packages import reference_images
from tests.fakes.serving_device import Device

IMAGES = reference_images(3)


def image_input(images: np.ndarray[Any, Any] = IMAGES) -> Any:
    tensor = tritonclient.grpc.InferInput("image", list(images.shape), "FP32")
    tensor.set_data_from_numpy(images)
    return tensor


def ask(device: Device, message: Any) -> Any:
    """What ``message`` is answered, as a client sees it that builds its messages itself."""
    with grpc.insecure_channel(device.api.addresses["grpc"]) as channel:
        call = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=lambda request: request.SerializeToString(),
            response_deserializer=service_pb2.ModelInferResponse.FromString,
        )
        return call(message, timeout=30)


def right() -> oip.ModelInferRequest:
    """A request that version 1 of "digits" answers."""
    message = oip.ModelInferRequest(model_name="digits", model_version="1")
    message.inputs.add(name="image", datatype="FP32", shape=IMAGES.shape)
    message.raw_input_contents.append(IMAGES.tobytes())
    return message
