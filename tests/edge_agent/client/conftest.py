"""A device that serves frames, for the clients."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.frames_device import FramesDevice, serving_frames


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FramesDevice]:
    """One for all tests of a module that leave its models as they are."""
    with serving_frames(tmp_path_factory.mktemp("client")) as device:
        yield device


@pytest.fixture
def device(tmp_path: Path) -> Iterator[FramesDevice]:
    """A device of the test's own."""
    with serving_frames(tmp_path) as device:
        yield device
