"""A float32 model in half precision: cast node by node, but for those whose numbers do not fit it.

float16 ends at 65504 and has 11 bits of mantissa. Nodes that give or take numbers near that end, on the golden samples,
stay in float32, as do those whose weights are beyond it or vanish in it. If the answers then differ by more than the
tolerance, so do sums, exponentials and normalisations, which lose most; if they still differ, there is no fp16 engine.
Networks are strongly typed: the casts stand in the ONNX model, and TensorRT does as it says.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.errors import EngineBuildFailed, PackageError
from edge_agent.runtime.package import Golden, decode_golden
from edge_agent.runtime.tensorrt.graph_hash import model_precision
from edge_agent.runtime.tensorrt.job import Tolerance
from edge_agent.runtime.tensorrt.onnx_file import LARGEST_BYTES, load_model

# A quarter of what float16 holds: the golden samples are few, and other inputs give larger numbers.
_LARGEST_VALUE = 65504.0 / 4
# Rows on which the range of each node is measured, one by one: all activations are held at once.
_ROWS_MEASURED = 8
# Below it float16 loses its bits one by one.
_SMALLEST_NORMAL = 6.104e-5
_DELICATE = frozenset({
    "Exp", "GroupNormalization", "InstanceNormalization", "LayerNormalization", "Log", "LogSoftmax", "LpNormalization",
    "Pow", "Reciprocal", "ReduceL2", "ReduceLogSumExp", "ReduceMean", "ReduceSum", "ReduceSumSquare", "Softmax", "Sqrt",
})  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Cast:
    """How a model was cast.

    Args:
        kept_fp32: Names of the nodes that stayed in float32.
        difference: Largest absolute difference from the golden outputs; None where there were none.
    """

    kept_fp32: tuple[str, ...] = ()
    difference: float | None = None


def cast_to_fp16(
    model: Path,
    target: Path,
    *,
    golden: Path | None = None,
    tolerance: Tolerance | None = None,
    kept_fp32: Sequence[str] | None = None,
) -> Cast:
    """Write a model in half precision; inputs and outputs keep their types.

    Args:
        golden: The golden samples, on which ranges are measured and the outcome is checked.
        tolerance: How far outputs may be off.
        kept_fp32: The nodes to keep, as an earlier cast of the same graph found them: nothing is measured then.
    Raises:
        EngineBuildFailed: The model is not float32, is too large, or answers otherwise in half precision; final.
        AcceleratorUnavailable: The package ``onnx`` is missing.
    """
    source = _load(model)
    if kept_fp32 is not None:
        _save(source, target, kept_fp32)
        return Cast(tuple(kept_fp32))
    samples = None if golden is None else _golden(golden)
    unfit = _unfit_weights(source)
    if samples is None:
        _save(source, target, sorted(unfit))
        return Cast(tuple(sorted(unfit)))
    unfit |= _unfit_values(source, samples.inputs)
    delicate = {node.name for node in source.graph.node if node.op_type in _DELICATE}
    worst = ""
    for kept in dict.fromkeys((frozenset(unfit), frozenset(unfit | delicate))):
        _save(_load(model), target, sorted(kept))
        difference, worst = _difference(target, samples, tolerance or Tolerance())
        if not worst:
            return Cast(tuple(sorted(kept)), difference)
    raise EngineBuildFailed(f"in half precision the model answers otherwise: {worst}", is_final=True)


def _load(model: Path) -> Any:
    """The model, each node with a name: by it a node is kept out."""
    loaded = load_model(model, weights=True)
    precision = model_precision(loaded)
    if precision != "fp32":
        raise EngineBuildFailed(f"the model is {precision} already, and is not cast to half precision", is_final=True)
    if loaded.ByteSize() > LARGEST_BYTES:
        raise EngineBuildFailed("the model is too large to be cast to half precision here", is_final=True)
    taken = {node.name for node in loaded.graph.node}
    for number, node in enumerate(loaded.graph.node):
        if not node.name:
            name = f"{node.op_type}_{number}"
            node.name = name if name not in taken else f"{name}_unnamed"
    return loaded


def _save(model: Any, target: Path, kept_fp32: Sequence[str]) -> None:
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    try:
        cast = convert_float_to_float16(model, keep_io_types=True, node_block_list=list(kept_fp32))
        _sort(cast.graph)
        _drop_detours(cast.graph)
        onnx.save(cast, str(target))
    except OSError as error:
        raise EngineBuildFailed(f"{target}: the model in half precision could not be written: {error}") from error
    except MemoryError:
        raise
    except Exception as error:
        # The converter asserts, and onnx's shape inference raises, whatever they do not expect of a model.
        raise EngineBuildFailed(f"the model cannot be cast to half precision: {error}", is_final=True) from error


def _sort(graph: Any) -> None:
    """Put nodes after those whose outputs they use; the converter appends its casts at the end."""
    made = {name for node in graph.node for name in node.output}
    known = {constant.name for constant in graph.initializer} | {tensor.name for tensor in graph.input}
    waiting, ordered = list(graph.node), []
    while waiting:
        later = []
        for node in waiting:
            if all(name in known or name not in made for name in _uses(node)):
                ordered.append(node)
                known.update(node.output)
            else:
                later.append(node)
        if len(later) == len(waiting):
            raise EngineBuildFailed("the model's graph is no graph without circles", is_final=True)
        waiting = later
    del graph.node[:]
    graph.node.extend(ordered)


def _uses(node: Any) -> set[str]:
    names = {name for name in node.input if name}
    for attribute in node.attribute:
        for inner in (attribute.g, *attribute.graphs):
            own = {name for each in inner.node for name in each.output} | {each.name for each in inner.input}
            names |= {name for each in inner.node for name in _uses(each)} - own
    return names


def _drop_detours(graph: Any) -> None:
    """Between two nodes that stay in float32 nothing is cast down and up again, which would lose what they kept.

    The nodes are sorted, so that of several detours in a row each leads to the first.
    """
    from onnx import TensorProto, helper

    outputs = {output.name for output in graph.output}
    down: dict[str, str] = {}  # float16 tensor -> the float32 one that it was cast from
    instead: dict[str, str] = {}
    for node in graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = instead.get(name, name)
        target = next((each.i for each in node.attribute if each.name == "to"), 0) if node.op_type == "Cast" else 0
        if target == TensorProto.FLOAT16:
            down[node.output[0]] = node.input[0]
        elif target == TensorProto.FLOAT and node.input[0] in down:
            instead[node.output[0]] = down[node.input[0]]
            if node.output[0] in outputs:  # its name must stay
                node.CopyFrom(helper.make_node("Identity", [down[node.input[0]]], [node.output[0]], name=node.name))
    needed = set(outputs)
    for number in reversed(range(len(graph.node))):
        node = graph.node[number]
        if node.op_type == "Cast" and node.output[0] not in needed:
            del graph.node[number]
        else:
            needed |= _uses(node)


def _unfit_weights(model: Any) -> set[str]:
    """Nodes with weights that float16 cannot hold: too large, or so small that they vanish."""
    from onnx import TensorProto, numpy_helper

    unfit = set()
    for weight in model.graph.initializer:
        if weight.data_type == TensorProto.FLOAT:
            largest = np.abs(numpy_helper.to_array(weight)).max(initial=0.0)
            if largest > _LARGEST_VALUE or 0.0 < largest < _SMALLEST_NORMAL:
                unfit.add(weight.name)
    return {node.name for node in model.graph.node if unfit & set(node.input)}


def _unfit_values(model: Any, inputs: Mapping[str, NDArray[Any]]) -> set[str]:
    """Nodes that give or take, on golden rows, what comes near the end of float16."""
    import onnx
    from onnx import TensorProto

    try:
        typed = onnx.shape_inference.infer_shapes(model)
    except MemoryError:
        raise
    except Exception as error:
        # Shape inference raises whatever protobuf or its C++ part raises.
        raise EngineBuildFailed(f"the types within the model cannot be told: {error}", is_final=True) from error
    floats = {value.name for value in typed.graph.value_info if value.type.tensor_type.elem_type == TensorProto.FLOAT}
    inner = [name for node in model.graph.node for name in node.output if name in floats]
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    known = {output.name for output in model.graph.output}
    watched.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in inner if name not in known
    )
    session = _session(watched.SerializeToString())
    rows = len(next(iter(inputs.values())))
    unfit = {name for name, value in inputs.items() if value.dtype.kind == "f" and not _fits(value)}
    for row in range(min(rows, _ROWS_MEASURED) if inner else 0):
        one = {name: values[row : row + 1] for name, values in inputs.items()}
        values = _run(session, inner, one)
        unfit |= {name for name, value in zip(inner, values, strict=True) if not _fits(value)}
    return {node.name for node in model.graph.node if unfit & {*node.input, *node.output}}


def _fits(values: NDArray[Any]) -> bool:
    return bool(np.abs(values).max(initial=0.0) <= _LARGEST_VALUE)  # not where there is a NaN


def _difference(file: Path, golden: Golden, tolerance: Tolerance) -> tuple[float, str]:
    """The largest absolute difference, and what is wrong: nothing within the tolerance."""
    names = list(golden.outputs)
    answers = _run(_session(str(file)), names, golden.inputs)
    largest, worst = 0.0, ""
    for name, actual in zip(names, answers, strict=True):
        expected = golden.outputs[name]
        if actual.shape != expected.shape:
            return float("inf"), f"output '{name}': shape {list(actual.shape)}, expected {list(expected.shape)}"
        if actual.dtype.kind != "f":
            wrong = float(np.mean(actual != expected))
            worst = worst or (f"output '{name}': {wrong:.1%} of the values differ" if wrong else "")
            continue
        off = np.abs(actual.astype(np.float64) - expected)
        same = np.isclose(actual, expected, rtol=tolerance.rtol, atol=tolerance.atol, equal_nan=True)
        largest = max(largest, float(np.nanmax(off, initial=0.0)))
        if not same.all():
            share = 1.0 - float(np.mean(same))
            worst = worst or f"output '{name}': off by up to {float(np.nanmax(off)):.3g}, {share:.1%} of its values"
    return largest, worst


def _session(model: str | bytes) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    # Fused, fewer results would be rounded than on the GPU.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        # ONNX Runtime's own exceptions share no base class.
        raise EngineBuildFailed(
            f"ONNX Runtime refuses the model that was to be cast: {error}", is_final=True
        ) from error


def _run(session: Any, names: Sequence[str], inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
    try:
        answers: list[NDArray[Any]] = session.run(list(names), dict(inputs))
    except Exception as error:
        # As above.
        raise EngineBuildFailed(f"the model fails on its golden samples: {error}", is_final=True) from error
    return answers


def _golden(file: Path) -> Golden:
    try:
        return decode_golden(file.read_bytes())
    except (OSError, PackageError) as error:
        raise EngineBuildFailed(f"{file}: {error}") from error
