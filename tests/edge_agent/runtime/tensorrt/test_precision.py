from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto

from edge_agent.contract.errors import EngineBuildFailed
from edge_agent.runtime.tensorrt.graph_hash import inspect_graph
from edge_agent.runtime.tensorrt.job import Tolerance
from edge_agent.runtime.tensorrt.precision import Cast, cast_to_fp16
from tests.edge_agent.runtime.tensorrt.onnx_models import (
    IMAGE,
    SCORES,
    convolutions,
    golden_file,
    images,
    perceptron,
    quantised,
)


def test_a_cast_model_keeps_its_inputs_and_outputs_and_answers_within_the_tolerance(tmp_path: Path) -> None:
    model = convolutions(tmp_path / "model.onnx")
    golden = golden_file(tmp_path / "golden.npz", model, {IMAGE: images()})

    cast = cast_to_fp16(model, tmp_path / "half.onnx", golden=golden)

    assert cast.kept_fp32 == ()
    assert cast.difference is not None
    assert 0.0 < cast.difference < 1e-2
    half = onnx.load(str(tmp_path / "half.onnx"))
    onnx.checker.check_model(half, full_check=True)
    assert {weight.data_type for weight in half.graph.initializer} == {TensorProto.FLOAT16}
    session = ort.InferenceSession(str(tmp_path / "half.onnx"))
    assert session.get_inputs()[0].type == session.get_outputs()[0].type == "tensor(float)"


def test_nodes_whose_numbers_float16_cannot_hold_stay_in_float32(tmp_path: Path) -> None:
    model = perceptron(tmp_path / "model.onnx", scale=1e6)
    golden = golden_file(tmp_path / "golden.npz", model, {IMAGE: images(4, 4)})

    cast = cast_to_fp16(model, tmp_path / "half.onnx", golden=golden)

    assert cast.kept_fp32 == ("multiply", "shrink")
    half = onnx.load(str(tmp_path / "half.onnx"))
    onnx.checker.check_model(half, full_check=True)
    by_name = {node.name: node for node in half.graph.node}
    assert by_name["shrink"].input[0] == by_name["multiply"].output[0], "nothing is cast between the two"
    session = ort.InferenceSession(str(tmp_path / "half.onnx"))
    reference = ort.InferenceSession(str(model))
    (actual,), (expected,) = (each.run([SCORES], {IMAGE: images(4, 4)}) for each in (session, reference))
    np.testing.assert_allclose(actual, expected, rtol=1e-2, atol=1e-2)


def test_an_output_that_float16_cannot_hold_comes_out_whole(tmp_path: Path) -> None:
    model = onnx.load(str(perceptron(tmp_path / "model.onnx", scale=1e6)))
    del model.graph.node[1:]
    model.graph.node[0].output[0] = SCORES
    onnx.save(model, str(tmp_path / "model.onnx"))
    golden = golden_file(tmp_path / "golden.npz", tmp_path / "model.onnx", {IMAGE: images(4, 4) * 1e3})

    cast = cast_to_fp16(tmp_path / "model.onnx", tmp_path / "half.onnx", golden=golden)

    assert cast == Cast(("multiply",), 0.0)
    onnx.checker.check_model(onnx.load(str(tmp_path / "half.onnx")), full_check=True)


def test_a_model_that_answers_otherwise_in_half_precision_is_refused_for_good_with_the_difference(
    tmp_path: Path,
) -> None:
    model = perceptron(tmp_path / "model.onnx")
    golden = golden_file(tmp_path / "golden.npz", model, {IMAGE: images(4, 4)})

    with pytest.raises(EngineBuildFailed, match=r"half precision .* output 'scores': off by up to 0\.0") as caught:
        cast_to_fp16(model, tmp_path / "half.onnx", golden=golden, tolerance=Tolerance(rtol=0.0, atol=1e-9))
    assert caught.value.is_final


def test_the_same_nodes_are_kept_when_new_weights_are_cast_for_the_same_engine(tmp_path: Path) -> None:
    old, new = (perceptron(tmp_path / f"{seed}.onnx", seed=seed, scale=1e6) for seed in (1, 2))
    golden = golden_file(tmp_path / "golden.npz", old, {IMAGE: images(4, 4)})
    first = cast_to_fp16(old, tmp_path / "old.onnx", golden=golden)

    second = cast_to_fp16(new, tmp_path / "new.onnx", kept_fp32=first.kept_fp32)

    assert second.kept_fp32 == first.kept_fp32
    assert inspect_graph(tmp_path / "old.onnx").graph == inspect_graph(tmp_path / "new.onnx").graph


def test_a_model_with_weights_in_a_file_of_their_own_becomes_one_file(tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    model = convolutions(tmp_path / "package" / "model.onnx", outside=True)
    golden = golden_file(tmp_path / "golden.npz", model, {IMAGE: images()})

    cast_to_fp16(model, tmp_path / "half.onnx", golden=golden)

    assert ort.InferenceSession(str(tmp_path / "half.onnx")).run(None, {IMAGE: images()})[0].shape == (4, 16, 1, 1)
    assert sorted(path.name for path in (tmp_path / "package").iterdir()) == ["model.onnx", "model.onnx.data"]


def test_a_quantised_model_is_not_cast(tmp_path: Path) -> None:
    with pytest.raises(EngineBuildFailed, match="int8 already") as caught:
        cast_to_fp16(quantised(tmp_path / "model.onnx"), tmp_path / "half.onnx")
    assert caught.value.is_final


def test_nothing_is_cast_on_golden_samples_that_cannot_be_read(tmp_path: Path) -> None:
    model = perceptron(tmp_path / "model.onnx")
    (tmp_path / "golden.npz").write_bytes(b"nothing")

    with pytest.raises(EngineBuildFailed, match=r"golden\.npz"):
        cast_to_fp16(model, tmp_path / "half.onnx", golden=tmp_path / "golden.npz")
