"""Upgrades through the real programs: what they say, and what happens when several start at once."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from fleet_server.database import Database
from fleet_server.migrate import upgrade
from tests.fleet_server.migrations.manual import go_back
from tests.fleet_server.migrations.revisions import HEAD, NEXT, fleet_of_one, revision_of, with_next, without_revision
from tests.fleet_server.running_server import prepared, server, shoal

SLOW = """
    op.add_column("devices", sa.Column("site", sa.Text))
    time.sleep(1)
"""


@pytest.fixture
def data(tmp_path: Path, keys: Path) -> Path:
    return prepared(tmp_path / "data", keys)


def names(client: httpx.Client) -> list[str]:
    return sorted(device["name"] for device in client.get("/api/v1/devices").json())


def at_revision_9999(url: str) -> None:
    db = Database(url)
    upgrade(db)
    with db.write() as connection:
        connection.execute(sa.text("update shoal_revision set version_num = '9999'"))
    db.close()


@pytest.mark.parametrize(
    "command", [("server",), ("server", "migrate"), ("server", "migrate", "--dry-run")], ids=" ".join
)
def test_a_newer_servers_database_is_refused_in_one_line(command: tuple[str, ...], data: Path) -> None:
    at_revision_9999(f"sqlite:///{data}/shoal.db")
    ports = ("--port", "0", "--broker-port", "0") if len(command) == 1 else ()
    done = shoal(*command, "--data", data, *ports)
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "INFO" not in line]
    assert line.startswith(f"shoal: {data}/shoal.db: was upgraded by a newer server: it is at revision 9999, and this")
    assert line.endswith("start that version, or go back to a copy of before (docs/operations.md)")
    assert not [*data.glob("*before*")]
    db = Database(f"sqlite:///{data}/shoal.db")
    assert revision_of(db) == "9999"
    db.close()


def test_a_database_from_before_revisions_is_looked_at_upgraded_served_and_restored(
    data: Path, repository: Path
) -> None:
    url = f"sqlite:///{data}/shoal.db"
    dry, real = ("server", "migrate", "--data", data, "--dry-run"), ("server", "migrate", "--data", data)
    for command in (dry, real):
        assert "not there yet; the server makes it at its first start" in shoal(*command).stdout
    assert not (data / "shoal.db").exists()
    db = Database(url)
    without_revision(db)
    fleet_of_one(db)
    assert f"is at revision 0001, though it did not say so; the server wants {HEAD}" in shoal(*dry).stdout
    assert revision_of(db) is None
    db.close()
    done = shoal(*real)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"as it was before: {data}/shoal.db.before-{HEAD}" in done.stdout
    assert "nothing to do" in shoal(*dry).stdout
    with server(data) as running, running.client() as client:
        assert names(client) == ["d0"]
        assert "nothing to do" in shoal(*dry).stdout
        kept_out = shoal(*real)
        assert (kept_out.returncode, "another server works in this folder" in kept_out.stderr) == (2, True)
        assert "brought from" not in running.log
        claim = client.post("/api/v1/claims", json={}).json()["claim"]
        hardware = {"architecture": "x86_64", "system": "Linux"}
        client.post("/api/v1/enrol", json={"claim": claim, "device": "d1", "hardware": hardware})
        assert names(client) == ["d0", "d1"]
        running.process.kill()
    assert [path.name for path in data.glob("shoal.db.*before*")] == [f"shoal.db.before-{HEAD}"]
    go_back(repository, data, HEAD)
    with server(data) as running, running.client() as client:
        assert names(client) == ["d0"]


@pytest.mark.real_parts("initdb", "postgres")
def test_postgresql_is_upgraded_from_the_command_line(new_postgres: Callable[[], str], tmp_path: Path) -> None:
    settings = tmp_path / "config.toml"
    settings.write_text(f'data = "{tmp_path}/data"\ndatabase = "{new_postgres()}"\n')
    dry = shoal("server", "migrate", "--config", settings, "--dry-run").stdout.splitlines()
    assert dry[0].endswith(f"is empty; the server wants {HEAD}")
    assert dry[1] == "  0001  The tables of the first version."
    assert f"was empty; now {HEAD}" in shoal("server", "migrate", "--config", settings).stdout
    assert "nothing to do" in shoal("server", "migrate", "--config", settings).stdout


def start(url: str, scripts: str, barrier: Any, found: Any) -> None:
    """One server's upgrade."""
    db = Database(url)
    barrier.wait(60)
    done = upgrade(db, scripts=Path(scripts))
    db.close()
    found.put((done.found, done.needed))


def test_of_servers_that_start_at_once_one_upgrades_and_the_other_waits_for_it(db: Database, tmp_path: Path) -> None:
    if db.is_sqlite:
        upgrade(db)  # a data folder has one server, so that two never make the file; on PostgreSQL two make the tables
    before = revision_of(db)
    context = multiprocessing.get_context("spawn")
    barrier, found = context.Barrier(2), context.Queue()
    arguments = (db.url.render_as_string(hide_password=False), str(with_next(tmp_path, SLOW)), barrier, found)
    servers = [context.Process(target=start, args=arguments) for _ in range(2)]
    for one in servers:
        one.start()
    results = [found.get(timeout=60) for _ in servers]
    for one in servers:
        one.join(60)
        assert one.exitcode == 0
    assert set(results) == {(before, True), (NEXT, False)}
    assert revision_of(db) == NEXT
