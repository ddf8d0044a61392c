from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from edge_agent.contract.constraint import AxisLimit, Constraint, Encoding
from edge_agent.contract.signature import Signature, TensorSpec
from edge_agent.contract.tensors import Datatype
from trainer.errors import ExportFailed
from trainer.release.export import export

_OUTPUTS = (TensorSpec(name="y", datatype=Datatype.FP32, shape=(None,)),)


def number(name: str, *axes: int | None, constraint: Constraint | None = None) -> TensorSpec:
    return TensorSpec(name=name, datatype=Datatype.FP32, shape=(None, *axes), constraint=constraint or Constraint())


class ByPythonsNumber(pl.LightningModule):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), -1).sum(dim=1)


class ManyColumns(pl.LightningModule):
    def forward(self, first: Tensor, *others: Tensor) -> Tensor:
        return first + torch.stack([other.to(first.dtype) for other in others]).sum(dim=0)


class Series(pl.LightningModule):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=1) * x.shape[1]


def test_an_axis_that_the_exporter_would_freeze_is_named_with_what_does_that(tmp_path: Path) -> None:
    signature = Signature(inputs=(number("x", 2),), outputs=_OUTPUTS)
    with pytest.raises(ExportFailed, match=r"input 'x': the exporter made a constant of axis 0, the 3 .*len\(x\)"):
        export(ByPythonsNumber(), signature, tmp_path)


def test_forward_may_take_its_inputs_as_one_tuple(tmp_path: Path) -> None:
    words = Constraint(allowed=("a", "b"), encoding=Encoding.UTF_8)
    text = TensorSpec(name="w", datatype=Datatype.BYTES, shape=(None,), constraint=words)
    signature = Signature(inputs=(number("x"), text, number("z")), outputs=_OUTPUTS)
    files = export(ManyColumns(), signature, tmp_path)
    session = onnxruntime.InferenceSession(str(files["model.onnx"]))
    rows = {"x": np.array([1, 2], np.float32), "w": np.array(["b", "?"], object), "z": np.array([10, 20], np.float32)}
    assert session.run(None, rows)[0].tolist() == [13.0, 22.0]


def test_an_open_axis_is_exported_within_the_contracts_limits(tmp_path: Path) -> None:
    limits = Constraint(axes=(AxisLimit(axis=1, minimum=8, maximum=32),))
    files = export(Series(), Signature(inputs=(number("x", None, constraint=limits),), outputs=_OUTPUTS), tmp_path)
    session = onnxruntime.InferenceSession(str(files["model.onnx"]))
    for length in (8, 20, 32):
        assert session.run(None, {"x": np.ones((2, length), np.float32)})[0].tolist() == [length, length]
