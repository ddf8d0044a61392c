"""Small packages for what a runtime must get right: datatypes, open axes, rows that depend on each other, and worse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from edge_agent.contract.constraint import AxisLimit, Constraint
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

Arrays = dict[str, NDArray[Any]]

LONGEST = 16
_PROBABILITIES = TensorSpec(name="probabilities", datatype=Datatype.FP32, shape=(None, 2))
# Of x, float32[N, T]: its mean as one of two probabilities.
_TWO_CLASSES = (
    helper.make_node("ReduceMean", ["x", "last"], ["mean"], keepdims=1),
    helper.make_node("Sigmoid", ["mean"], ["yes"]),
    helper.make_node("Sub", ["one", "yes"], ["no"]),
    helper.make_node("Concat", ["yes", "no"], ["probabilities"], axis=1),
)
_CONSTANTS: Mapping[str, NDArray[Any]] = {"last": np.array([1], np.int64), "one": np.array(1, np.float32)}


def mixed_inputs(rows: int, *, length: int = 5, seed: int = 0) -> Arrays:
    """What the mixed model takes: every datatype that runtimes differ in."""
    random = np.random.default_rng(seed)
    return {
        "x": random.normal(size=(rows, length)).astype(np.float32),
        "precise": random.normal(size=(rows, 3)),
        "count": random.integers(-1000, 1000, size=(rows, 3)),
        "armed": random.random((rows, 1)) < 0.5,
        "level": random.integers(0, 255, size=(rows, 3)).astype(np.uint8),
    }


def mixed_outputs(inputs: Mapping[str, NDArray[Any]]) -> Arrays:
    """What it answers, computed by numpy."""
    yes = 1 / (1 + np.exp(-inputs["x"].mean(axis=1, keepdims=True)))
    return {
        "probabilities": np.concatenate([yes, 1 - yes], axis=1).astype(np.float32),
        "halved": inputs["x"] / 2,
        "more": inputs["precise"] + 1,
        "next": inputs["count"] + 1,
        "disarmed": ~inputs["armed"],
        "raised": inputs["level"].astype(np.int32) + 1,
    }


def make_mixed_package(folder: Path, *, batching: Batching | None = None) -> Package:
    """Several inputs and outputs of different datatypes; ``x`` and ``halved`` have an open second axis, up to 16."""
    nodes = [
        *_TWO_CLASSES,
        helper.make_node("Mul", ["x", "half"], ["halved"]),
        helper.make_node("Add", ["precise", "one_double"], ["more"]),
        helper.make_node("Add", ["count", "one_long"], ["next"]),
        helper.make_node("Not", ["armed"], ["disarmed"]),
        helper.make_node("Cast", ["level"], ["level_int"], to=onnx.TensorProto.INT32),
        helper.make_node("Add", ["level_int", "one_int"], ["raised"]),
    ]
    constants: Arrays = {
        "half": np.array(0.5, np.float32),
        "one_double": np.array(1, np.float64),
        "one_long": np.array(1, np.int64),
        "one_int": np.array(1, np.int32),
    }
    length = Constraint(axes=(AxisLimit(axis=1, minimum=1, maximum=LONGEST),))
    signature = Signature(
        inputs=(
            TensorSpec(name="x", datatype=Datatype.FP32, shape=(None, None), constraint=length),
            TensorSpec(name="precise", datatype=Datatype.FP64, shape=(None, 3)),
            TensorSpec(name="count", datatype=Datatype.INT64, shape=(None, 3)),
            TensorSpec(name="armed", datatype=Datatype.BOOL, shape=(None, 1)),
            TensorSpec(name="level", datatype=Datatype.UINT8, shape=(None, 3)),
        ),
        outputs=(
            _PROBABILITIES,
            TensorSpec(name="halved", datatype=Datatype.FP32, shape=(None, None)),
            TensorSpec(name="more", datatype=Datatype.FP64, shape=(None, 3)),
            TensorSpec(name="next", datatype=Datatype.INT64, shape=(None, 3)),
            TensorSpec(name="disarmed", datatype=Datatype.BOOL, shape=(None, 1)),
            TensorSpec(name="raised", datatype=Datatype.INT32, shape=(None, 3)),
        ),
    )
    return _package(folder, "mixed", nodes, constants, signature, golden=mixed_inputs(4), batching=batching)


def make_dependent_package(folder: Path, *, dependent: bool = True, golden_rows: int = 4) -> Package:
    """``centred`` is x less the mean of all rows of the request, or of the row itself where not ``dependent``."""
    nodes = [
        *_TWO_CLASSES,
        helper.make_node("ReduceMean", ["x", "axis"], ["middle"], keepdims=1),
        helper.make_node("Sub", ["x", "middle"], ["centred"]),
    ]
    signature = Signature(
        inputs=(TensorSpec(name="x", datatype=Datatype.FP32, shape=(None, 4)),),
        outputs=(_PROBABILITIES, TensorSpec(name="centred", datatype=Datatype.FP32, shape=(None, 4))),
    )
    x = np.random.default_rng(0).normal(size=(golden_rows, 4)).astype(np.float32)
    axis = {"axis": np.array([0 if dependent else 1], np.int64)}
    return _package(folder, "centred", nodes, axis, signature, golden={"x": x})


def make_finding_package(folder: Path) -> Package:
    """``found`` has as many rows as x has elements other than zero."""
    nodes = [
        *_TWO_CLASSES,
        helper.make_node("NonZero", ["x"], ["places"]),
        helper.make_node("Transpose", ["places"], ["found"]),
    ]
    signature = Signature(
        inputs=(TensorSpec(name="x", datatype=Datatype.FP32, shape=(None, 4)),),
        outputs=(_PROBABILITIES, TensorSpec(name="found", datatype=Datatype.INT64, shape=(None, 2))),
    )
    return _package(folder, "finder", nodes, {}, signature, golden={"x": np.eye(4, dtype=np.float32)})


def _package(
    folder: Path,
    name: str,
    nodes: Sequence[onnx.NodeProto],
    constants: Mapping[str, NDArray[Any]],
    signature: Signature,
    *,
    golden: Arrays,
    batching: Batching | None = None,
) -> Package:
    model = _model(name, nodes, {**_CONSTANTS, **constants}, signature)
    names = [spec.name for spec in signature.outputs]
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    outputs: Arrays = dict(zip(names, session.run(names, golden), strict=True))
    feature = Feature(
        name="confidence",
        tensor="probabilities",
        side="output",
        projection=Projection.CONFIDENCE,
        edges=(0.0, 0.5, 1.0),
    )
    profile = ReferenceProfile(features=(feature,), counts={"confidence": FeatureCounts(bins=(0, 4))})

    def manifest(entries: dict[str, FileEntry]) -> Manifest:
        return Manifest(
            name=name,
            version="1",
            lineage=Lineage(
                dataset="0" * 64,
                code_sha256="1" * 64,
                lock_sha256="2" * 64,
                seed=0,
                run="run-1",
                trained_at="2025-01-01T00:00:00Z",
            ),
            signature=signature,
            task=Classification(output="probabilities", labels=("yes", "no")),
            variants={"fp32": Variant(model="model.onnx")},
            files=entries,
            batching=batching,
        )

    files: dict[str, bytes | Path] = {
        "model.onnx": model,
        GOLDEN_FILE: encode_golden(Golden(inputs=golden, outputs=outputs)),
        REFERENCE_FILE: encode_profile(profile),
    }
    return write_package(folder, files=files, manifest=manifest)


def _model(
    name: str, nodes: Sequence[onnx.NodeProto], constants: Mapping[str, NDArray[Any]], signature: Signature
) -> bytes:
    # "T" wherever the second axis is open: one letter is one size to ONNX.
    letters = ("N", "T")
    infos = [
        helper.make_tensor_value_info(
            spec.name,
            helper.np_dtype_to_tensor_dtype(spec.datatype.numpy),
            [letters[axis] if size is None else size for axis, size in enumerate(spec.shape)],
        )
        for spec in (*signature.inputs, *signature.outputs)
    ]
    if name == "finder":
        infos[-1].type.tensor_type.shape.dim[0].dim_param = "found"
    used = {each for node in nodes for each in node.input}
    weights = [numpy_helper.from_array(array, key) for key, array in constants.items() if key in used]
    count = len(signature.inputs)
    graph = helper.make_graph(list(nodes), name, infos[:count], infos[count:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))
