from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edge_agent.contract.errors import ModelLoadFailed
from edge_agent.contract.profile import merge
from edge_agent.runtime.onnx import OnnxBackend
from edge_agent.runtime.package import Package
from edge_agent.runtime.selftest import self_test
from trainer.data.dataset import read_dataset
from trainer.errors import ParityFailed
from trainer.gates.parity import check_parity
from trainer.recipe import Recipe
from trainer.release.export import export, state_from
from trainer.release.package import Identity, write_candidate
from trainer.training.loop import load_weights


@pytest.fixture(scope="session")
def network(recipe: Recipe, champion: Package) -> Any:
    network = recipe.network(learning_rate=1e-3, epochs=1)
    weights = state_from(champion, network)
    assert weights is not None
    load_weights(network, weights)
    return network.eval()


def test_the_first_model_reads_digits_that_nothing_trained_on(recipe: Recipe, champion: Package) -> None:
    heldout = recipe.module("data").load("heldout")
    answers = OnnxBackend(champion).infer({"image": heldout.images})["probabilities"].argmax(axis=1)
    assert (answers == heldout.labels).mean() >= 0.94


def test_the_package_passes_its_own_self_test_and_holds_what_it_should(recipe: Recipe, champion: Package) -> None:
    champion.verify()
    self_test(OnnxBackend(champion), champion.golden())
    assert set(champion.golden().inputs) == {"image"}
    judged = json.loads(champion.path("evaluation.json").read_text())
    assert judged["outcome"] == "first"
    assert champion.manifest.parent is None
    assert champion.manifest.lineage.code_sha256 == recipe.digest
    assert champion.manifest.lineage.dataset == judged["dataset"]["digest"]
    assert "| imported |" in champion.path("card.md").read_text()


def test_the_reference_counts_all_base_rows_and_only_unseen_answers(champion: Package) -> None:
    reference = champion.reference()
    judged = json.loads(champion.path("evaluation.json").read_text())
    assert reference.counts["image.mean"].rows == judged["dataset"]["rows"] == 701
    assert reference.counts["probabilities.confidence"].rows == judged["dataset"]["holdout"]
    assert len(reference.counts["probabilities.class"].bins) == 10
    assert merge(reference.counts, reference.counts)["image.mean"].rows == 1402
    knots = np.array(reference.calibration)
    assert (np.diff(knots[:, 0]) > 0).all()
    assert (np.diff(knots[:, 1]) >= 0).all()
    assert reference.accuracy == pytest.approx(judged["accuracy"], abs=1e-4)


@pytest.mark.parametrize("size", [1, 2, 7, 32])
def test_the_exported_model_answers_as_the_trained_one_at_any_batch_size(
    network: Any, recipe: Recipe, champion: Package, size: int
) -> None:
    images = recipe.module("data").load("heldout").images
    assert check_parity(network, OnnxBackend(champion), {"image": images}, batch_sizes=(size,)) < 1e-4


def test_a_model_with_other_weights_fails_parity(network: Any, recipe: Recipe, champion: Package) -> None:
    other = recipe.network(learning_rate=1e-3, epochs=1)
    images = recipe.module("data").load("heldout").images
    with pytest.raises(ParityFailed, match="output 'probabilities', batch of 1, row 0: off by"):
        check_parity(other, OnnxBackend(champion), {"image": images})


class _FixedBatch:
    """A backend whose model was exported with its batch axis fixed, as ONNX Runtime answers for one."""

    platform = "onnx_onnxv1"

    def __init__(self, recipe: Recipe, path: Path) -> None:
        import onnxruntime

        self.signature = recipe.signature
        self._session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def infer(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return {"probabilities": self._session.run(None, dict(inputs))[0]}

    def cancel(self) -> None:
        pass

    def close(self) -> None:
        pass


def test_an_export_whose_batch_axis_was_fixed_is_caught(
    network: Any, recipe: Recipe, champion: Package, tmp_path: Path
) -> None:
    path = tmp_path / "fixed" / "model.onnx"
    path.parent.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network,
            (torch.rand(1, 1, 8, 8),),
            dynamo=True,
            input_names=["image"],
            output_names=["probabilities"],
            verbose=False,
        )
    assert program is not None
    program.save(path)
    images = recipe.module("data").load("heldout").images
    with pytest.raises(ParityFailed, match=r"(?s)batch of 2: .* was its batch axis fixed on export\?"):
        check_parity(network, _FixedBatch(recipe, path), {"image": images})
    # The devices' runtime sees it too, before the first request.
    identity = Identity(version="9", parent=None, dataset="0" * 64, seed=0, run="r")
    candidate = write_candidate(tmp_path / "candidate", recipe, identity, {"model.onnx": path})
    with pytest.raises(ModelLoadFailed, match="has shape"):
        OnnxBackend(candidate)


class _Folding(torch.nn.Module):
    """Its batch norm may be folded into the convolution on export, so that its weights lose their names."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 4, 3)
        self.norm = torch.nn.BatchNorm2d(4)
        self.head = torch.nn.Linear(4 * 36, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.head(self.norm(self.conv(image)).flatten(1)), dim=-1)


def test_weights_that_the_export_folds_away_travel_beside_the_graph(recipe: Recipe, tmp_path: Path) -> None:
    network: Any = _Folding().eval()
    files = export(network, recipe.signature, tmp_path / "export")
    identity = Identity(version="9", parent=None, dataset="0" * 64, seed=0, run="r")
    candidate = write_candidate(tmp_path / "candidate", recipe, identity, files)
    found = state_from(candidate, network)
    assert found is not None
    for name, tensor in network.state_dict().items():
        assert np.array_equal(found[name], tensor.numpy()), name


def test_training_twice_with_one_seed_gives_the_same_weights(
    recipe: Recipe, base_lake: Path, champion: Package
) -> None:
    from trainer.training.fit import fit

    dataset = read_dataset(recipe, str(base_lake))
    again = fit(recipe, dataset, seed=1)
    found = state_from(champion, again.network)
    assert found is not None
    for name, tensor in again.network.state_dict().items():
        assert np.array_equal(found[name], tensor.numpy()), name
