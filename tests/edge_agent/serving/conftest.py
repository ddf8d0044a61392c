"""A device that serves two models over real sockets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

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
