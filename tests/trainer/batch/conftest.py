"""A package for the tests of batch inference, made once."""

from __future__ import annotations

import pytest

from edge_agent.runtime.package import Package
from tests.fakes.packages import make_package


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    """64 pixels to ten classes. Not to be written to."""
    return make_package(tmp_path_factory.mktemp("packages") / "digits")
