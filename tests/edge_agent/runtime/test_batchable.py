"""Batching is refused, when the model is loaded, where rows are not independent of each other."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edge_agent.contract.checking import InputCheck
from edge_agent.contract.errors import ManifestError
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
from edge_agent.contract.profile import ReferenceProfile, encode_profile
from edge_agent.contract.signature import Signature, TensorSpec
from edge_agent.contract.tensors import Datatype
from edge_agent.runtime.batchable import rows_together
from edge_agent.runtime.package import Golden, Package, encode_golden
from edge_agent.runtime.package_writer import write_package
from edge_agent.runtime.slots import load
from tests.fakes.packages import make_package, reference_images

LABELS = tuple(str(index) for index in range(10))


def package_of(folder: Path, *, axis: int, keep_rows: bool, batching: Batching | None) -> Package:
    """Softmax over the classes of ``x`` (axis 1) or over the rows of the batch (0); of all rows, or of the first."""
    values = reference_images(4)[:, :10]
    nodes = [helper.make_node("Softmax", ["x"], ["p" if keep_rows else "each"], axis=axis)]
    if not keep_rows:
        nodes.append(helper.make_node("Compress", ["each", "first"], ["p"], axis=0))
    graph = helper.make_graph(
        nodes,
        "softmax",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 10])],
        [helper.make_tensor_value_info("p", TensorProto.FLOAT, [None, 10])],
        [numpy_helper.from_array(np.array([True]), "first")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    profile = ReferenceProfile(
        features=(), counts={}, calibration=((0.0, 0.0), (1.0, 1.0)), accuracy=0.5, margin_threshold=0.1
    )
    files: dict[str, bytes | Path] = {
        "model.onnx": model.SerializeToString(),
        REFERENCE_FILE: encode_profile(profile),
        GOLDEN_FILE: encode_golden(Golden(inputs={"x": values}, outputs={"p": values})),
    }

    def manifest(entries: dict[str, FileEntry]) -> Manifest:
        return Manifest(
            name="softmax",
            version="1",
            lineage=Lineage(
                dataset="0" * 64,
                code_sha256="1" * 64,
                lock_sha256="2" * 64,
                seed=0,
                run="r",
                trained_at="2025-01-01T00:00:00Z",
            ),
            signature=Signature(
                inputs=(TensorSpec(name="x", datatype=Datatype.FP32, shape=(None, 10)),),
                outputs=(TensorSpec(name="p", datatype=Datatype.FP32, shape=(None, 10)),),
            ),
            task=Classification(output="p", labels=LABELS),
            variants={"fp32": Variant(model="model.onnx")},
            files=entries,
            batching=batching,
        )

    return write_package(folder, files=files, manifest=manifest)


def test_a_model_of_independent_rows_may_be_batched(tmp_path: Path) -> None:
    loaded = load(make_package(tmp_path / "digits", batching=Batching()))
    assert loaded.manifest.batching is not None
    loaded.close()
    load(package_of(tmp_path / "softmax", axis=1, keep_rows=True, batching=Batching())).close()


def test_a_model_whose_rows_depend_on_each_other_may_not(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="batching: output 'p', row 0: differs when the row is run alone"):
        load(package_of(tmp_path / "softmax", axis=0, keep_rows=True, batching=Batching()))


def test_a_model_whose_output_is_not_by_row_may_not(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"batching: output 'p' has shape \[1, 10\] for 3 rows"):
        load(package_of(tmp_path / "softmax", axis=1, keep_rows=False, batching=Batching()))


def test_without_batching_such_models_serve(tmp_path: Path) -> None:
    load(package_of(tmp_path / "softmax", axis=0, keep_rows=True, batching=None)).close()


def test_rows_of_different_requests_run_together_where_nobody_can_tell(tmp_path: Path) -> None:
    for package in (
        make_package(tmp_path / "digits"),
        package_of(tmp_path / "softmax", axis=1, keep_rows=True, batching=None),
    ):
        loaded = load(package)
        assert loaded.together > 1
        loaded.close()


def test_rows_that_depend_on_each_other_or_have_a_policy_of_their_own_never_do(tmp_path: Path) -> None:
    for package in (
        package_of(tmp_path / "over-rows", axis=0, keep_rows=True, batching=None),
        package_of(tmp_path / "first-row", axis=1, keep_rows=False, batching=None),
        make_package(tmp_path / "batched", batching=Batching()),
    ):
        loaded = load(package)
        assert loaded.together == 1
        loaded.close()


class _Scaled:
    """A backend that scales by the largest value of its batch, as dynamic quantisation does."""

    platform = "none"

    def __init__(self, signature: Signature) -> None:
        self.signature = signature
        self.runs: list[int] = []

    def infer(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        self.runs.append(len(inputs["x"]))
        values = inputs["x"]
        steps = max(float(values.max()), 1e-9) / 127
        return {"p": (np.round(values / steps) * steps).astype(np.float32)}

    def cancel(self) -> None:
        """Nothing runs."""

    def close(self) -> None:
        """Nothing is held."""


def test_a_scale_taken_over_the_batch_is_noticed_even_where_golden_rows_share_it(tmp_path: Path) -> None:
    manifest = package_of(tmp_path / "softmax", axis=1, keep_rows=True, batching=None).manifest
    values = reference_images(2)[:, :10]
    values[1] = values[0]
    golden = Golden(inputs={"x": values}, outputs={"p": values})
    backend = _Scaled(manifest.signature)
    check = InputCheck(manifest.signature)
    assert rows_together(backend, check, manifest, golden, run_us=1.0, longest_us=1000.0) == 1
    backend.runs.clear()
    assert rows_together(backend, check, manifest, golden, run_us=600.0, longest_us=1000.0) == 1
    assert backend.runs == []  # too slow for two rows: not even tried
    one = Golden(inputs={"x": values[:1]}, outputs={"p": values[:1]})
    assert rows_together(backend, check, manifest, one, run_us=1.0, longest_us=1000.0) == 1


@pytest.mark.parametrize(
    ("run_us", "longest_us", "rows"),
    [(1.0, 1000.0, 32), (20.0, 1000.0, 25), (240.0, 1000.0, 4), (400.0, 1000.0, 2), (600.0, 1000.0, 1),
     (600.0, 5000.0, 4), (1100.0, 5000.0, 4), (1500.0, 5000.0, 3), (2000.0, 5000.0, 2), (3000.0, 5000.0, 1),
     (math.inf, 5000.0, 1)],
)  # fmt: skip
def test_as_many_run_together_as_the_event_loop_may_be_held_for(
    tmp_path: Path, run_us: float, longest_us: float, rows: int
) -> None:
    loaded = load(make_package(tmp_path / "digits"))
    golden = loaded.golden()
    assert (
        rows_together(loaded.backend, loaded.check, loaded.manifest, golden, run_us=run_us, longest_us=longest_us)
        == rows
    )
    loaded.close()


def test_rows_too_large_to_come_together_are_not_tried_together(tmp_path: Path) -> None:
    manifest = package_of(tmp_path / "softmax", axis=1, keep_rows=True, batching=None).manifest
    values = np.zeros((2, 20_000), np.float32)
    backend = _Scaled(manifest.signature)
    golden = Golden(inputs={"x": values}, outputs={"p": values})
    assert rows_together(backend, InputCheck(manifest.signature), manifest, golden, run_us=1.0, longest_us=1000.0) == 1
    assert backend.runs == []
