"""The recipes that ship, trained as they are but for fewer epochs; each once for all tests."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_agent.contract.runs import RunState
from edge_agent.runtime.package import Package
from tests.trainer.conftest import NOW, run_file
from trainer.data.lake import import_base
from trainer.recipe import Recipe
from trainer.work.run import PACKAGE_FOLDER, execute

MODELS = Path(__file__).parents[3] / "models"


@pytest.fixture(scope="session")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Recipe]:
    """Makes a copy of a shipped recipe that learns for so many epochs."""

    def copy(name: str, epochs: int) -> Recipe:
        folder = tmp_path_factory.mktemp("shipped") / name
        shutil.copytree(MODELS / name, folder, ignore=shutil.ignore_patterns("__pycache__"))
        settings = folder / "model.toml"
        text = re.sub(r"^epochs = \d+$", f"epochs = {epochs}", settings.read_text(), flags=re.MULTILINE)
        # What int8 gains is measured on digits; here it would only take its time.
        settings.write_text(text.replace("[gates]\n", '[gates]\nint8 = "off"\n'))
        return Recipe.load(folder)

    return copy


@pytest.fixture(scope="session")
def first_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Recipe], Package]:
    """Makes the first model of a recipe: its base rows imported, trained on, judged and packaged."""

    def make(recipe: Recipe) -> Package:
        folder = tmp_path_factory.mktemp(recipe.name)
        import_base(recipe, str(folder / "lake"), now=NOW)
        run = run_file(folder / "lake", model=recipe.name)
        result = execute(run, recipe, folder / "work", champion=None, version="1", report=lambda *_: None)
        assert result.state is RunState.RELEASED, result.reasons
        return Package.open(folder / "work" / PACKAGE_FOLDER, verify=True)

    return make
