"""A package whose model takes and gives text: BYTES in, the same BYTES and fixed probabilities out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edge_agent.contract.manifest import (
    GOLDEN_FILE,
    REFERENCE_FILE,
    Classification,
    FileEntry,
    Lineage,
    Manifest,
    Variant,
)
from edge_agent.contract.profile import Feature, FeatureCounts, Projection, ReferenceProfile, encode_profile
from edge_agent.contract.signature import Signature, TensorSpec
from edge_agent.contract.tensors import Datatype
from edge_agent.runtime.package import Golden, Package, encode_golden
from edge_agent.runtime.package_writer import write_package

TEXT = "text"  # BYTES[N, 1]


def make_text_package(folder: Path, *, name: str = "echo") -> Package:
    """Make a package of a model that answers every text with itself and the probabilities 0.75, 0.25."""
    words = np.array([[b"one"], [b"two"]], dtype=object)
    probabilities = np.array([[0.75, 0.25]] * 2, dtype=np.float32)
    feature = Feature(
        name="confidence",
        tensor="probabilities",
        side="output",
        projection=Projection.CONFIDENCE,
        edges=(0.0, 0.5, 1.0),
    )
    profile = ReferenceProfile(features=(feature,), counts={"confidence": FeatureCounts(bins=(0, 2))})
    signature = Signature(
        inputs=(TensorSpec(name=TEXT, datatype=Datatype.BYTES, shape=(None, 1)),),
        outputs=(
            TensorSpec(name="echo", datatype=Datatype.BYTES, shape=(None, 1)),
            TensorSpec(name="probabilities", datatype=Datatype.FP32, shape=(None, 2)),
        ),
    )

    def manifest(entries: dict[str, FileEntry]) -> Manifest:
        return Manifest(
            name=name,
            version="1",
            lineage=Lineage(
                dataset="0" * 64,
                code_sha256="1" * 64,
                lock_sha256="2" * 64,
                seed=0,
                run="run",
                trained_at="2025-01-01T00:00:00Z",
            ),
            signature=signature,
            task=Classification(output="probabilities", labels=("yes", "no")),
            variants={"fp32": Variant(model="model.onnx")},
            files=entries,
        )

    golden = Golden(inputs={TEXT: words}, outputs={"echo": words, "probabilities": probabilities})
    files: dict[str, bytes | Path] = {
        "model.onnx": _graph(),
        GOLDEN_FILE: encode_golden(golden),
        REFERENCE_FILE: encode_profile(profile),
    }
    return write_package(folder, files=files, manifest=manifest)


def _graph() -> bytes:
    nodes = [
        helper.make_node("Identity", [TEXT], ["echo"]),
        helper.make_node("Shape", [TEXT], ["rows"], start=0, end=1),
        helper.make_node("Concat", ["rows", "one"], ["repeats"], axis=0),
        helper.make_node("Tile", ["answer", "repeats"], ["probabilities"]),
    ]
    graph = helper.make_graph(
        nodes,
        "echo",
        [helper.make_tensor_value_info(TEXT, TensorProto.STRING, ["N", 1])],
        [
            helper.make_tensor_value_info("echo", TensorProto.STRING, ["N", 1]),
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 2]),
        ],
        [
            numpy_helper.from_array(np.array([1], dtype=np.int64), "one"),
            numpy_helper.from_array(np.array([[0.75, 0.25]], dtype=np.float32), "answer"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))
