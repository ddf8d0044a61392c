"""A package whose model hangs, or is slow, when it is asked to: it counts in a loop as long as the first pixel says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edge_agent.contract.manifest import (
    GOLDEN_FILE,
    REFERENCE_FILE,
    Batching,
    Classification,
    FileEntry,
    Lineage,
    Manifest,
    Variant,
)
from edge_agent.contract.profile import encode_profile
from edge_agent.contract.signature import Signature, TensorSpec
from edge_agent.contract.tensors import Datatype
from edge_agent.runtime.package import Golden, Package, encode_golden
from edge_agent.runtime.package_writer import write_package
from tests.fakes.packages import CLASSES, INPUT, LABELS, OUTPUT, PIXELS, answer, make_profile, model_weights
from tests.fakes.packages import reference_images as images_of_rows

# About a microsecond each: minutes, in practice for ever.
FOREVER = 1e9


def make_hanging_package(
    folder: Path,
    *,
    name: str = "sleeper",
    version: str = "1",
    batching: Batching | None = None,
    max_run_s: float = 30.0,
    golden_hangs: bool = False,
    turns: float = 1.0,
) -> Package:
    """Make a package in ``folder``.

    It answers as ``make_package``'s does, after so many turns of a loop as pixel 0 says, the largest of all rows: whole
    turns, so that golden samples, which are below 1, take none.

    Args:
        turns: For each 1.0 of pixel 0, which golden samples have at 0 where this is another number.
    """
    weights, bias = model_weights()
    images = images_of_rows(64)
    outputs = answer(weights, bias, images)
    golden = images[:8].copy()
    if turns != 1.0:
        golden[:, 0] = 0.0
        outputs = answer(weights, bias, golden)
    if golden_hangs:
        golden[:, 0] = FOREVER
    files: dict[str, bytes | Path] = {
        "model.onnx": _graph(turns),
        REFERENCE_FILE: encode_profile(make_profile(images, answer(weights, bias, images))),
        GOLDEN_FILE: encode_golden(Golden(inputs={INPUT: golden}, outputs={OUTPUT: outputs[:8]})),
    }

    def manifest(entries: dict[str, FileEntry]) -> Manifest:
        return Manifest(
            name=name,
            version=version,
            lineage=Lineage(
                dataset="0" * 64,
                code_sha256="1" * 64,
                lock_sha256="2" * 64,
                seed=0,
                run="run-1",
                trained_at="2025-01-01T00:00:00Z",
            ),
            signature=Signature(
                inputs=(TensorSpec(name=INPUT, datatype=Datatype.FP32, shape=(None, PIXELS)),),
                outputs=(TensorSpec(name=OUTPUT, datatype=Datatype.FP32, shape=(None, CLASSES), labels=LABELS),),
            ),
            task=Classification(output=OUTPUT, labels=LABELS),
            variants={"fp32": Variant(model="model.onnx")},
            files=entries,
            batching=batching,
            max_run_s=max_run_s,
        )

    return write_package(folder, files=files, manifest=manifest)


def _graph(turns: float) -> bytes:
    """Loop(turns, count += 1), whose count enters the answer times zero, so that nothing can optimise it away."""
    weights, bias = model_weights()
    boolean, integer = TensorProto.BOOL, TensorProto.INT64
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["going"], ["still_going"]),
            helper.make_node("Add", ["count", "one"], ["counted"]),
        ],
        "turn",
        [
            helper.make_tensor_value_info("turn", integer, []),
            helper.make_tensor_value_info("going", boolean, []),
            helper.make_tensor_value_info("count", TensorProto.FLOAT, []),
        ],
        [
            helper.make_tensor_value_info("still_going", boolean, []),
            helper.make_tensor_value_info("counted", TensorProto.FLOAT, []),
        ],
        [numpy_helper.from_array(np.array(1, np.float32), "one")],
    )
    nodes: list[Any] = [
        helper.make_node("Slice", [INPUT, "zeros", "ones", "axis"], ["asked"]),
        helper.make_node("ReduceMax", ["asked"], ["most"], keepdims=0),
        helper.make_node("Mul", ["most", "factor"], ["asked_turns"]),
        helper.make_node("Cast", ["asked_turns"], ["turns"], to=integer),
        helper.make_node("Loop", ["turns", "yes", "zero"], ["total"], body=body),
        helper.make_node("Mul", ["total", "zero"], ["nothing"]),
        helper.make_node("MatMul", [INPUT, "weights"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["logits"]),
        helper.make_node("Add", ["logits", "nothing"], ["shifted"]),
        helper.make_node("Softmax", ["shifted"], [OUTPUT], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "sleeper",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["N", PIXELS])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["N", CLASSES])],
        [
            numpy_helper.from_array(weights, "weights"),
            numpy_helper.from_array(bias, "bias"),
            numpy_helper.from_array(np.zeros(1, np.int64), "zeros"),
            numpy_helper.from_array(np.ones(1, np.int64), "ones"),
            numpy_helper.from_array(np.array([1], np.int64), "axis"),
            numpy_helper.from_array(np.array(True), "yes"),
            numpy_helper.from_array(np.array(0, np.float32), "zero"),
            numpy_helper.from_array(np.array(turns, np.float32), "factor"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))
