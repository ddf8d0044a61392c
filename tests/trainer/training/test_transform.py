"""A recipe's transform: the network sees what it gives, in training as on devices, where it is part of the graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from edge_agent.runtime.onnx import OnnxBackend
from edge_agent.runtime.package import Package
from tests.trainer.training.conftest import MODEL, Blobs, weights
from trainer.data.dataset import Dataset
from trainer.errors import RecipeError
from trainer.gates.parity import check_parity
from trainer.recipe import Recipe
from trainer.release.export import export, state_from
from trainer.release.package import Identity, write_candidate
from trainer.training.fit import fit
from trainer.training.rehearsal import rehearse

TRANSFORM = """

class Transform(nn.Module):
    def __init__(self, *, options):
        super().__init__()
        self.register_buffer("centre", torch.tensor([1.0, 1.25]))

    def forward(self, inputs):
        return {"point": (inputs["point"] - self.centre) * 4}
"""
# The same written into the network itself.
INSIDE = MODEL.replace("self.layers(point)", "self.layers((point - torch.tensor([1.0, 1.25])) * 4)").replace(
    'self.layers(inputs["point"])', 'self.layers((inputs["point"] - torch.tensor([1.0, 1.25])) * 4)'
)
IDENTITY = Identity(version="1", parent=None, dataset="d", seed=1, run="r")


def _released(recipe: Recipe, dataset: Dataset, folder: Path) -> Package:
    fitted = fit(recipe, dataset, seed=1)
    files = export(fitted.network, recipe.signature, folder / "export")
    backend = OnnxBackend(package := write_candidate(folder / "package", recipe, IDENTITY, files))
    check_parity(fitted.network, backend, dict(dataset.rows.inputs))
    return package


def test_what_stands_before_the_network_is_learnt_with_and_exported(
    blobs: Blobs, blobs_dataset: Dataset, tmp_path: Path
) -> None:
    inside = fit(blobs(model=INSIDE), blobs_dataset, seed=1)
    recipe = blobs(model=MODEL + TRANSFORM)
    fitted = fit(recipe, blobs_dataset, seed=1)
    own = weights(fitted)
    assert own.pop("input_transform.centre") == [1.0, 1.25]
    assert own == weights(inside)
    assert fitted.validation_loss == inside.validation_loss

    package = _released(recipe, blobs_dataset, tmp_path)
    points = blobs_dataset.rows.inputs["point"][:7]
    answers = OnnxBackend(package).infer({"point": points})["probabilities"]
    with torch.no_grad():
        assert np.allclose(answers, inside.network(torch.from_numpy(points)), atol=1e-5)
    model = onnx.load(str(package.path("model.onnx")), load_external_data=False)
    assert [value.name for value in model.graph.input] == ["point"]


def test_augmentation_comes_before_it_as_applications_would_send_it(blobs: Blobs, blobs_dataset: Dataset) -> None:
    augment = """

def augment(inputs, generator):
    return {"point": inputs["point"] + torch.randn(inputs["point"].shape, generator=generator)}
"""
    own = weights(fit(blobs(model=MODEL + TRANSFORM + augment), blobs_dataset, seed=1))
    del own["input_transform.centre"]
    assert own == weights(fit(blobs(model=INSIDE + augment), blobs_dataset, seed=1))


def test_the_next_training_starts_from_the_weights_of_a_package_that_has_one(
    blobs: Blobs, blobs_dataset: Dataset, tmp_path: Path
) -> None:
    recipe = blobs(model=MODEL + TRANSFORM)
    package = _released(recipe, blobs_dataset, tmp_path)
    start = state_from(package, recipe.network(learning_rate=1e-3, epochs=1))
    assert start is not None
    warm = fit(recipe, blobs_dataset, seed=2, start=start)
    assert warm.warm


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('{"point": (inputs["point"] - self.centre) * 4}', 'inputs["point"]', "Transform gave Tensor, not a dict"),
        ('self.register_buffer("centre", ', "self.centre = nn.Parameter(", r"Transform has weights \(centre\)"),
        ("super().__init__()", "1 / 0", r"Transform\(options=\) failed: ZeroDivisionError"),
        ("(nn.Module)", "", "Transform must be a class derived from torch.nn.Module"),
        ('inputs["point"] -', 'inputs["pint"] -', "KeyError: 'pint'"),
    ],
)
def test_a_transform_that_is_none_is_refused_before_training(
    blobs: Blobs, blobs_dataset: Dataset, old: str, new: str, message: str
) -> None:
    assert old in TRANSFORM
    recipe = blobs(model=MODEL + TRANSFORM.replace(old, new))
    with pytest.raises(RecipeError, match=rf"model\.py: .*{message}"):
        rehearse(recipe, recipe.network(learning_rate=1e-3, epochs=1), blobs_dataset.rows.inputs)


def test_an_option_that_only_the_transform_reads_is_known(blobs: Blobs) -> None:
    recipe = blobs(model=MODEL.replace(", self.options = learning_rate, options", " = learning_rate") + TRANSFORM)
    with pytest.raises(RecipeError, match="unknown option fault"):
        recipe.network(learning_rate=1e-3, epochs=1)
    reading = TRANSFORM.replace("        super()", '        options["fault"], options["fault_rank"]\n        super()')
    recipe = blobs(model=recipe.folder.joinpath("model.py").read_text().replace(TRANSFORM, reading))
    with pytest.raises(RecipeError, match="unknown option fault_epoch, marker; Model reads: fault, fault_rank"):
        recipe.network(learning_rate=1e-3, epochs=1)
