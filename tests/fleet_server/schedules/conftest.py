from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import fleet_server.schedules.tables  # noqa: F401  declares the tables that create_all makes
from fleet_server.database import Database, metadata


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
    """A PostgreSQL of its own, on a unix socket."""
    initdb, postgres = program("initdb"), program("postgres")
    folder = Path(tempfile.mkdtemp(prefix="shoal-pg-"))
    # PostgreSQL refuses to run as root.
    user = "postgres" if os.geteuid() == 0 else None
    if user is not None:
        shutil.chown(folder, user)
    data = folder / "data"
    subprocess.run([initdb, "-D", data, "-U", "shoal", "--auth=trust", "--no-sync"], check=True, user=user, stdout=-3)
    server = subprocess.Popen(
        [postgres, "-D", data, "-k", folder, "-c", "listen_addresses=", "-F"], user=user, stdout=-3, stderr=-3
    )
    try:
        deadline = time.monotonic() + 30
        while not (folder / ".s.PGSQL.5432").exists():
            assert time.monotonic() < deadline, "PostgreSQL did not start"
            assert server.poll() is None, f"PostgreSQL ended with {server.returncode}"
            time.sleep(0.05)
        time.sleep(0.3)
        yield f"postgresql+psycopg://shoal@/postgres?host={folder}"
    finally:
        server.terminate()
        server.wait(30)
        shutil.rmtree(folder)
