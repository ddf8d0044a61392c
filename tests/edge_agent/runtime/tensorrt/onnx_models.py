"""Small ONNX models for engines: a chain of convolutions, a perceptron, a quantised layer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edge_agent.runtime.package import Golden, encode_golden
from edge_agent.runtime.tensorrt.profiles import Profile, ShapeProfile

IMAGE, SCORES = "image", "scores"


def convolutions(file: Path, *, seed: int = 0, layers: int = 3, channels: int = 16, outside: bool = False) -> Path:
    """``image`` float32[N, 3, 32, 32] to ``scores`` float32[N, channels, 1, 1].

    Args:
        outside: Whether the weights lie in a file of their own.
    """
    random = np.random.default_rng(seed)
    nodes, weights, last, width = [], [], IMAGE, 3
    for number in range(layers):
        values = random.normal(size=(channels, width, 3, 3)).astype(np.float32) * 0.1
        weights.append(numpy_helper.from_array(values, f"weight{number}"))
        nodes.append(helper.make_node("Conv", [last, f"weight{number}"], [f"conv{number}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"conv{number}"], [f"relu{number}"]))
        last, width = f"relu{number}", channels
    nodes.append(helper.make_node("GlobalAveragePool", [last], [SCORES]))
    model = _model(nodes, weights, [IMAGE, "N", 3, 32, 32], [SCORES, "N", channels, 1, 1])
    onnx.save(model, str(file), save_as_external_data=outside, location=f"{file.name}.data", size_threshold=0)
    return file


def perceptron(
    file: Path, *, seed: int = 0, scale: float = 1.0, clip: float = 6.0, width: int = 8, operator: str = "Clip"
) -> Path:
    """``image`` float32[N, 4] to ``scores`` float32[N, width], clipped to ``clip``.

    Args:
        scale: Of the weights: 1e6 gives numbers that float16 does not hold.
        operator: What is done with the bounds; ``Mystery`` is nothing that any runtime knows.
    """
    random = np.random.default_rng(seed)
    weights = [
        numpy_helper.from_array(random.normal(size=(4, width)).astype(np.float32) * scale, "kernel"),
        numpy_helper.from_array(random.normal(size=(width,)).astype(np.float32), "bias"),
        numpy_helper.from_array(np.array(1 / scale, np.float32), "shrink"),
        numpy_helper.from_array(np.array(-clip, np.float32), "low"),
        numpy_helper.from_array(np.array(clip, np.float32), "high"),
    ]
    nodes = [
        helper.make_node("MatMul", [IMAGE, "kernel"], ["large"], name="multiply"),
        helper.make_node("Mul", ["large", "shrink"], ["small"], name="shrink"),
        helper.make_node("Add", ["small", "bias"], ["sum"], name="add"),
        helper.make_node(operator, ["sum", "low", "high"], [SCORES], name="bound"),
    ]
    onnx.save(_model(nodes, weights, [IMAGE, "N", 4], [SCORES, "N", width]), str(file))
    return file


def quantised(file: Path, *, scale: float = 0.05) -> Path:
    """``image`` float32[N, 3, 32, 32] by one convolution in int8 (Q/DQ)."""
    random = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(random.integers(-90, 90, (8, 3, 3, 3)).astype(np.int8), "codes"),
        numpy_helper.from_array(np.array(scale, np.float32), "scale"),
        numpy_helper.from_array(np.array(0, np.int8), "zero"),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", [IMAGE, "scale", "zero"], ["input_codes"]),
        helper.make_node("DequantizeLinear", ["input_codes", "scale", "zero"], ["input"]),
        helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["weight"]),
        helper.make_node("Conv", ["input", "weight"], ["conv"], pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["conv"], [SCORES]),
    ]
    onnx.save(_model(nodes, weights, [IMAGE, "N", 3, 32, 32], [SCORES, "N", 8, 1, 1]), str(file))
    return file


def images(rows: int = 4, *axes: int) -> NDArray[np.float32]:
    """Pixels, float32[rows, *axes] in 0..1; 3 x 32 x 32 where nothing is said."""
    return np.random.default_rng(7).random((rows, *(axes or (3, 32, 32)))).astype(np.float32)


def golden_file(file: Path, model: Path, inputs: Mapping[str, NDArray[Any]]) -> Path:
    """The samples' file of a model, as ONNX Runtime answers them."""
    session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    outputs = dict(zip(names, session.run(names, dict(inputs)), strict=True))
    file.write_bytes(encode_golden(Golden(inputs=dict(inputs), outputs=outputs)))
    return file


def image_profiles(most_rows: int = 8) -> tuple[Profile, ...]:
    """For models of ``image`` float32[N, 3, 32, 32]."""
    return ((ShapeProfile(IMAGE, (1, 3, 32, 32), (4, 3, 32, 32), (most_rows, 3, 32, 32)),),)


def _model(nodes: list[Any], weights: list[Any], takes: list[Any], gives: list[Any]) -> Any:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(takes[0], TensorProto.FLOAT, takes[1:])],
        [helper.make_tensor_value_info(gives[0], TensorProto.FLOAT, gives[1:])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
