"""The driver without a GPU."""

from __future__ import annotations

import pytest

from tests.fakes.cuda_driver import StubDriver, can_build


@pytest.fixture(scope="session")
def stub_driver(tmp_path_factory: pytest.TempPathFactory) -> StubDriver:
    if not can_build():
        pytest.skip("no gcc here, which compiles the driver without a GPU")
    return StubDriver.build(tmp_path_factory.mktemp("cuda_driver"))
