"""Real model packages, made in milliseconds: softmax(image @ weights + bias), 64 pixels to 10 classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edge_agent.contract.constraint import Constraint, Sensitivity
from edge_agent.contract.manifest import (
    CARD_FILE,
    EVALUATION_FILE,
    GOLDEN_FILE,
    INT8,
    REFERENCE_FILE,
    Batching,
    Classification,
    FileEntry,
    Lineage,
    Manifest,
    Probation,
    Requirements,
    Shadow,
    Variant,
    golden_file,
)
from edge_agent.contract.profile import (
    Feature,
    Projection,
    ReferenceProfile,
    count,
    encode_profile,
    project,
    quantile_edges,
)
from edge_agent.contract.sampling import SamplingPolicy
from edge_agent.contract.signature import Signature, TensorSpec
from edge_agent.contract.tensors import Datatype
from edge_agent.runtime.package import Golden, Package, encode_golden
from edge_agent.runtime.package_writer import write_package

PIXELS = 64
CLASSES = 10
LABELS = tuple(str(digit) for digit in range(CLASSES))
INPUT = "image"  # float32[N, 64] in 0..1
OUTPUT = "probabilities"  # float32[N, 10]
CLASS_EDGES = tuple(index - 0.5 for index in range(CLASSES + 1))


def make_package(
    folder: Path,
    *,
    version: str = "1",
    seed: int = 0,
    name: str = "digits",
    parent: str | None = None,
    sampling: SamplingPolicy | None = None,
    probation: Probation | None = None,
    shadow: Shadow | None = None,
    requires: Requirements | None = None,
    sensitivity: Sensitivity = Sensitivity.PUBLIC,
    golden_is_wrong: bool = False,
    fails_above: float | None = None,
    external_data: bool = False,
    extra_files: dict[str, bytes] | None = None,
    batching: Batching | None = None,
    int8_seed: int | None = None,
    int8_is_wrong: bool = False,
) -> Package:
    """Make a package in ``folder`` (which must not exist): the same arguments give the same digest.

    Args:
        seed: Of the weights: another seed is another model.
        golden_is_wrong: Golden outputs that the model does not give: the self-test fails.
        fails_above: The model raises at run time where a pixel is above this (golden samples stay below 0.9).
        external_data: Weights in ``model.onnx.data`` beside the graph.
        int8_seed: Of the weights of a second form called int8, with golden samples of its own, which are wrong where
            ``int8_is_wrong``; None makes none.
    """
    weights, bias = model_weights(seed)
    images = reference_images(256)
    files: dict[str, bytes | Path] = {
        "model.onnx": _graph(weights, bias, fails_above, external=external_data),
        REFERENCE_FILE: encode_profile(make_profile(images, answer(weights, bias, images))),
        GOLDEN_FILE: encode_golden(_golden(weights, bias, images[:8], wrong=golden_is_wrong)),
        EVALUATION_FILE: b'{"accuracy": 0.9}\n',
        CARD_FILE: f"# {name} {version}\n".encode(),
        **(extra_files or {}),
    }
    if external_data:
        files["model.onnx.data"] = weights.tobytes()
    variants = {"fp32": Variant(model="model.onnx", data=("model.onnx.data",) if external_data else ())}
    if int8_seed is not None:
        small = model_weights(int8_seed)
        files["int8/model.onnx"] = _graph(*small, None, external=False)
        files[golden_file(INT8)] = encode_golden(_golden(*small, images[:8], wrong=int8_is_wrong))
        variants[INT8] = Variant(model="int8/model.onnx")

    def manifest(entries: dict[str, FileEntry]) -> Manifest:
        return Manifest(
            name=name,
            version=version,
            parent=parent,
            lineage=Lineage(
                dataset="0" * 64,
                code_sha256="1" * 64,
                lock_sha256="2" * 64,
                seed=seed,
                run=f"run-{version}",
                trained_at="2025-01-01T00:00:00Z",
            ),
            signature=make_signature(sensitivity),
            task=Classification(output=OUTPUT, labels=LABELS),
            variants=variants,
            files=entries,
            sampling=sampling or SamplingPolicy(),
            probation=probation or Probation(),
            shadow=shadow or Shadow(),
            requires=requires or Requirements(),
            batching=batching,
        )

    return write_package(folder, files=files, manifest=manifest)


def make_signature(sensitivity: Sensitivity = Sensitivity.PUBLIC) -> Signature:
    """One image in, class probabilities out."""
    limits = Constraint(minimum=0.0, maximum=1.0, sensitivity=sensitivity)
    return Signature(
        inputs=(TensorSpec(name=INPUT, datatype=Datatype.FP32, shape=(None, PIXELS), constraint=limits),),
        outputs=(TensorSpec(name=OUTPUT, datatype=Datatype.FP32, shape=(None, CLASSES), labels=LABELS),),
    )


def model_weights(seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weights float32[64, 10] and bias float32[10] of the model with this seed."""
    random = np.random.default_rng(seed)
    weights = random.normal(0.0, 0.8, (PIXELS, CLASSES)).astype(np.float32)
    return weights, random.normal(0.0, 0.1, CLASSES).astype(np.float32)


def reference_images(rows: int, seed: int = 1) -> NDArray[np.float32]:
    """Images float32[rows, 64] in 0..0.9."""
    return (np.random.default_rng(seed).random((rows, PIXELS)) * 0.9).astype(np.float32)


def answer(weights: NDArray[np.float32], bias: NDArray[np.float32], images: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the model answers, computed by numpy: float32[N, 10]."""
    logits = images @ weights + bias
    grown = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(grown / grown.sum(axis=1, keepdims=True), dtype=np.float32)


def make_profile(images: NDArray[np.float32], probabilities: NDArray[np.float32]) -> ReferenceProfile:
    """A reference profile with two input and three output features."""
    wanted = (
        ("image.mean", INPUT, "input", Projection.MEAN, images),
        ("image.std", INPUT, "input", Projection.STD, images),
        ("confidence", OUTPUT, "output", Projection.CONFIDENCE, probabilities),
        ("margin", OUTPUT, "output", Projection.MARGIN, probabilities),
        ("class", OUTPUT, "output", Projection.CLASS, probabilities),
    )
    features: list[Feature] = []
    counts = {}
    margins = np.zeros(0)
    for name, tensor, side, projection, array in wanted:
        blank = Feature(name=name, tensor=tensor, side=side, projection=projection, edges=(0.0, 1.0))
        values = project(blank, array)
        edges = CLASS_EDGES if projection is Projection.CLASS else quantile_edges(values)
        feature = Feature(name=name, tensor=tensor, side=side, projection=projection, edges=edges)
        features.append(feature)
        counts[name] = count(feature, values)
        margins = values if projection is Projection.MARGIN else margins
    return ReferenceProfile(
        features=tuple(features),
        counts=counts,
        calibration=((0.0, 0.0), (1.0, 1.0)),
        accuracy=0.9,
        margin_threshold=float(np.quantile(margins, 0.2)),
    )


def _golden(
    weights: NDArray[np.float32], bias: NDArray[np.float32], images: NDArray[np.float32], *, wrong: bool
) -> Golden:
    outputs = answer(weights, bias, images)
    if wrong:
        outputs[3, 2] += 0.5
    return Golden(inputs={INPUT: images}, outputs={OUTPUT: outputs})


def _graph(
    weights: NDArray[np.float32], bias: NDArray[np.float32], fails_above: float | None, *, external: bool
) -> bytes:
    kernel = numpy_helper.from_array(weights, "weights")
    constants = [kernel, numpy_helper.from_array(bias, "bias")]
    nodes: list[Any] = [
        helper.make_node("MatMul", [INPUT, "weights"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["logits"]),
        helper.make_node("Softmax", ["logits"], [OUTPUT], axis=1),
    ]
    if fails_above is not None:  # a Gather whose index is out of bounds where a pixel is too bright
        constants += [
            numpy_helper.from_array(np.array(fails_above, np.float32), "limit"),
            numpy_helper.from_array(np.array(1000, np.int64), "thousand"),
            numpy_helper.from_array(np.zeros(1, np.float32), "zero"),
        ]
        nodes[2:] = [
            helper.make_node("ReduceMax", [INPUT], ["brightest"], keepdims=0),
            helper.make_node("Greater", ["brightest", "limit"], ["bright"]),
            helper.make_node("Cast", ["bright"], ["bright_int"], to=TensorProto.INT64),
            helper.make_node("Mul", ["bright_int", "thousand"], ["index"]),
            helper.make_node("Gather", ["zero", "index"], ["nothing"]),
            helper.make_node("Add", ["logits", "nothing"], ["shifted"]),
            helper.make_node("Softmax", ["shifted"], [OUTPUT], axis=1),
        ]
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["N", PIXELS])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["N", CLASSES])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    if external:
        stored = model.graph.initializer[0]
        onnx.external_data_helper.set_external_data(stored, "model.onnx.data", offset=0, length=weights.nbytes)
        stored.ClearField("raw_data")
    return bytes(model.SerializeToString(deterministic=True))
