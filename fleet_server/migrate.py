"""Brings a database to the tables that this code expects: forward only, in one transaction, all of it or nothing.

The revisions lie in ``migrations/versions``. Of an SQLite file a copy stays beside it, as it was before
(``shoal.db.before-REVISION``); the way back is that copy.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from edge_agent.contract.errors import ConfigurationError, StorageFull
from fleet_server.database import Database
from fleet_server.database_copy import copy_sqlite

SCRIPTS = Path(__file__).parent / "migrations"
# Not alembic's own name: another program may keep its tables, and its revision, in the same PostgreSQL database.
VERSION_TABLE = "shoal_revision"

# Alembic keeps what a running revision needs in its module; two databases of one process must take turns.
_alembic = threading.Lock()
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """One revision and what it is about."""

    revision: str
    title: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Upgrade:
    """What there is to do to a database, or what was done.

    Args:
        found: Its revision; None where it has no tables of ours.
        head: The revision that this code works with.
        steps: From the one to the other, in order.
        adopts: Its tables are those of the first revision, but were made before revisions were written down.
        copy: The SQLite file as it was before.
    """

    found: str | None
    head: str
    steps: tuple[Step, ...]
    adopts: bool = False
    copy: Path | None = None

    @property
    def needed(self) -> bool:
        """Whether there is anything to do."""
        return self.adopts or bool(self.steps)


def upgrade(db: Database, *, scripts: Path = SCRIPTS) -> Upgrade:
    """Bring a database to the newest revision; one that is there already is left alone.

    Whoever else asks for the same meanwhile, in this process or another, waits and then finds it done.

    Args:
        scripts: Folder with ``env.py`` and ``versions``.
    Raises:
        ConfigurationError: The database cannot be reached, was upgraded by a newer server, has tables that no revision
            made, or a step failed. It is as it was.
        StorageFull, StorageNotWritable: The disk refuses. The database is as it was.
    """
    with _in_words(db), db.restructure() as connection:
        todo = _look(db, connection, scripts)
        if not todo.needed:
            return todo
        # An empty one needs no copy. This transaction keeps writers out, so the copy is what the upgrade begins with.
        copy = copy_sqlite(connection, todo.head) if db.is_sqlite and todo.found else None
        try:
            if todo.adopts and todo.found:
                _run(connection, scripts, todo.found, stamp=True)
            _run(connection, scripts, todo.head)
        except sa.exc.SQLAlchemyError as error:
            came = f"{db.name}: could not be brought from {todo.found or 'nothing'} to {todo.head}, and is as it was"
            raise _kind(error)(f"{came}: {_cause(error)}") from error
    _log.info("%s: brought from %s to %s", db.name, todo.found or "nothing", todo.head)
    if copy is not None:
        _log.info("as it was before, it lies in %s", copy)
    return dataclasses.replace(todo, copy=copy)


def pending(db: Database, *, scripts: Path = SCRIPTS) -> Upgrade:
    """What :func:`upgrade` would do; nothing is changed.

    Raises:
        ConfigurationError: As :func:`upgrade`.
    """
    with _in_words(db), db.read() as connection:
        return _look(db, connection, scripts)


def _look(db: Database, connection: sa.Connection, scripts: Path) -> Upgrade:
    directory = ScriptDirectory.from_config(_config(scripts))
    chain = [Step(one.revision, one.doc) for one in directory.walk_revisions()][::-1]
    known = [step.revision for step in chain]
    heads = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE}).get_current_heads()
    if unknown := sorted(set(heads) - set(known)):
        raise ConfigurationError(
            f"{db.name}: was upgraded by a newer server: it is at revision {', '.join(unknown)}, and this server knows "
            f"{known[0]} to {known[-1]}; start that version, or go back to a copy of before (docs/operations.md)"
        )
    found = max(heads, key=known.index, default=None)
    adopts = found is None and _is_first(db, connection, scripts, known[0])
    if adopts:
        found = known[0]
    behind = 0 if found is None else known.index(found) + 1
    return Upgrade(found=found, head=known[-1], steps=tuple(chain[behind:]), adopts=adopts)


def _is_first(db: Database, connection: sa.Connection, scripts: Path, first: str) -> bool:
    """Whether these are the tables of the first revision, though nothing says so: servers once made them without one.

    Raises:
        ConfigurationError: There are tables of ours, but others than those.
    """
    actual = _shape(connection)
    if not actual:
        return False
    with contextlib.closing(Database("sqlite://")) as scratch, scratch.restructure() as other:
        _run(other, scripts, first)
        expected = _shape(other)
    if not actual.keys() & expected.keys():
        return False  # tables of another program
    for table, shape in sorted(expected.items()):
        if actual.get(table) != shape:
            raise ConfigurationError(
                f"{db.name}: has tables but no revision, and {table} is not that of revision {first}: it was made by a "
                "version that was never released; give another database"
            )
    return True


def _shape(connection: sa.Connection) -> Mapping[str, tuple[frozenset[tuple[str, bool]], frozenset[str | None]]]:
    """By table: its columns, and whether each may be NULL; the names of its keys, constraints and indexes."""
    inspector = sa.inspect(connection)
    shapes = {}
    for table in inspector.get_table_names():
        columns = frozenset((column["name"], column["nullable"]) for column in inspector.get_columns(table))
        parts: list[Any] = [inspector.get_pk_constraint(table)]
        parts += [*inspector.get_foreign_keys(table), *inspector.get_unique_constraints(table)]
        parts += inspector.get_indexes(table)
        shapes[table] = (columns, frozenset(part["name"] for part in parts))
    shapes.pop(VERSION_TABLE, None)
    return shapes


def _run(connection: sa.Connection, scripts: Path, revision: str, *, stamp: bool = False) -> None:
    config = _config(scripts)
    config.attributes["connection"] = connection
    with _alembic:
        (command.stamp if stamp else command.upgrade)(config, revision)


def _config(scripts: Path) -> Config:
    config = Config()
    config.set_main_option("script_location", str(scripts).replace("%", "%%"))  # it interpolates
    return config


@contextlib.contextmanager
def _in_words(db: Database) -> Iterator[None]:
    try:
        yield
    except sa.exc.OperationalError as error:  # not reached, locked, no database
        raise _kind(error)(f"{db.name}: {_cause(error)}") from error


def _kind(error: sa.exc.SQLAlchemyError) -> type[StorageFull | ConfigurationError]:
    return StorageFull if "full" in _cause(error) else ConfigurationError


def _cause(error: sa.exc.SQLAlchemyError) -> str:
    """What the database itself says, in one line."""
    return " ".join(str(getattr(error, "orig", None) or error).split())
