from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from onnxruntime import InferenceSession

from edge_agent.contract.constraint import AxisLimit, Constraint
from edge_agent.contract.signature import Signature, TensorSpec
from edge_agent.contract.tensors import Datatype
from trainer.errors import ParityFailed
from trainer.gates.parity_matrix import ParityMatrix, open_lengths

SERIES = Signature(
    inputs=(TensorSpec(name="series", datatype=Datatype.FP32, shape=(None, None)),),
    outputs=(
        TensorSpec(name="probabilities", datatype=Datatype.FP32, shape=(None, 2), labels=("ok", "worn")),
        TensorSpec(name="score", datatype=Datatype.FP32, shape=(None, 1)),
    ),
)


class Network(torch.nn.Module):
    """Two outputs of a series of any length."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = torch.nn.Conv1d(1, 4, 3, padding=1)
        self.head = torch.nn.Linear(4, 2)

    def forward(self, series: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = torch.relu(self.mix(series[:, None])).mean(dim=-1)
        return torch.softmax(self.head(found), dim=-1), series.abs().amax(dim=-1, keepdim=True)


class Session:
    """An ONNX file as ONNX Runtime runs it, without the checks that a package goes through."""

    platform = "onnx_onnxv1"

    def __init__(self, path: Path, *, off_by: float = 0.0) -> None:
        self.signature = SERIES
        self._session, self._off_by = InferenceSession(str(path), providers=["CPUExecutionProvider"]), off_by

    def infer(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        probabilities, score = self._session.run(None, dict(inputs))
        return {"probabilities": probabilities + np.float32(self._off_by), "score": score}

    def cancel(self) -> None:
        pass

    def close(self) -> None:
        pass


def exported(network: Network, path: Path, *, open_axes: tuple[int, ...]) -> Path:
    """As the exporter writes it, with some axes open."""
    names = ("N", "T")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network,
            (torch.rand(3, 20),),
            dynamo=True,
            input_names=["series"],
            output_names=["probabilities", "score"],
            dynamic_shapes=({at: torch.export.Dim(names[at]) for at in open_axes},),
            verbose=False,
        )
    assert program is not None
    program.save(path)
    return path


@pytest.fixture(scope="module")
def network() -> Any:
    torch.manual_seed(0)
    return Network().eval()


@pytest.fixture(scope="module")
def rows() -> dict[str, NDArray[Any]]:
    return {"series": np.random.default_rng(0).normal(size=(30, 20)).astype(np.float32)}


@pytest.fixture(scope="module")
def matrix(network: Any, rows: dict[str, NDArray[Any]]) -> ParityMatrix:
    slices = {"device cam-a": np.arange(30) < 10, "device gone": np.zeros(30, dtype=bool)}
    return ParityMatrix(network, SERIES, "probabilities", rows, slices=slices, sizes=(12,))


def test_all_batch_sizes_lengths_and_slices_are_compared_and_told(
    network: Any, matrix: ParityMatrix, tmp_path: Path
) -> None:
    session = Session(exported(network, tmp_path / "model.onnx", open_axes=(0, 1)))
    found = matrix.hold(session, exact=True)
    shapes = [(lengths["series.1"], cell.rows) for lengths, cell in found.shapes]
    assert shapes == [(20, 1), (20, 2), (20, 7), (20, 32), (20, 12), *[(n, b) for n in (10, 41, 21) for b in (1, 7)]]
    assert {name: cell.rows for name, cell in found.slices.items()} == {"all": 30, "device cam-a": 10}
    assert found.difference < 1e-4
    told = found.as_json()
    assert set(told["shapes"][0]["differences"]) == {"probabilities", "score"}
    assert told["slices"]["all"]["agreement"] == 1.0


def test_an_export_that_froze_the_time_axis_is_caught(network: Any, matrix: ParityMatrix, tmp_path: Path) -> None:
    session = Session(exported(network, tmp_path / "model.onnx", open_axes=(0,)))
    with pytest.raises(ParityFailed, match=r"(?s)batch of 1, 'series' of length 10: .*was its time axis fixed on"):
        matrix.hold(session, exact=True)


def test_a_form_in_fewer_bits_need_only_run_and_how_far_it_is_off_is_told(
    network: Any, matrix: ParityMatrix, tmp_path: Path
) -> None:
    session = Session(exported(network, tmp_path / "model.onnx", open_axes=(0, 1)), off_by=0.02)
    assert matrix.hold(session, exact=False).difference == pytest.approx(0.02, abs=1e-4)
    with pytest.raises(ParityFailed, match=r"output 'probabilities', batch of 1, 'series' of length 20, row 0: off by"):
        matrix.hold(session, exact=True)


def test_a_length_that_the_contract_allows_and_the_network_refuses_is_the_recipes_to_mend(
    rows: dict[str, NDArray[Any]],
) -> None:
    network: Any = torch.nn.Sequential(torch.nn.Linear(20, 2), torch.nn.Softmax(dim=-1))
    signature = Signature(inputs=SERIES.inputs, outputs=SERIES.outputs[:1])
    with pytest.raises(ParityFailed, match=r"of length 10: forward itself fails .*constraint\.axes"):
        ParityMatrix(network, signature, "probabilities", rows, slices={})


def test_lengths_follow_the_contracts_limits() -> None:
    def lengths(*limits: AxisLimit) -> list[int]:
        spec = TensorSpec(name="x", datatype=Datatype.FP32, shape=(None, None), constraint=Constraint(axes=limits))
        signature = Signature(inputs=(spec,), outputs=SERIES.outputs)
        return [each["x.1"] for each in open_lengths(signature, {"x": np.zeros((4, 64), dtype=np.float32)})]

    assert lengths() == [64, 32, 129, 65]
    assert lengths(AxisLimit(axis=1, minimum=48, maximum=64)) == [64, 48]
    assert lengths(AxisLimit(axis=1, minimum=64, maximum=100_000)) == [64, 512, 65]
    fixed = Signature(inputs=(TensorSpec(name="x", datatype=Datatype.FP32, shape=(None, 3)),), outputs=SERIES.outputs)
    assert open_lengths(fixed, {"x": np.zeros((4, 3))}) == [{}]
