"""A package whose signature has a bit of everything: datatypes, bounds, enumerations, text, dates, open axes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edge_agent.contract.constraint import AxisLimit, Constraint, DateFormat, Encoding, Policy, Rule
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
from edge_agent.contract.profile import Feature, FeatureCounts, Projection, ReferenceProfile, encode_profile
from edge_agent.contract.signature import Signature, TensorSpec
from edge_agent.contract.tensors import Datatype
from edge_agent.runtime.package import Golden, Package, encode_golden
from edge_agent.runtime.package_writer import write_package

LABELS = ("fine", "alarm")
SIGNATURE = Signature(
    inputs=(
        TensorSpec(
            name="temperature",
            datatype=Datatype.FP32,
            shape=(None, 3),
            constraint=Constraint(minimum=-40.0, maximum=85.0, unit="Cel", nullable=True, fill=20.0),
        ),
        TensorSpec(
            name="mode", datatype=Datatype.INT64, shape=(None, 1), constraint=Constraint(allowed=(1.0, 2.0, 4.0))
        ),
        TensorSpec(name="armed", datatype=Datatype.BOOL, shape=(None, 1)),
        TensorSpec(
            name="note",
            datatype=Datatype.BYTES,
            shape=(None, 1),
            constraint=Constraint(encoding=Encoding.UTF_8, min_length=3, max_length=12),
        ),
        TensorSpec(
            name="seen-at",
            datatype=Datatype.BYTES,
            shape=(None, 1),
            constraint=Constraint(date=DateFormat(zone="Europe/Berlin")),
        ),
        TensorSpec(
            name="loudness",
            datatype=Datatype.FP32,
            shape=(None, None),
            constraint=Constraint(
                minimum=0.0,
                maximum=1.0,
                policies={Rule.RANGE: Policy.CLIP},
                axes=(AxisLimit(axis=1, minimum=2, maximum=8),),
            ),
        ),
    ),
    outputs=(TensorSpec(name="probabilities", datatype=Datatype.FP32, shape=(None, 2), labels=LABELS),),
)


def make_sensor_package(folder: Path, *, name: str = "sensor-guard", version: str = "1", readings: int = 3) -> Package:
    """Make a package of a model that always answers 0.75, 0.25; it is batched by up to 4 rows.

    Args:
        readings: Elements of "temperature" in one row.
    """
    signature = _signature(readings)
    probabilities = np.array([[0.75, 0.25]] * 2, dtype=np.float32)
    inputs: dict[str, NDArray[Any]] = {
        "temperature": np.full((2, readings), 21.5, dtype=np.float32),
        "mode": np.ones((2, 1), dtype=np.int64),
        "armed": np.ones((2, 1), dtype=np.bool_),
        "note": np.array([[b"one"], [b"two"]], dtype=object),
        "seen-at": np.array([[b"2026-03-02T12:00:00Z"]] * 2, dtype=object),
        "loudness": np.full((2, 4), 0.5, dtype=np.float32),
    }
    feature = Feature(
        name="confidence",
        tensor="probabilities",
        side="output",
        projection=Projection.CONFIDENCE,
        edges=(0.0, 0.5, 1.0),
    )

    def manifest(entries: dict[str, FileEntry]) -> Manifest:
        return Manifest(
            name=name,
            version=version,
            lineage=Lineage(
                dataset="0" * 64,
                code_sha256="1" * 64,
                lock_sha256="2" * 64,
                seed=0,
                run="run",
                trained_at="2025-01-01T00:00:00Z",
            ),
            signature=signature,
            task=Classification(output="probabilities", labels=LABELS),
            variants={"fp32": Variant(model="model.onnx")},
            files=entries,
            batching=Batching(max_rows=4, preferred_rows=(2, 4), max_delay_us=500, max_queue=32, timeout_us=2_000_000),
        )

    files: dict[str, bytes | Path] = {
        "model.onnx": _graph(signature),
        GOLDEN_FILE: encode_golden(Golden(inputs=inputs, outputs={"probabilities": probabilities})),
        REFERENCE_FILE: encode_profile(
            ReferenceProfile(features=(feature,), counts={"confidence": FeatureCounts(bins=(0, 2))})
        ),
    }
    return write_package(folder, files=files, manifest=manifest)


def _signature(readings: int) -> Signature:
    first, *others = SIGNATURE.inputs
    return Signature(
        inputs=(msgspec.structs.replace(first, shape=(None, readings)), *others), outputs=SIGNATURE.outputs
    )


def _graph(signature: Signature) -> bytes:
    types = {
        Datatype.FP32: TensorProto.FLOAT,
        Datatype.INT64: TensorProto.INT64,
        Datatype.BOOL: TensorProto.BOOL,
        Datatype.BYTES: TensorProto.STRING,
    }
    nodes = [
        helper.make_node("Shape", ["temperature"], ["rows"], start=0, end=1),
        helper.make_node("Concat", ["rows", "one"], ["repeats"], axis=0),
        helper.make_node("Tile", ["answer", "repeats"], ["probabilities"]),
    ]
    graph = helper.make_graph(
        nodes,
        "sensor",
        [
            helper.make_tensor_value_info(
                spec.name, types[spec.datatype], ["N", "M" if spec.shape[1] is None else spec.shape[1]]
            )
            for spec in signature.inputs
        ],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 2])],
        [
            numpy_helper.from_array(np.array([1], dtype=np.int64), "one"),
            numpy_helper.from_array(np.array([[0.75, 0.25]], dtype=np.float32), "answer"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))
