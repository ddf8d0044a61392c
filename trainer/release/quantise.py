"""Static 8-bit quantisation (QDQ) of an exported model, calibrated on rows that it was trained on.

Weights are signed 7-bit per channel, activations unsigned 8-bit: with 8-bit weights the integer kernels of x86
processors without VNNI overflow, and the same model would answer otherwise there. The first and the last of the heavy
layers stay as they are: they lose the most by it and gain the least (one input channel; a handful of outputs), and
without them the small CNN was 1.33 times as fast for a single row, with them 1.21 times. So does the softmax: in steps
of 1/256 its probabilities would not sum up to 1.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from edge_agent.contract.signature import Signature
from edge_agent.contract.tensors import Datatype
from trainer.errors import QuantisationFailed
from trainer.release.graph import strip_notes

CALIBRATION_ROWS = 256
_BATCH_ROWS = 32
_QUANTISED = frozenset({"QuantizeLinear", "DequantizeLinear"})
_HEAVY = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
# What only follows, so that data stay in 8 bits between two heavy layers.
_LIGHT = frozenset({"Relu", "Clip", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "Add", "Concat"})
_TYPES = _HEAVY | _LIGHT | {"Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze"}
# Of fewer heavy layers nothing would be left between the first and the last.
_LEAST_LAYERS = 4


def quantise(model: Path, target: Path, signature: Signature, rows: Mapping[str, NDArray[Any]]) -> Path:
    """Write the int8 form of a model; equal arguments give equal bytes.

    Args:
        model: The ONNX file, its weights beside it.
        target: The file to write, weights inside.
        rows: Inputs by name to see the range of each activation on; axis 0 is N, at least 1.
    Raises:
        QuantisationFailed: Nothing in the graph can be quantised, or the tool cannot take it.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    source = onnx.load(str(model))
    if not any(node.op_type in _HEAVY for node in source.graph.node):
        raise QuantisationFailed("the graph holds no convolution and no matrix product to quantise")
    with tempfile.TemporaryDirectory(prefix=".int8-", dir=target.parent) as folder:
        plain, prepared = Path(folder) / "plain.onnx", Path(folder) / "prepared.onnx"
        try:
            # Weights in a file of their own confuse the tools' temporary copies.
            onnx.save(source, str(plain))
            _quiet()
            quant_pre_process(str(plain), str(prepared), skip_symbolic_shape=True)
            quantize_static(
                str(prepared),
                str(target),
                _Rows(signature, rows),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=sorted(_TYPES),
                nodes_to_exclude=_kept(onnx.load(str(prepared))),
                per_channel=True,
                reduce_range=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
        except Exception as error:
            # The tool's exceptions share no base class but this one.
            raise QuantisationFailed(f"the graph cannot be quantised: {type(error).__name__}: {error}") from error
    strip_notes(target)
    if not any(node.op_type in _QUANTISED for node in onnx.load(str(target)).graph.node):
        raise QuantisationFailed("the tool found nothing in the graph that it can quantise")
    return target


def _kept(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes that stay as they are.

    The first and the last heavy layer, where there are enough others; and what comes before any heavy layer: there lie
    raw inputs, and one range for days since 1970, euros, counts and missing values would leave nothing of the smaller.
    """
    heavy = [node.name for node in model.graph.node if node.op_type in _HEAVY]
    after: set[str] = set()
    raw = []
    for node in model.graph.node:  # in the order of computation
        if node.op_type in _HEAVY or any(name in after for name in node.input):
            after.update(node.output)
        else:
            raw.append(node.name)
    return raw + ([heavy[0], heavy[-1]] if len(heavy) >= _LEAST_LAYERS else [])


def calibration_rows(targets: NDArray[np.int64], *, most: int = CALIBRATION_ROWS) -> NDArray[np.int64]:
    """Numbers of some rows, each class in turn, always the same ones: what is rare has its range seen too.

    Args:
        targets: Class index of each row, int64[N].
    """
    rank = np.zeros(len(targets), dtype=np.int64)
    for target in np.unique(targets):
        same = np.flatnonzero(targets == target)
        # Spread over the whole length, which is ordered by time: multiples of the golden ratio.
        order = np.argsort((np.arange(len(same)) * 0.6180339887498949) % 1.0, kind="stable")
        rank[same[order]] = np.arange(len(same))
    return np.asarray(np.sort(np.lexsort((targets, rank))[:most]))


class _Rows(CalibrationDataReader):  # type: ignore[misc]
    """Feeds the rows in batches."""

    def __init__(self, signature: Signature, rows: Mapping[str, NDArray[Any]]) -> None:
        self._text = {spec.name for spec in signature.inputs if spec.datatype is Datatype.BYTES}
        self._batches = self._cut({spec.name: rows[spec.name] for spec in signature.inputs})

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """The next batch; None after the last."""
        return next(self._batches, None)

    def _cut(self, rows: dict[str, NDArray[Any]]) -> Iterator[dict[str, NDArray[Any]]]:
        for at in range(0, len(next(iter(rows.values()))), _BATCH_ROWS):
            yield {
                name: _as_text(array[at : at + _BATCH_ROWS]) if name in self._text else array[at : at + _BATCH_ROWS]
                for name, array in rows.items()
            }


def _as_text(array: NDArray[Any]) -> NDArray[Any]:
    """BYTES as the runtime takes them."""
    out = np.empty(array.size, dtype=object)
    out[:] = [each if isinstance(each, str) else bytes(each).decode() for each in array.ravel()]
    return out.reshape(array.shape)


def _quiet() -> None:
    """The tool advises on the root logger to do what has just been done."""
    logging.getLogger("onnxruntime.quantization").setLevel(logging.ERROR)
