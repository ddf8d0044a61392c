"""The three models that every server is given: real packages, whose ONNX file the other servers are handed as well."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edge_agent.contract.constraint import Constraint
from edge_agent.contract.manifest import (
    CARD_FILE,
    EVALUATION_FILE,
    GOLDEN_FILE,
    REFERENCE_FILE,
    Classification,
    FileEntry,
    Lineage,
    Manifest,
    Variant,
)
from edge_agent.contract.profile import (
    Feature,
    Projection,
    ReferenceProfile,
    count,
    encode_profile,
    project,
    quantile_edges,
)
from edge_agent.contract.signature import Signature, TensorSpec
from edge_agent.contract.tensors import Datatype
from edge_agent.runtime.package import Golden, encode_golden
from edge_agent.runtime.package_writer import write_package

INPUT = "image"
OUTPUT = "probabilities"
CLASSES = 10
LABELS = tuple(str(index) for index in range(CLASSES))
_REFERENCE_ROWS = 64
_TOLERANCE = 1e-3


@dataclasses.dataclass(frozen=True)
class Model:
    """One model on disk.

    Args:
        folder: Its package; ``model.onnx`` lies there.
        shape: Of one row of its only input, float32 in 0..1; the output is float32[N, 10].
        row: The input that every request carries, float32[1, ...]; ``expected``: what the model answers to it.
    """

    name: str
    folder: Path
    shape: tuple[int, ...]
    row: NDArray[np.float32]
    expected: NDArray[np.float32]

    def is_right(self, answer: NDArray[Any]) -> bool:
        """Whether a server has said what the model says."""
        return answer.size == self.expected.size and bool(
            np.allclose(answer.ravel(), self.expected.ravel(), atol=_TOLERANCE)
        )

    @property
    def onnx_file(self) -> Path:
        """The model itself."""
        return self.folder / "model.onnx"


def session_options() -> Any:
    """One thread, as every server here runs the model."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return options


def make_models(folder: Path) -> dict[str, Model]:
    """Packages of all models, in ``folder`` (made where it is missing): tiny, cnn, image."""
    return {name: make_model(folder / name, name) for name in _GRAPHS}


def make_model(folder: Path, name: str, *, version: str = "1", seed: int = 0) -> Model:
    """The package of one model, made anew if it is not there; another seed gives other weights.

    Args:
        name: ``tiny``: an MLP of 64 - 32 - 10; ``cnn``: five convolutions on 3 x 64 x 64, 1-2 ms; ``image``: a pooling
            and one layer on 3 x 224 x 224 (600 KB), so that bringing it there dominates.
    """
    shape, nodes, weights = _GRAPHS[name](np.random.default_rng(seed))
    data = _serialise(name, shape, nodes, weights)
    rows = np.random.default_rng(1).random((_REFERENCE_ROWS, *shape), dtype=np.float32).round(3).astype(np.float32)
    session = ort.InferenceSession(data, session_options(), providers=["CPUExecutionProvider"])
    answers = np.concatenate([session.run([OUTPUT], {INPUT: row[None]})[0] for row in rows])
    if not (folder / "manifest.json").exists():
        _write(folder, _manifest(name, version, shape), data, rows, answers)
    return Model(name, folder, shape, rows[:1].copy(), answers[:1].copy())


def _write(
    folder: Path, manifest: Manifest, data: bytes, rows: NDArray[np.float32], answers: NDArray[np.float32]
) -> None:
    files: dict[str, bytes | Path] = {
        "model.onnx": data,
        REFERENCE_FILE: encode_profile(_profile(rows, answers)),
        GOLDEN_FILE: encode_golden(Golden(inputs={INPUT: rows[:4]}, outputs={OUTPUT: answers[:4]})),
        EVALUATION_FILE: b'{"accuracy": 0.9}\n',
        CARD_FILE: f"# {manifest.name}\n".encode(),
    }
    write_package(folder, files=files, manifest=lambda entries: msgspec.structs.replace(manifest, files=entries))


def _manifest(name: str, version: str, shape: tuple[int, ...]) -> Manifest:
    """All but the digests of the files."""
    limits = Constraint(minimum=0.0, maximum=1.0)
    none = "0" * 64
    return Manifest(
        name=name,
        version=version,
        lineage=Lineage(
            dataset=none, code_sha256=none, lock_sha256=none, seed=0, run="benchmark", trained_at="2025-01-01T00:00:00Z"
        ),
        signature=Signature(
            inputs=(TensorSpec(name=INPUT, datatype=Datatype.FP32, shape=(None, *shape), constraint=limits),),
            outputs=(TensorSpec(name=OUTPUT, datatype=Datatype.FP32, shape=(None, CLASSES), labels=LABELS),),
        ),
        task=Classification(output=OUTPUT, labels=LABELS),
        variants={"fp32": Variant(model="model.onnx")},
        files={"model.onnx": FileEntry(sha256=none, size_bytes=0)},
    )


def _profile(rows: NDArray[Any], answers: NDArray[Any]) -> ReferenceProfile:
    """As the trainer makes it: two features of the input, three of the output."""
    wanted = (
        ("image.mean", INPUT, "input", Projection.MEAN, rows),
        ("image.std", INPUT, "input", Projection.STD, rows),
        ("confidence", OUTPUT, "output", Projection.CONFIDENCE, answers),
        ("margin", OUTPUT, "output", Projection.MARGIN, answers),
        ("class", OUTPUT, "output", Projection.CLASS, answers),
    )
    features, counts = [], {}
    for name, tensor, side, projection, array in wanted:
        values = project(Feature(name=name, tensor=tensor, side=side, projection=projection, edges=(0.0, 1.0)), array)
        if projection is Projection.CLASS:
            edges = tuple(index - 0.5 for index in range(CLASSES + 1))
        else:
            edges = quantile_edges(values)
        feature = Feature(name=name, tensor=tensor, side=side, projection=projection, edges=edges)
        features.append(feature)
        counts[name] = count(feature, values)
    margins = np.sort(answers, axis=1)
    return ReferenceProfile(
        features=tuple(features),
        counts=counts,
        calibration=((0.0, 0.0), (1.0, 1.0)),
        accuracy=0.9,
        margin_threshold=float(np.quantile(margins[:, -1] - margins[:, -2], 0.2)),
    )


_Graph = tuple[tuple[int, ...], list[Any], dict[str, NDArray[np.float32]]]


def _dense(random: np.random.Generator, rows: int, columns: int) -> NDArray[np.float32]:
    return random.normal(0.0, rows**-0.5, (rows, columns)).astype(np.float32)


def _tiny(random: np.random.Generator) -> _Graph:
    weights = {"w0": _dense(random, 64, 32), "w1": _dense(random, 32, CLASSES)}
    nodes = [
        helper.make_node("MatMul", [INPUT, "w0"], ["product"]),
        helper.make_node("Relu", ["product"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "w1"], ["logits"]),
    ]
    return (64,), nodes, weights


def _cnn(random: np.random.Generator) -> _Graph:
    nodes, weights, last, channels = [], {}, INPUT, 3
    for index, (wide, step) in enumerate(((48, 1), (64, 2), (64, 1), (96, 2), (128, 2))):
        kernel = random.normal(0.0, (channels * 9) ** -0.5, (wide, channels, 3, 3)).astype(np.float32)
        weights[f"k{index}"] = kernel
        steps = [step, step]
        nodes.append(helper.make_node("Conv", [last, f"k{index}"], [f"c{index}"], pads=[1, 1, 1, 1], strides=steps))
        nodes.append(helper.make_node("Relu", [f"c{index}"], [f"r{index}"]))
        last, channels = f"r{index}", wide
    weights["w"] = _dense(random, channels, CLASSES) * 8
    nodes.append(helper.make_node("GlobalAveragePool", [last], ["pooled"]))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"]))
    nodes.append(helper.make_node("MatMul", ["flat", "w"], ["logits"]))
    return (3, 64, 64), nodes, weights


def _image(random: np.random.Generator) -> _Graph:
    weights = {"w": _dense(random, 3 * 14 * 14, CLASSES) * 4}
    nodes = [
        helper.make_node("AveragePool", [INPUT], ["pooled"], kernel_shape=[16, 16], strides=[16, 16]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["logits"]),
    ]
    return (3, 224, 224), nodes, weights


_GRAPHS = {"tiny": _tiny, "cnn": _cnn, "image": _image}


def _serialise(name: str, shape: tuple[int, ...], nodes: list[Any], weights: dict[str, NDArray[np.float32]]) -> bytes:
    graph = helper.make_graph(
        [*nodes, helper.make_node("Softmax", ["logits"], [OUTPUT], axis=1)],
        name,
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["N", *shape])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["N", CLASSES])],
        [numpy_helper.from_array(array, key) for key, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))
