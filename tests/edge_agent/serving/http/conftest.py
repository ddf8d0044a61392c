"""Servers for the transport's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.edge_agent.serving.http.device import Device, serving


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    """A server of the test's own."""
    with serving(tmp_path) as device:
        yield device
