"""Databases and revisions of a test's own: Shoal's real ones, and a next one that does not exist yet."""

from __future__ import annotations

import importlib
import shutil
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from fleet_server.database import Database, metadata
from fleet_server.migrate import SCRIPTS, VERSION_TABLE


def all_tables() -> sa.MetaData:
    """What the features declare, all of them."""
    root = SCRIPTS.parent
    for file in sorted(root.glob("*/tables.py")):
        importlib.import_module(f"{root.name}.{file.parent.name}.tables")
    return metadata


FIRST = "0001"
# The newest revision there is, and the one that tests put behind it.
HEAD = max(file.name[:4] for file in (SCRIPTS / "versions").glob("[0-9]*_*.py"))
NEXT = f"{int(HEAD) + 1:04}"


def with_next(folder: Path, body: str) -> Path:
    """The revisions with a next one behind them, whose ``upgrade`` has this body."""
    scripts = folder / "migrations"
    if not scripts.exists():
        shutil.copytree(SCRIPTS, scripts, ignore=shutil.ignore_patterns("__pycache__"))
    head = '"""The next one."""\nimport os, signal, time\nimport sqlalchemy as sa\nfrom alembic import op\n'
    names = f'revision = "{NEXT}"\ndown_revision = "{HEAD}"\n'
    body = textwrap.indent(textwrap.dedent(body), "    ")
    (scripts / "versions" / f"{NEXT}_next.py").write_text(f"{head}{names}def upgrade():\n{body}\n")
    return scripts


def without_revision(db: Database) -> None:
    """Make the tables of the first version, as servers did before they wrote a revision down."""
    upgrade_to_first = Config()
    upgrade_to_first.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))
    with db.restructure() as connection:
        upgrade_to_first.attributes["connection"] = connection
        command.upgrade(upgrade_to_first, FIRST)
        connection.execute(sa.text(f"drop table {VERSION_TABLE}"))


def revision_of(db: Database) -> str | None:
    """What the database says of itself."""
    with db.read() as connection:
        if not sa.inspect(connection).has_table(VERSION_TABLE):
            return None
        return connection.execute(sa.text(f"select version_num from {VERSION_TABLE}")).scalar_one_or_none()  # noqa: S608


def rows(db: Database, table: str) -> int:
    """How many rows a table has."""
    with db.read() as connection:
        return connection.execute(sa.select(sa.func.count()).select_from(sa.table(table))).scalar_one()


def structure(db: Database) -> Mapping[str, Any]:
    """By table, all that a database can tell of it; the order of columns does not count."""
    found: dict[str, Any] = {}
    with db.read() as connection:
        inspector = sa.inspect(connection)
        for table in inspector.get_table_names():
            if table == VERSION_TABLE:
                continue
            columns = {
                column["name"]: (str(column["type"]), column["nullable"], column["default"])
                for column in inspector.get_columns(table)
            }
            found[table] = {
                "columns": columns,
                "primary key": inspector.get_pk_constraint(table),
                "foreign keys": _by_name(inspector.get_foreign_keys(table)),
                "unique": _by_name(inspector.get_unique_constraints(table)),
                "indexes": _by_name(inspector.get_indexes(table)),
                "checks": _by_name(inspector.get_check_constraints(table)),
            }
    return found


def _by_name(parts: Any) -> dict[str, Any]:
    return {part["name"]: _plain(part) for part in parts}


def _plain(value: Any) -> Any:
    """Itself, but the condition of a partial index as text: an SQL expression compares by identity."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return str(value) if isinstance(value, sa.ClauseElement) else value


def fleet_of_one(db: Database) -> None:
    """Rows in tables that refer to each other, such as an upgrade must not lose."""
    hardware = {"architecture": "aarch64", "system": "Linux"}
    device = {"name": "d0", "enrolled_at_ms": 1, "hardware": hardware, "online": False, "api": "http"}
    wanted = {"device": "d0", "model": "digits", "version": "1", "package": "abc", "release": 7, "rollout": "r-1"}
    run = {"id": "run-1", "logical_time_ms": 1, "model": "digits", "trigger": "harm", "reason": "", "seed": 1}
    tables = all_tables().tables
    with db.write() as connection:
        connection.execute(sa.insert(tables["devices"]).values(**device, desired_revision=3, reported_revision=2))
        connection.execute(sa.insert(tables["desired_models"]).values(**wanted))
        connection.execute(sa.insert(tables["runs"]).values(**run, state="queued", created_at_ms=1))
