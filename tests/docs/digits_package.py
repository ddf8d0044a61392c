"""A package with the signature of the recipe `digits`, fitted in milliseconds: it reads the digit on the page right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edge_agent.contract.constraint import Constraint
from edge_agent.contract.manifest import (
    GOLDEN_FILE,
    REFERENCE_FILE,
    Classification,
    FileEntry,
    Lineage,
    Manifest,
    Variant,
)
from edge_agent.contract.profile import encode_profile
from edge_agent.contract.sampling import SamplingPolicy
from edge_agent.contract.signature import Signature, TensorSpec
from edge_agent.contract.tensors import Datatype
from edge_agent.runtime.package import Golden, Package, encode_golden
from edge_agent.runtime.package_writer import write_package
from tests.fakes.packages import answer, make_profile

LABELS = tuple("0123456789")
SIGNATURE = Signature(
    inputs=(
        TensorSpec(
            name="image",
            datatype=Datatype.FP32,
            shape=(None, 1, 8, 8),
            constraint=Constraint(minimum=0.0, maximum=16.0),
        ),
    ),
    outputs=(TensorSpec(name="probabilities", datatype=Datatype.FP32, shape=(None, 10), labels=LABELS),),
)
# How sure a fit by least squares makes the softmax: about as sure as it is right.
_SHARPNESS = 8.0


def make_digits_package(folder: Path, *, name: str = "digits", version: str = "1") -> Package:
    """Make a package of a linear model of scikit-learn's digits; it asks for no labels and sends no rows home."""
    images, digits = pytest.importorskip("sklearn.datasets").load_digits(return_X_y=True)
    weights, bias = _fit(images.astype(np.float32), digits)
    golden = images[:8].astype(np.float32)
    some = images[:256].astype(np.float32)

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
            signature=SIGNATURE,
            task=Classification(output="probabilities", labels=LABELS),
            variants={"fp32": Variant(model="model.onnx")},
            files=entries,
            sampling=SamplingPolicy(samples_per_minute=0.0, labels_per_minute=0.0),
        )

    files: dict[str, bytes | Path] = {
        "model.onnx": _graph(weights, bias),
        GOLDEN_FILE: encode_golden(
            Golden(
                inputs={"image": golden.reshape(-1, 1, 8, 8)},
                outputs={"probabilities": answer(weights, bias, golden)},
            )
        ),
        REFERENCE_FILE: encode_profile(make_profile(some, answer(weights, bias, some))),
    }
    return write_package(folder, files=files, manifest=manifest)


def _fit(images: NDArray[np.float32], digits: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weights float32[64, 10] and bias float32[10] by ridge regression on one-hot targets."""
    wide = np.hstack([images / 16.0, np.ones((len(images), 1))])
    wanted = np.eye(10)[digits]
    found = np.linalg.solve(wide.T @ wide + np.eye(65), wide.T @ wanted) * _SHARPNESS
    return (found[:64] / 16.0).astype(np.float32), found[64].astype(np.float32)


def _graph(weights: NDArray[np.float32], bias: NDArray[np.float32]) -> bytes:
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["image"], ["pixels"]),
            helper.make_node("MatMul", ["pixels", "weights"], ["product"]),
            helper.make_node("Add", ["product", "bias"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        ],
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, 8, 8])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 10])],
        [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(bias, "bias")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))
