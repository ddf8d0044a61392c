from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import fleet_server.schedules.tables  # noqa: F401  declares the tables that create_all makes
from fleet_server.database import Database, metadata
from tests.fakes.postgres import postgres


class Clock:
    """A clock that a test moves."""

    def __init__(self, at_ms: int = 1_750_000_000_000) -> None:
        self.at_ms = at_ms

    def __call__(self) -> int:
        return self.at_ms

    def forward(self, seconds: float) -> None:
        self.at_ms += round(seconds * 1000)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/shoal.db"


@pytest.fixture
def db(database_url: str) -> Iterator[Database]:
    database = Database(database_url)
    metadata.create_all(database.engine)
    yield database
    database.close()


@pytest.fixture(scope="module")
def postgres_url(program: Callable[[str], Path]) -> Iterator[str]:
    """A PostgreSQL of the module's own."""
    with postgres(program("initdb"), program("postgres")) as url:
        yield url
