"""A real package with weights to speak of: softmax(relu(image @ first) @ second), 64 pixels to 10 classes."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edge_agent.contract.manifest import (
    GOLDEN_FILE,
    REFERENCE_FILE,
    Batching,
    Classification,
    FileEntry,
    Lineage,
    Manifest,
    Resources,
    Variant,
)
from edge_agent.contract.profile import encode_profile
from edge_agent.runtime.package import Golden, Package, encode_golden
from edge_agent.runtime.package_writer import write_package
from tests.fakes.packages import CLASSES, INPUT, LABELS, OUTPUT, PIXELS, make_profile, make_signature, reference_images

MIB = 1 << 20


def make_large_package(
    folder: Path,
    *,
    name: str = "large",
    version: str = "1",
    seed: int = 0,
    weights_mib: float = 25.0,
    external: bool = False,
    resources: Resources | None = None,
    batching: Batching | None = None,
) -> Package:
    """Make a package in ``folder`` (which must not exist) with so many MiB of weights.

    Args:
        external: Weights in ``model.onnx.data`` beside the graph.
    """
    first, second = _weights(seed, round(weights_mib * MIB / 4 / (PIXELS + CLASSES)))
    images = reference_images(64)
    outputs = large_answer(first, second, images)
    graph = _graph(first, second, external=external)
    files: dict[str, bytes | Path] = {
        "model.onnx": graph,
        REFERENCE_FILE: encode_profile(make_profile(images, outputs)),
        GOLDEN_FILE: encode_golden(Golden(inputs={INPUT: images[:4]}, outputs={OUTPUT: outputs[:4]})),
    }
    if external:
        files["model.onnx.data"] = first.tobytes() + second.tobytes()

    def manifest(entries: dict[str, FileEntry]) -> Manifest:
        return Manifest(
            name=name,
            version=version,
            lineage=Lineage(
                dataset="0" * 64,
                code_sha256="1" * 64,
                lock_sha256="2" * 64,
                seed=seed,
                run=f"run-{version}",
                trained_at="2025-01-01T00:00:00Z",
            ),
            signature=make_signature(),
            task=Classification(output=OUTPUT, labels=LABELS),
            variants={"fp32": Variant(model="model.onnx", data=("model.onnx.data",) if external else ())},
            files=entries,
            resources=resources or Resources(),
            batching=batching,
        )

    return write_package(folder, files=files, manifest=manifest)


def large_answer(
    first: NDArray[np.float32], second: NDArray[np.float32], images: NDArray[np.float32]
) -> NDArray[np.float32]:
    """What the model answers, computed by numpy: float32[N, 10]."""
    logits = np.maximum(images @ first, 0) @ second
    grown = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(grown / grown.sum(axis=1, keepdims=True), dtype=np.float32)


@functools.lru_cache(maxsize=2)
def _weights(seed: int, hidden: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    random = np.random.default_rng(seed)
    first = random.standard_normal((PIXELS, hidden), dtype=np.float32) * np.float32(0.2)
    return first, random.standard_normal((hidden, CLASSES), dtype=np.float32) * np.float32(2.0 / hidden**0.5)


def _graph(first: NDArray[np.float32], second: NDArray[np.float32], *, external: bool) -> bytes:
    constants = [numpy_helper.from_array(first, "first"), numpy_helper.from_array(second, "second")]
    nodes = [
        helper.make_node("MatMul", [INPUT, "first"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["active"]),
        helper.make_node("MatMul", ["active", "second"], ["logits"]),
        helper.make_node("Softmax", ["logits"], [OUTPUT], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "large",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["N", PIXELS])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["N", CLASSES])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    if external:
        offset = 0
        for stored, array in zip(model.graph.initializer, (first, second), strict=True):
            onnx.external_data_helper.set_external_data(stored, "model.onnx.data", offset=offset, length=array.nbytes)
            stored.ClearField("raw_data")
            offset += array.nbytes
    return bytes(model.SerializeToString(deterministic=True))
