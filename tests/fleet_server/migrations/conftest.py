from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa

from fleet_server.database import Database
from tests.fakes.postgres import postgres
from tests.fleet_server.migrations.revisions import all_tables, without_revision

BOTH = ("sqlite", pytest.param("postgresql", marks=pytest.mark.real_parts("initdb", "postgres")))
_numbers = itertools.count()


@pytest.fixture(scope="session")
def postgres_server(program: Callable[[str], Path]) -> Iterator[str]:
    """A PostgreSQL for all tests of this folder."""
    with postgres(program("initdb"), program("postgres")) as url:
        yield url


@pytest.fixture
def new_postgres(request: pytest.FixtureRequest) -> Callable[[], str]:
    """Makes an empty database of the test's own."""

    def make() -> str:
        url = sa.make_url(request.getfixturevalue("postgres_server"))
        name = f"test_{next(_numbers)}"
        admin = url.set(drivername="postgresql").render_as_string(hide_password=False)
        with psycopg.connect(admin, autocommit=True) as connection:
            connection.execute(f"create database {name}".encode())
        return url.set(database=name).render_as_string(hide_password=False)

    return make


@pytest.fixture(params=BOTH)
def new_url(request: pytest.FixtureRequest, tmp_path: Path, new_postgres: Callable[[], str]) -> Callable[[], str]:
    """Makes empty databases of one kind."""
    if request.param == "sqlite":
        return lambda: f"sqlite:///{tmp_path}/shoal{next(_numbers)}.db"
    return new_postgres


@pytest.fixture
def db(new_url: Callable[[], str]) -> Iterator[Database]:
    """An empty database, of each kind in turn."""
    database = Database(new_url())
    yield database
    database.close()


@pytest.fixture
def declared(new_url: Callable[[], str]) -> Iterator[Database]:
    """A database whose tables were made from the features' declarations, with no revision."""
    database = Database(new_url())
    all_tables().create_all(database.engine)
    yield database
    database.close()


@pytest.fixture
def unversioned(new_url: Callable[[], str]) -> Iterator[Database]:
    """A database of a server that wrote no revision down."""
    database = Database(new_url())
    without_revision(database)
    yield database
    database.close()


_ON_A_SMALL_DISK = """
import pathlib, shutil, sys
from edge_agent.contract.errors import ShoalError
from fleet_server.database import Database
from fleet_server.migrate import upgrade
from tests.fleet_server.migrations.revisions import fleet_of_one, revision_of, rows
folder, scripts, room = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), float(sys.argv[3])
file = folder / "shoal.db"
db = Database(f"sqlite:///{file}")
upgrade(db)
fleet_of_one(db)
with db.write() as connection:
    connection.exec_driver_sql("update devices set hardware = hex(zeroblob(500000))")
db.close()
filler = folder / "filler"
filler.write_bytes(bytes(shutil.disk_usage(folder).free - int(room * file.stat().st_size)))
try:
    upgrade(db, scripts=scripts)
except ShoalError as error:
    print(type(error).__name__)
filler.unlink()
print(revision_of(db))
print(rows(db, "devices"))
db.close()
print(sorted(path.name for path in folder.iterdir()))
"""


@pytest.fixture
def on_a_small_disk(tmp_path: Path, repository: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Upgrades a database where its disk has room for so many more of its size."""
    mounted = tmp_path / "small"
    mounted.mkdir()
    unshared = ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*unshared, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this machine allows no user namespaces")

    def start(scripts: Path, *, room: float) -> subprocess.CompletedProcess[str]:
        script = 'mount -t tmpfs -o size=8m tmpfs "$1"; exec "$2" -c "$3" "$1" "$4" "$5"'
        arguments = [str(mounted), sys.executable, _ON_A_SMALL_DISK, str(scripts), str(room)]
        command = [*unshared, "sh", "-c", script, "sh", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, cwd=repository)

    return start
