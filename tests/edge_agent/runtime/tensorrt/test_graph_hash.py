from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edge_agent.contract.errors import EngineBuildFailed
from edge_agent.runtime.tensorrt.graph_hash import inspect_graph
from tests.edge_agent.runtime.tensorrt.onnx_models import convolutions, perceptron, quantised


def changed(file: Path, change: Callable[[Any], None]) -> Path:
    model = onnx.load(str(file))
    change(model)
    other = file.with_name("changed.onnx")
    onnx.save(model, str(other))
    return other


def graph(file: Path) -> str:
    return inspect_graph(file).graph


def test_new_weights_leave_the_graph_as_it_is(tmp_path: Path) -> None:
    assert graph(convolutions(tmp_path / "a.onnx", seed=1)) == graph(convolutions(tmp_path / "b.onnx", seed=2))
    assert graph(perceptron(tmp_path / "c.onnx", seed=1)) == graph(perceptron(tmp_path / "d.onnx", seed=2))


def test_another_width_or_depth_is_another_graph(tmp_path: Path) -> None:
    hashes = {
        graph(convolutions(tmp_path / "a.onnx")),
        graph(convolutions(tmp_path / "b.onnx", layers=4)),
        graph(convolutions(tmp_path / "c.onnx", channels=8)),
    }

    assert len(hashes) == 3


def test_a_constant_that_tensorrt_folds_into_a_kernel_belongs_to_the_graph(tmp_path: Path) -> None:
    assert graph(perceptron(tmp_path / "a.onnx", clip=6.0)) != graph(perceptron(tmp_path / "b.onnx", clip=5.0))
    assert graph(quantised(tmp_path / "c.onnx", scale=0.05)) != graph(quantised(tmp_path / "d.onnx", scale=0.06))


def test_weights_in_a_file_of_their_own_are_the_same_graph_and_need_not_be_there(tmp_path: Path) -> None:
    inside = graph(convolutions(tmp_path / "inside.onnx"))
    outside = convolutions(tmp_path / "outside.onnx", outside=True)
    (tmp_path / "outside.onnx.data").unlink()

    assert graph(outside) == inside


def test_the_name_of_a_weight_counts_and_comments_do_not(tmp_path: Path) -> None:
    file = convolutions(tmp_path / "a.onnx")

    def rename(model: Any) -> None:
        model.graph.initializer[0].name = model.graph.node[0].input[1] = "renamed"

    def comment(model: Any) -> None:
        model.doc_string = model.graph.node[0].doc_string = "File train.py, line 7"
        model.producer_version = "9.9"

    assert graph(changed(file, rename)) != graph(file)
    assert graph(changed(file, comment)) == graph(file)


def test_a_weight_that_is_also_an_output_or_used_elsewhere_belongs_to_the_graph(tmp_path: Path) -> None:
    def tie(seed: int) -> Path:
        file = perceptron(tmp_path / f"{seed}.onnx", seed=seed)

        def also_bound(model: Any) -> None:
            model.graph.node[3].input[2] = "bias"

        return changed(file, also_bound)

    assert graph(tie(1)) != graph(tie(2))


def test_what_a_model_computes_in_is_seen(tmp_path: Path) -> None:
    def halve(model: Any) -> None:
        for weight in model.graph.initializer:
            weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight).astype(np.float16), weight.name))

    def halve_one(model: Any) -> None:
        weight = model.graph.initializer[0]
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight).astype(np.float16), weight.name))

    file = convolutions(tmp_path / "a.onnx")
    assert inspect_graph(file).precision == "fp32"
    assert inspect_graph(changed(file, halve)).precision == "fp16"
    assert inspect_graph(changed(file, halve_one)).precision == "mixed"
    assert inspect_graph(quantised(tmp_path / "b.onnx")).precision == "int8"


def test_what_is_no_model_is_refused_for_good(tmp_path: Path) -> None:
    (tmp_path / "none.onnx").write_bytes(b"\x00 no model")

    with pytest.raises(EngineBuildFailed, match=r"none\.onnx: is no ONNX model") as caught:
        inspect_graph(tmp_path / "none.onnx")
    assert caught.value.is_final
