"""Frames as they cross the socket, one of each kind: C clients and older programs must be able to rely on each byte."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract import frames
from edge_agent.contract.constraint import Constraint
from edge_agent.contract.frame_messages import (
    VERSION,
    Accepted,
    Answer,
    BrokenRule,
    Describe,
    Failure,
    Feedback,
    Infer,
    Inferred,
    ListModels,
    Metadata,
    Models,
    Ping,
    Pong,
    Request,
    ServedModel,
    Values,
    Wanted,
)
from edge_agent.contract.signature import Signature, TensorSpec
from edge_agent.contract.tensors import Datatype

PACKAGE = "5f" * 32
IMAGE = np.array([[0.0, 0.25, 0.5, 1.0]], dtype=np.float32)
PROBABILITIES = np.array([[0.25, 0.75]], dtype=np.float32)
WORDS = np.array([["ja"], ["nö"]], dtype=object)
Tensors = Mapping[str, "NDArray[Any] | Values"]

REQUESTS: dict[str, tuple[Request, Tensors]] = {
    "frame-infer": (Infer(v=VERSION, id=1, model="digits", inputs=[]), {"image": IMAGE}),
    "frame-infer-all-members": (
        Infer(
            v=VERSION,
            id=2**40,
            model="crane",
            version="7",
            request="job-81",
            group="ship-4",
            priority=1,
            timeout_us=20_000,
            monitor=False,
            outputs=[Wanted("probabilities"), Wanted("mask", region="out", offset=64, size=4096)],
            inputs=[],
        ),
        {
            "image": Values("image", Datatype.UINT8, (1, 3, 32, 32), region="in", offset=128, size=3072),
            "words": WORDS,
            "load": np.array([[1.5], [2.5]], dtype=np.float64),
        },
    ),
    "frame-feedback": (
        Feedback(v=VERSION, id=3, model="digits", request="job-81", label="7", source="operator", row=2),
        {},
    ),
    "frame-models": (ListModels(v=VERSION, id=4), {}),
    "frame-metadata": (Describe(v=VERSION, id=5, model="digits", version="7"), {}),
    "frame-ping": (Ping(v=VERSION, id=6), {}),
}
ANSWERS: dict[str, tuple[Answer, Tensors]] = {
    "frame-inferred": (
        Inferred(
            id=1,
            model="digits",
            version="7",
            package=PACKAGE,
            request="a1b2c3d4e5-1",
            label_wanted=True,
            violations=[BrokenRule("image", "range", "clip", 1, 0, "1.25")],
            outputs=[],
        ),
        {"probabilities": PROBABILITIES},
    ),
    "frame-accepted": (Accepted(id=3, model="digits", request="job-81"), {}),
    "frame-models-answer": (Models(id=4, models=[ServedModel("digits", "7", PACKAGE, default=True)]), {}),
    "frame-metadata-answer": (
        Metadata(
            id=5,
            model="digits",
            version="7",
            package=PACKAGE,
            platform="onnx_onnxv1",
            signature=Signature(
                inputs=(
                    TensorSpec(
                        name="image",
                        datatype=Datatype.FP32,
                        shape=(None, 4),
                        constraint=Constraint(minimum=0.0, maximum=1.0),
                    ),
                ),
                outputs=(TensorSpec(name="probabilities", datatype=Datatype.FP32, shape=(None, 2)),),
            ),
        ),
        {},
    ),
    "frame-pong": (Pong(id=6, agent="0.1.0"), {}),
    "frame-error": (
        Failure(
            id=1,
            status=400,
            kind="SignatureMismatch",
            error="input 'image', row 0: range: value 1.25 at [0, 3] is above the maximum 1",
            tensor="image",
            rule="range",
            row=0,
        ),
        {},
    ),
    "frame-error-busy": (
        Failure(id=2, status=503, kind="Busy", error="64 requests wait, the limit", retry_after_s=1.0),
        {},
    ),
}


def written(message: Request | Answer, tensors: Tensors) -> bytes:
    """The frame, whole."""
    if isinstance(message, (Infer, Inferred)):
        return b"".join(frames.encode_tensors(message, tensors))
    return frames.encode(message)


def golden_frames() -> dict[str, bytes]:
    """Every frame by the name of its file."""
    return {f"{name}.bin": written(*parts) for name, parts in {**REQUESTS, **ANSWERS}.items()}
