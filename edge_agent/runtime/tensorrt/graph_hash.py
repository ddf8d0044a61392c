"""What two models must have in common for the engine of one to be refitted with the weights of the other.

Everything counts but the values of weights: names too, for TensorRT finds weights by name. A constant counts as a
weight only where TensorRT has it as one. What it folds into a kernel (bounds of a clip, sizes of a resize, scales of a
quantised layer) stays as it was when the engine was built, so those values are part of the graph.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from edge_agent.contract.errors import AcceleratorUnavailable, EngineBuildFailed
from edge_agent.runtime.tensorrt.job import EnginePrecision, GraphFacts
from edge_agent.runtime.tensorrt.onnx_file import load_model

# Raised when the hash is made otherwise: engines of before are then not refitted.
_FORMAT = b"1"
# Operators, and which of their inputs are weights.
_WEIGHTS_OF = {
    "Add": (0, 1),
    "BatchNormalization": (1, 2, 3, 4),
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Gemm": (0, 1, 2),
    "InstanceNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "MatMul": (0, 1),
    "Mul": (0, 1),
    "PRelu": (1,),
    "Sub": (0, 1),
}
_QUANTISING = frozenset({"QuantizeLinear", "DequantizeLinear"})


def inspect_graph(file: Path) -> GraphFacts:
    """What a model is, its weights aside.

    Raises:
        EngineBuildFailed: The file is no ONNX model; final.
    """
    try:
        model = load_model(file, weights=False)
    except AcceleratorUnavailable:  # engines are then rebuilt where they might be refitted
        return GraphFacts(graph="", precision="fp32")
    return GraphFacts(graph=graph_hash(model, file.parent), precision=model_precision(model))


def model_precision(model: Any) -> EnginePrecision:
    """What a model computes in: int8 where it quantises, else the types of its weights."""
    from onnx import TensorProto

    graph = model.graph
    operators = {node.op_type for node in graph.node}
    kinds = {weight.data_type for weight in graph.initializer}
    halves, floats = TensorProto.FLOAT16 in kinds, TensorProto.FLOAT in kinds
    if operators & _QUANTISING:
        eight_bits = {TensorProto.INT8, TensorProto.UINT8}
        points = _inputs(graph, _QUANTISING, 2)
        kinds = {weight.data_type for weight in graph.initializer if weight.name in points}
        return "int8" if kinds <= eight_bits else "mixed"
    if TensorProto.BFLOAT16 in kinds or (halves and floats):
        return "mixed"
    return "fp16" if halves else "fp32"


def graph_hash(model: Any, folder: Path) -> str:
    """SHA-256 of a model without its weights.

    Args:
        folder: Where weights in files of their own lie.
    Raises:
        EngineBuildFailed: A constant that belongs to the graph cannot be read from its file; final.
    """
    graph = model.graph
    weights = _weights(graph)
    digest = hashlib.sha256(_FORMAT)
    for opset in sorted(model.opset_import, key=lambda each: each.domain):
        _add(digest, opset)
    for message in (*graph.node, *model.functions, *graph.input, *graph.output, *graph.sparse_initializer):
        _add(digest, _plain(message))
    for constant in graph.initializer:
        if constant.name in weights:
            digest.update(repr((constant.name, constant.data_type, list(constant.dims))).encode())
        else:
            _add(digest, _with_values(constant, folder))
    return digest.hexdigest()


def _weights(graph: Any) -> set[str]:
    """Floating-point constants that are nothing but weights, wherever they are used."""
    from onnx import TensorProto

    floats = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}
    candidates = {constant.name for constant in graph.initializer if constant.data_type in floats}
    other = {output.name for output in graph.output}
    for node in graph.node:
        places = _WEIGHTS_OF.get(node.op_type, ()) if node.domain in ("", "ai.onnx") else ()
        other.update(name for place, name in enumerate(node.input) if place not in places)
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                other.update(name for each in inner.node for name in each.input)
    return candidates - other


def _inputs(graph: Any, operators: Iterable[str], place: int) -> set[str]:
    return {node.input[place] for node in graph.node if node.op_type in operators and len(node.input) > place}


def _plain(message: Any) -> Any:
    """A copy without what only people read; exporters write line numbers and paths there."""
    copy = type(message)()
    copy.CopyFrom(message)
    for field in ("doc_string", "metadata_props"):
        if field in copy.DESCRIPTOR.fields_by_name:
            copy.ClearField(field)
    return copy


def _with_values(constant: Any, folder: Path) -> Any:
    """A constant whose values stand in itself, and in one form whatever form they came in."""
    from onnx import numpy_helper

    try:
        values = numpy_helper.to_array(constant, base_dir=str(folder))
    except Exception as error:
        # onnx, numpy and the file system each have exceptions of their own for weights that are not there.
        raise EngineBuildFailed(f"constant '{constant.name}' cannot be read: {error}", is_final=True) from error
    return numpy_helper.from_array(values, constant.name)


def _add(digest: Any, message: Any) -> None:
    data = message.SerializeToString(deterministic=True)
    digest.update(len(data).to_bytes(8, "little"))
    digest.update(data)
