"""A recipe that learns quickly, a lake with base and field rows, and a first model: made once for all tests."""

from __future__ import annotations

import datetime as dt
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edge_agent.contract.lake import LABELS, SAMPLES
from edge_agent.contract.runs import RunFile, RunState
from edge_agent.runtime.onnx import OnnxBackend
from edge_agent.runtime.package import Package
from trainer.data.lake import append, import_base
from trainer.data.rows import encode_row
from trainer.recipe import Recipe
from trainer.work.run import PACKAGE_FOLDER, execute

NOW = dt.datetime(2025, 3, 1, 12, tzinfo=dt.UTC)
NOW_MS = int(NOW.timestamp() * 1000)


# Whichever test comes first pays for the libraries and the first model: 25 s alone, minutes on a busy machine.
PATIENCE_S = 600


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the tests that need the first model the time that it takes."""
    for item in items:
        if "champion" in getattr(item, "fixturenames", ()) and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(PATIENCE_S))


def run_file(lake: Path, champion: Package | None = None, **changes: Any) -> RunFile:
    run = RunFile(
        run="run-1",
        model="digits",
        trigger="manual",
        reason="a test",
        logical_time="2025-03-01T12:00:00Z",
        lake=str(lake),
        seed=1,
        fence=3,
        champion=champion.digest if champion else None,
        champion_version=champion.manifest.version if champion else None,
    )
    return msgspec.structs.replace(run, **changes)


def field_rows(
    recipe: Recipe, champion: Package, *, per_device: int, drifted: bool, seed: int = 0, from_ms: int = NOW_MS
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Samples and labels as three cameras would have sent them, a row a second."""
    data, world = recipe.module("data"), recipe.module("world")
    stream, rng, backend = data.load("stream"), np.random.default_rng(seed), OnnxBackend(champion)
    samples, labels = [], []
    for device, degree in world.DRIFTED.items():
        chosen = rng.choice(len(stream), per_device, replace=False)
        inputs = {"image": (degree if drifted else world.CLEAR).show(stream.images[chosen], rng)}
        answers = np.sort(backend.infer(inputs)["probabilities"], axis=1)
        classes = backend.infer(inputs)["probabilities"].argmax(axis=1)
        for at, row in enumerate(chosen):
            common = {
                "request_id": f"{device}-{seed}-{drifted}-{at}",
                "device": device,
                "model": "digits",
                "package": champion.digest,
                "at_ms": from_ms + at * 1000,
                "prediction": str(classes[at]),
                "inclusion_probability": 0.5,
            }
            samples.append(
                common
                | {
                    "day": "2025-03-01",
                    "reason": "uniform",
                    "confidence": float(answers[at, -1]),
                    "margin": float(answers[at, -1] - answers[at, -2]),
                    "group": data.group(int(stream.rows[row])),
                    "inputs": encode_row(inputs, at),
                    "outputs": b"\x80",
                }
            )
            labels.append(
                common
                | {
                    "label": str(stream.labels[row]),
                    "source": "test",
                    "labelled_at_ms": common["at_ms"] + 100,
                }
            )
    return samples, labels


@pytest.fixture(scope="session")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits recipe, with fewer epochs."""
    folder = tmp_path_factory.mktemp("recipes")
    source = Path(__file__).parents[2] / "models" / "digits"
    shutil.copytree(source, folder / "digits", ignore=shutil.ignore_patterns("__pycache__"))
    settings = folder / "digits" / "model.toml"
    text = settings.read_text().replace("epochs = 25\n", "epochs = 10\n").replace("_epochs = 20\n", "_epochs = 8\n")
    settings.write_text(text)
    return folder


@pytest.fixture(scope="session")
def recipe(recipes: Path) -> Recipe:
    return Recipe.load(recipes / "digits")


@pytest.fixture(scope="session")
def base_lake(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake with the recipe's base rows alone. Not to be written to: copy it."""
    lake = tmp_path_factory.mktemp("lake") / "base"
    assert import_base(recipe, str(lake), now=NOW).new == 701
    return lake


@pytest.fixture(scope="session")
def first_lake(base_lake: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The lake that the first model is trained on; its run writes into the book."""
    return shutil.copytree(base_lake, tmp_path_factory.mktemp("lake") / "first")


@pytest.fixture(scope="session")
def champion(recipe: Recipe, first_lake: Path, tmp_path_factory: pytest.TempPathFactory) -> Package:
    """The first model, trained on base rows."""
    work = tmp_path_factory.mktemp("first")
    run = run_file(first_lake)
    result = execute(run, recipe, work, champion=None, version="1", report=lambda *_: None)
    assert result.state is RunState.RELEASED, result.reasons
    return Package.open(work / PACKAGE_FOLDER, verify=True)


@pytest.fixture
def lake_with(base_lake: Path, tmp_path: Path) -> Callable[..., Path]:
    """Makes a copy of the lake with rows appended."""

    def make(samples: list[dict[str, Any]], labels: list[dict[str, Any]]) -> Path:
        lake = tmp_path / "lake"
        if not lake.exists():
            # Whoever trained on it may have written into its book.
            shutil.copytree(base_lake, lake, ignore=shutil.ignore_patterns("datasets"))
        if samples:
            append(str(lake), SAMPLES, samples)
        if labels:
            append(str(lake), LABELS, labels)
        return lake

    return make
