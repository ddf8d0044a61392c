"""What an ONNX file says beside what it computes, and how two of them are told apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper


def strip_notes(path: Path) -> None:
    """Take out of an ONNX file what its tools noted down for people: source lines, folders and names of this machine.

    They would make files of the same model differ by where it was trained, and tell devices what is none of theirs.
    Weights beside the file stay as they are.
    """
    model = onnx.load(str(path), load_external_data=False)
    model.doc_string = ""
    del model.metadata_props[:]
    _strip(model.graph)
    for function in model.functions:
        function.doc_string = ""
        del function.metadata_props[:]
        for node in function.node:
            _strip_node(node)
    path.write_bytes(model.SerializeToString(deterministic=True))


def differing_weights(ours: Path, theirs: Path) -> list[str]:
    """What differs between the weights of two ONNX files, a line each; empty where all are equal bit for bit."""
    mine, other = _weights(ours), _weights(theirs)
    lines = [f"{name}: only one of the two has it" for name in sorted(mine.keys() ^ other.keys())]
    for name in sorted(mine.keys() & other.keys()):
        a, b = mine[name], other[name]
        if a.shape != b.shape or a.dtype != b.dtype:
            lines.append(f"{name}: {a.dtype}{list(a.shape)} against {b.dtype}{list(b.shape)}")
        # Of text an array holds addresses, not the words.
        elif not np.array_equal(a, b) if a.dtype == object else a.tobytes() != b.tobytes():
            changed = int((a != b).sum())
            line = f"{name}: {changed} of {a.size} values differ"
            if a.dtype.kind in "fiu":
                line += f", by at most {float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max()):.3g}"
            lines.append(line)
    return lines


def _weights(path: Path) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(str(path)).graph.initializer}


def _strip(graph: onnx.GraphProto) -> None:
    graph.doc_string = ""
    del graph.metadata_props[:]
    for value in (*graph.input, *graph.output, *graph.value_info):
        value.doc_string = ""
        del value.metadata_props[:]
    for tensor in graph.initializer:
        tensor.doc_string = ""
        del tensor.metadata_props[:]
    for node in graph.node:
        _strip_node(node)


def _strip_node(node: onnx.NodeProto) -> None:
    node.doc_string = ""
    del node.metadata_props[:]
    for attribute in node.attribute:
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            _strip(graph)
