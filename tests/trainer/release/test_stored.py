from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edge_agent.contract.stored_tensors import StoredType
from edge_agent.runtime.package import Package
from trainer.release.stored import stored_tensors


def test_every_weight_of_a_released_model_is_found_where_it_lies(champion: Package) -> None:
    folder = champion.folder
    found = stored_tensors(folder / "model.onnx").files
    graph = onnx.load(str(folder / "model.onnx")).graph
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    assert {tensor.name for tensor in found["model.onnx.data"].tensors} >= {"features.2.weight", "classifier.1.weight"}
    assert "features.0.bias" in {tensor.name for tensor in found["model.onnx"].tensors}
    for name, file in found.items():
        data = (folder / name).read_bytes()
        for tensor in file.tensors:
            raw = data[tensor.offset : tensor.offset + tensor.count * tensor.dtype.size_bytes]
            assert raw == weights[tensor.name].tobytes(), tensor.name


def _saved(path: Path, tensors: list[TensorProto]) -> Path:
    graph = helper.make_graph([], "g", [], [], initializer=tensors)
    onnx.save(helper.make_model(graph), str(path))
    return path


def _array(name: str, array: NDArray[np.generic]) -> TensorProto:
    return numpy_helper.from_array(array, name)


def test_weights_within_the_graph_are_found_whatever_their_type(tmp_path: Path) -> None:
    arrays: dict[str, NDArray[np.generic]] = {
        "half": np.arange(64, dtype=np.float16),
        "small": np.arange(-64, 64, dtype=np.int8),
        "wide": np.arange(40, dtype=np.int64),
        "truth": np.ones(200, dtype=bool),
        "scalar": np.array(1.0, np.float32),
    }
    path = _saved(tmp_path / "m.onnx", [_array(name, array) for name, array in arrays.items()])
    file = stored_tensors(path, prefix="int8/").files["int8/m.onnx"]
    assert {tensor.name: tensor.dtype for tensor in file.tensors} == {
        "half": StoredType.FP16,
        "small": StoredType.INT8,
        "wide": StoredType.INT64,
    }
    data = path.read_bytes()
    for tensor in file.tensors:
        raw = data[tensor.offset : tensor.offset + tensor.count * tensor.dtype.size_bytes]
        assert raw == arrays[tensor.name].tobytes()


def test_a_graph_without_weights_has_no_layout(tmp_path: Path) -> None:
    assert stored_tensors(_saved(tmp_path / "m.onnx", [])).files == {}
