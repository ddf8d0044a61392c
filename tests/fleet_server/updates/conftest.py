"""An update server with two models, and a package that nobody has published yet."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from edge_agent.runtime.package import Package
from tests.fakes.packages import make_package
from tests.fakes.update_server import TOKEN, UpdateServer, update_server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[UpdateServer]:
    with update_server(tmp_path / "server", models=("digits", "faces")) as running:
        yield running


@pytest.fixture
def package(tmp_path: Path) -> Package:
    return make_package(tmp_path / "built/1", version="1", seed=1)


@pytest.fixture
def client(server: UpdateServer) -> Iterator[httpx.Client]:
    """Speaks with the publisher's token."""
    with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {TOKEN}"}) as open_client:
        yield open_client
