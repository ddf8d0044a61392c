"""What a recipe's author may get wrong in model.py: refused in a sentence, most of it before the training begins."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.trainer.conftest import run_file
from trainer.data.dataset import Dataset, read_dataset
from trainer.errors import ParityFailed, RecipeError
from trainer.gates.parity import check_probabilities
from trainer.recipe import Recipe
from trainer.training.fit import fit
from trainer.training.rehearsal import rehearse
from trainer.work.run import execute

Changed = Callable[[str, str], Recipe]


@pytest.fixture
def changed(recipes: Path, tmp_path: Path) -> Changed:
    """The recipe with another text in place of one in model.py or model.toml."""

    def change(old: str, new: str) -> Recipe:
        folder = Path(shutil.copytree(recipes / "digits", tmp_path / "digits"))
        for name in ("model.py", "model.toml"):
            text = (folder / name).read_text()
            if old in text:
                (folder / name).write_text(text.replace(old, new, 1))
                return Recipe.load(folder)
        raise AssertionError(old)

    return change


@pytest.fixture(scope="module")
def dataset(recipe: Recipe, base_lake: Path) -> Dataset:
    return read_dataset(recipe, str(base_lake))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "return torch.softmax(self.logits(image), dim=-1)",
            "return self.logits(image)",
            "no probability distribution",
        ),
        ("nn.Linear(48 * 16, 64)", "nn.Linear(48 * 15, 64)", "forward failed on real rows: RuntimeError: mat1"),
        ("def forward(self, image: Tensor)", "def forward(self, image: Tensor, more: Tensor)", "TypeError: .*'more'"),
        ("nn.Linear(64, classes)", "nn.Linear(64, 11)", r"the shape \[-1, 11\], model.toml says \[-1, 10\]"),
        ("torch.softmax(self.logits(image), dim=-1)", "(image, image)", "forward gave 2 outputs"),
        ("torch.softmax(self.logits(image), dim=-1)", "torch.softmax(self.logits(image).double(), dim=-1)", "float64"),
    ],
)
def test_a_forward_that_cannot_be_released_is_refused_before_training(
    changed: Changed, dataset: Dataset, old: str, new: str, message: str
) -> None:
    recipe = changed(old, new)
    with pytest.raises(RecipeError, match=rf"model\.py: .*{message}"):
        rehearse(recipe, recipe.network(learning_rate=1e-3, epochs=1), dataset.rows.inputs)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('self.log("val_loss"', 'self.log("loss"', r'logs no val_loss, .* self.log\("val_loss", loss\)'),
        ("inputs, target, weight = batch\n", "inputs, target = batch\n", "ValueError: too many values to unpack"),
    ],
)
def test_a_step_that_fails_is_blamed_on_the_recipe(
    changed: Changed, dataset: Dataset, old: str, new: str, message: str
) -> None:
    with pytest.raises(RecipeError, match=rf"model\.py: .*{message}"):
        fit(changed(old, new), dataset, seed=0)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("weight_decay = 1e-3", "weight_decy = 1e-3", r"asks for the option 'weight_decay'; .* has: weight_decy, aug"),
        (
            "weight_decay = 1e-3",
            "weight_decay = 1e-3\nwarmth = 2",
            "unknown option warmth; Model reads: augment_",
        ),
        ("weight_decay = 1e-3", 'weight_decay = "a"', "ValueError: could not convert"),
        ("super().__init__()", "1 / 0", "ZeroDivisionError"),
    ],
)
def test_a_network_that_cannot_be_made_says_why(changed: Changed, old: str, new: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        changed(old, new).network(learning_rate=1e-3, epochs=1)


@pytest.mark.parametrize(
    "use", ["self.kept = options", "dict(options)", "dict(**options)", "list(options.items())", "options.get('warmth')"]
)
def test_an_option_that_may_have_been_read_is_not_called_unknown(changed: Changed, use: str) -> None:
    recipe = changed("super().__init__()\n", f"super().__init__()\n        {use}\n")
    recipe.file.training.options["warmth"] = 2
    recipe.network(learning_rate=1e-3, epochs=1)


def test_a_logits_model_is_not_released(changed: Changed, base_lake: Path, tmp_path: Path) -> None:
    recipe = changed("return torch.softmax(self.logits(image), dim=-1)", "return self.logits(image)")
    with pytest.raises(RecipeError, match=r"return torch\.softmax\(logits, dim=-1\) from forward"):
        execute(run_file(base_lake), recipe, tmp_path / "w", champion=None, version="1", report=lambda *_: None)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([0.4, float("nan")], "row 1 holds values that are not finite"),
        ([1.5, -0.5], "row 1 holds values from -0.5 to 1.5, not in 0..1"),
        ([0.5, 0.3], "row 1 sums up to 0.8, not to 1"),
    ],
)
def test_probabilities_that_are_none_are_named_by_row(row: list[float], message: str) -> None:
    check_probabilities("p", np.array([[0.5, 0.5005]], np.float32))
    with pytest.raises(ParityFailed, match=rf"output 'p' is no .*: {message} \(1 of 2 rows"):
        check_probabilities("p", np.array([[0.5, 0.5], row], np.float32))


def test_a_version_that_is_none_is_refused_before_training(recipe: Recipe, base_lake: Path, tmp_path: Path) -> None:
    from edge_agent.contract.errors import ManifestError

    with pytest.raises(ManifestError, match="version 'bad version': use 1 to 63"):
        execute(run_file(base_lake), recipe, tmp_path, champion=None, version="bad version", report=lambda *_: None)
