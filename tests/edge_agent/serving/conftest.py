"""A device that serves two models over real sockets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_agent.contract.manifest import Batching
from edge_agent.runtime.slots import LoadedModel, load
from edge_agent.runtime.watchdog import Watchdog
from edge_agent.serving.inference import Inference
from tests.edge_agent.serving.inference_parts import Ear, Load
from tests.fakes.hanging_package import make_hanging_package
from tests.fakes.packages import make_package
from tests.fakes.serving_device import EVERYTHING, Device, serving
from tests.fakes.text_package import make_text_package

__all__ = ["Device"]


def make_models(folder: Path) -> None:
    """The models "digits" (which fails on pixels above 0.95) and "echo"."""
    (folder / "models").mkdir()
    make_package(folder / "models" / "digits", sampling=EVERYTHING, fails_above=0.95)
    make_text_package(folder / "models" / "echo")


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    """A device of the test's own."""
    make_models(tmp_path)
    with serving(tmp_path) as device:
        yield device


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    """One for all tests of a module that neither change its models nor look at its counts."""
    folder = tmp_path_factory.mktemp("shared")
    make_models(folder)
    with serving(folder) as device:
        yield device


@pytest.fixture
def ear() -> Ear:
    return Ear()


@pytest.fixture
def inference(ear: Ear) -> Iterator[Inference]:
    inference = Inference(ear, threads=2, watchdog=Watchdog(tick_s=0.05))
    yield inference
    inference.close()


@pytest.fixture
def digits(tmp_path: Path) -> Iterator[Load]:
    """Loads "digits", which fails on pixels above 0.95, with a batching policy."""
    models: list[LoadedModel] = []

    def make(batching: Batching | None = None) -> LoadedModel:
        folder = tmp_path / f"digits{len(models)}"
        models.append(load(make_package(folder, fails_above=0.95, batching=batching)))
        return models[-1]

    yield make
    for loaded in models:
        loaded.close()


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[Load]:
    """Loads "sleeper", which takes as long as its first pixel says."""
    models: list[LoadedModel] = []

    def make(batching: Batching | None = None, max_run_s: float = 30.0) -> LoadedModel:
        folder = tmp_path / f"sleeper{len(models)}"
        models.append(load(make_hanging_package(folder, batching=batching, max_run_s=max_run_s)))
        return models[-1]

    yield make
    for loaded in models:
        loaded.close()
