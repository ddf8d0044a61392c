"""What the tests of the server share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fleet_server.fleet import Fleet
from trainer.publish.image_signing import ImageSigning
from trainer.publish.keys import KeyFolder


@pytest.fixture(scope="session", autouse=True)
def _demo_runs_meanwhile(request: pytest.FixtureRequest) -> None:
    """Begin the demo, if its test is to come."""
    if any("demo" in getattr(item, "fixturenames", ()) for item in request.session.items):
        request.getfixturevalue("demo")


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `shoal keys init` makes it."""
    folder = tmp_path_factory.mktemp("keys")
    ImageSigning(KeyFolder(folder)).create(("digits",))
    return folder


@pytest.fixture
def fleet(tmp_path: Path, keys: Path) -> Iterator[Fleet]:
    """A fleet without devices."""
    one = Fleet(tmp_path, keys)
    yield one
    one.db.close()
