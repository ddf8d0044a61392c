"""A device with three models: two of text and numbers, one with a bit of everything in its signature."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.packages import make_package
from tests.fakes.sensor_package import make_sensor_package
from tests.fakes.serving_device import EVERYTHING, Device, serving
from tests.fakes.text_package import make_text_package


def make_three(folder: Path) -> None:
    """The packages "digits", "echo" and "sensor-guard" in the folder of models."""
    make_package(folder / "models" / "digits", sampling=EVERYTHING, fails_above=0.95)
    make_text_package(folder / "models" / "echo")
    make_sensor_package(folder / "models" / "sensor")


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    """A device of the test's own."""
    make_three(tmp_path)
    with serving(tmp_path) as device:
        yield device


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    """One for all tests of a module that change nothing."""
    folder = tmp_path_factory.mktemp("shared")
    make_three(folder)
    with serving(folder) as device:
        yield device
