from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fleet_server.console import past
from tests.fleet_server.console.harbour import Harbour


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Harbour]:
    """A server that has just been started for the first time."""
    harbour = Harbour(tmp_path)
    yield harbour
    harbour.db.close()


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A database with a past, and the moment that it leads up to."""
    harbour = Harbour(tmp_path_factory.mktemp("past"))
    past.write(harbour)
    harbour.db.close()
    return harbour.folder / "shoal.db", harbour.clock.present_ms


@pytest.fixture
def harbour(tmp_path: Path, written: tuple[Path, int]) -> Iterator[Harbour]:
    """A fleet with a past."""
    database, present_ms = written
    shutil.copy(database, tmp_path)
    harbour = Harbour(tmp_path)
    harbour.clock.at_ms = harbour.clock.present_ms = present_ms
    yield harbour
    harbour.db.close()
