from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnxruntime import InferenceSession

from edge_agent.contract.signature import Signature, TensorSpec
from edge_agent.contract.tensors import Datatype
from edge_agent.runtime.package import Package
from trainer.errors import QuantisationFailed
from trainer.recipe import Recipe
from trainer.release.graph import differing_weights, strip_notes
from trainer.release.quantise import calibration_rows, quantise


def test_equal_models_and_rows_give_equal_bytes_that_answer_nearly_the_same(
    recipe: Recipe, champion: Package, tmp_path: Path
) -> None:
    base, heldout = (recipe.module("data").load(part) for part in ("base", "heldout"))
    chosen = calibration_rows(base.labels, most=128)
    model = champion.path("model.onnx")
    first, again = (
        quantise(model, tmp_path / name, recipe.signature, {"image": base.images[chosen]}) for name in ("a", "b")
    )
    assert first.read_bytes() == again.read_bytes()
    session, full = (InferenceSession(str(path), providers=["CPUExecutionProvider"]) for path in (first, model))
    found, expected = (each.run(None, {"image": heldout.images})[0] for each in (session, full))
    assert np.allclose(found.sum(axis=1), 1.0, atol=1e-5), "the softmax stays as it is"
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).mean() > 0.97
    quantised = [node.op_type for node in onnx.load(str(first)).graph.node]
    assert quantised.count("Conv") == 3
    assert "QuantizeLinear" in quantised
    assert first.stat().st_size < 0.5 * champion.manifest.files["model.onnx.data"].size_bytes


def test_a_graph_with_nothing_to_quantise_says_so(recipe: Recipe, tmp_path: Path) -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), str(tmp_path / "relu.onnx"))
    with pytest.raises(QuantisationFailed, match="no convolution and no matrix product"):
        quantise(tmp_path / "relu.onnx", tmp_path / "int8.onnx", recipe.signature, {"x": np.zeros((1, 4))})


def test_raw_inputs_of_all_magnitudes_stay_as_they_are(recipe: Recipe, tmp_path: Path) -> None:
    """Days since 1970 beside a count: one range for both would leave nothing of the count."""
    random = np.random.default_rng(0)
    days = (20_000 + random.integers(0, 500, 64)).astype(np.float32)
    counts = random.integers(0, 9, 64).astype(np.float32)
    given = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N"]) for name in ("days", "counts")]
    weights = {
        "axes": np.array([1]),
        "mean": np.array([20_250.0, 4.0], dtype=np.float32),
        "spread": np.array([150.0, 2.0], dtype=np.float32),
        "first": random.normal(0, 0.5, (2, 16)).astype(np.float32),
        "second": random.normal(0, 0.5, (16, 2)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Unsqueeze", ["days", "axes"], ["a"], name="a"),
        helper.make_node("Unsqueeze", ["counts", "axes"], ["b"], name="b"),
        helper.make_node("Concat", ["a", "b"], ["raw"], name="raw", axis=1),
        helper.make_node("Sub", ["raw", "mean"], ["centred"], name="centred"),
        helper.make_node("Div", ["centred", "spread"], ["scaled"], name="scaled"),
        helper.make_node("MatMul", ["scaled", "first"], ["hidden"], name="hidden"),
        helper.make_node("Relu", ["hidden"], ["active"], name="active"),
        helper.make_node("MatMul", ["active", "second"], ["y"], name="y"),
    ]
    answer = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])
    constants = [onnx.numpy_helper.from_array(values, name) for name, values in weights.items()]
    graph = helper.make_graph(nodes, "table", given, [answer], constants)
    full = tmp_path / "table.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(full))
    specs = [TensorSpec(name=name, datatype=Datatype.FP32, shape=(None,)) for name in ("days", "counts")]
    signature = Signature(inputs=tuple(specs), outputs=recipe.signature.outputs)
    rows = {"days": days, "counts": counts}
    small = quantise(full, tmp_path / "int8.onnx", signature, rows)
    found, expected = (
        InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, rows)[0] for path in (small, full)
    )
    assert np.abs(found - expected).max() < 0.1 * expected.std()


def test_words_are_compared_by_what_they_say(tmp_path: Path) -> None:
    for file, word in (("a", "NaT"), ("b", "NaT"), ("c", "0")):
        text = onnx.numpy_helper.from_array(np.array([word], dtype=object), "word")
        onnx.save(helper.make_model(helper.make_graph([], "g", [], [], [text])), str(tmp_path / file))
    assert differing_weights(tmp_path / "a", tmp_path / "b") == []
    assert differing_weights(tmp_path / "a", tmp_path / "c") == ["word: 1 of 1 values differ"]


def test_calibration_sees_rare_classes_and_the_whole_length() -> None:
    targets = np.array([0] * 990 + [1] * 10)
    chosen = calibration_rows(targets, most=40)
    assert len(chosen) == len(set(chosen.tolist())) == 40
    assert (targets[chosen] == 1).sum() == 10
    assert chosen[0] < 100
    assert chosen[targets[chosen] == 0][-1] > 900
    assert calibration_rows(targets[:5]).tolist() == [0, 1, 2, 3, 4]


def test_a_model_holds_nothing_of_the_machine_it_was_exported_on(recipe: Recipe, champion: Package) -> None:
    data = champion.path("model.onnx").read_bytes()
    for secret in (str(recipe.folder), "site-packages", "model.py", "shoal_recipe"):
        assert secret.encode() not in data


def test_weights_that_differ_are_named_with_how_much(champion: Package, tmp_path: Path) -> None:
    model = onnx.load(str(champion.path("model.onnx")))
    bias = next(each for each in model.graph.initializer if each.name == "features.0.bias")
    values = np.array(onnx.numpy_helper.to_array(bias))
    values[3] += 0.25
    bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
    onnx.save(model, str(tmp_path / "other.onnx"))
    strip_notes(tmp_path / "other.onnx")
    assert differing_weights(tmp_path / "other.onnx", champion.path("model.onnx")) == [
        "features.0.bias: 1 of 24 values differ, by at most 0.25"
    ]
    assert differing_weights(champion.path("model.onnx"), champion.path("model.onnx")) == []
