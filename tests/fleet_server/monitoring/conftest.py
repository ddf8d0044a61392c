from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet_server.database import Database, metadata
from tests.fleet_server.monitoring.fleet import Fleet


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path}/shoal.db")
    metadata.create_all(database.engine)
    yield database
    database.close()


@pytest.fixture
def fleet(db: Database) -> Fleet:
    return Fleet(db)
