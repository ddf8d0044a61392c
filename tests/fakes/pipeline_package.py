"""A pipeline of two real models: "scaler" makes bytes of pixels 0..255 into 0..1, "digits" tells the digit."""

from __future__ import annotations

from pathlib import Path

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
    PipelineStep,
    Probation,
    Shadow,
    Variant,
)
from edge_agent.contract.profile import (
    Feature,
    FeatureCounts,
    Projection,
    ReferenceProfile,
    count,
    encode_profile,
    project,
    quantile_edges,
)
from edge_agent.contract.signature import Signature, TensorSpec
from edge_agent.contract.tensors import Datatype
from edge_agent.runtime.package import Golden, Package, encode_golden
from edge_agent.runtime.package_writer import write_package
from tests.fakes.packages import CLASSES, INPUT, LABELS, OUTPUT, PIXELS, answer, model_weights, reference_images

RAW = "raw"  # float32[N, 64] in 0..255
SCALED = "scaled"  # float32[N, 64] in 0..1
STEPS = (
    PipelineStep(model="scaler"),
    PipelineStep(model="digits", inputs={INPUT: SCALED}),
)
_LINEAGE = Lineage(
    dataset="0" * 64, code_sha256="1" * 64, lock_sha256="2" * 64, seed=0, run="run-1", trained_at="2025-01-01T00:00:00Z"
)
_RAW_SPEC = TensorSpec(name=RAW, datatype=Datatype.FP32, shape=(None, PIXELS))


def make_scaler_package(folder: Path, *, version: str = "1", factor: float = 1 / 255, output: str = SCALED) -> Package:
    """``scaled = raw * factor``; its "classes" are the pixels."""
    raw = reference_images(64) * np.float32(255)
    scaled = raw * np.float32(factor)
    labels = tuple(f"pixel{index}" for index in range(PIXELS))
    graph = helper.make_graph(
        [helper.make_node("Mul", [RAW, "factor"], [output])],
        "scaler",
        [helper.make_tensor_value_info(RAW, TensorProto.FLOAT, ["N", PIXELS])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["N", PIXELS])],
        [numpy_helper.from_array(np.array(factor, np.float32), "factor")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    files: dict[str, bytes | Path] = {
        "model.onnx": model.SerializeToString(deterministic=True),
        REFERENCE_FILE: encode_profile(_profile(raw)),
        GOLDEN_FILE: encode_golden(Golden(inputs={RAW: raw[:8]}, outputs={output: scaled[:8]})),
    }

    def manifest(entries: dict[str, FileEntry]) -> Manifest:
        return Manifest(
            name="scaler",
            version=version,
            lineage=_LINEAGE,
            signature=Signature(
                inputs=(_RAW_SPEC,),
                outputs=(TensorSpec(name=output, datatype=Datatype.FP32, shape=(None, PIXELS)),),
            ),
            task=Classification(output=output, labels=labels),
            variants={"fp32": Variant(model="model.onnx")},
            files=entries,
        )

    return write_package(folder, files=files, manifest=manifest)


def make_pipeline_package(
    folder: Path,
    *,
    name: str = "reader",
    version: str = "1",
    steps: tuple[PipelineStep, ...] = STEPS,
    signature: Signature | None = None,
    batching: Batching | None = None,
    max_run_s: float = 30.0,
    seed: int = 0,
    probation: Probation | None = None,
    shadow: Shadow | None = None,
) -> Package:
    """Make a package in ``folder`` that runs the steps; golden samples are of "scaler" and "digits" with ``seed``."""
    raw = reference_images(64) * np.float32(255)
    weights, bias = model_weights(seed)
    golden = Golden(inputs={RAW: raw[:8]}, outputs={OUTPUT: answer(weights, bias, raw[:8] / np.float32(255))})
    files: dict[str, bytes | Path] = {
        REFERENCE_FILE: encode_profile(_profile(raw)),
        GOLDEN_FILE: encode_golden(golden),
    }

    def manifest(entries: dict[str, FileEntry]) -> Manifest:
        return Manifest(
            name=name,
            version=version,
            lineage=_LINEAGE,
            signature=signature or make_pipeline_signature(),
            task=Classification(output=OUTPUT, labels=LABELS),
            variants={},
            files=entries,
            batching=batching,
            pipeline=steps,
            max_run_s=max_run_s,
            probation=probation or Probation(),
            shadow=shadow or Shadow(),
        )

    return write_package(folder, files=files, manifest=manifest)


def make_pipeline_signature(*inputs: TensorSpec) -> Signature:
    """``raw`` (or other inputs) in, class probabilities out."""
    probabilities = TensorSpec(name=OUTPUT, datatype=Datatype.FP32, shape=(None, CLASSES), labels=LABELS)
    return Signature(inputs=inputs or (_RAW_SPEC,), outputs=(probabilities,))


def _profile(raw: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> ReferenceProfile:
    blank = Feature(name="raw.mean", tensor=RAW, side="input", projection=Projection.MEAN, edges=(0.0, 1.0))
    values = project(blank, raw)
    feature = Feature(
        name="raw.mean", tensor=RAW, side="input", projection=Projection.MEAN, edges=quantile_edges(values)
    )
    counts: dict[str, FeatureCounts] = {feature.name: count(feature, values)}
    return ReferenceProfile(
        features=(feature,), counts=counts, calibration=((0.0, 0.0), (1.0, 1.0)), accuracy=0.9, margin_threshold=0.1
    )
