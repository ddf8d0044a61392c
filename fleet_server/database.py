"""The server's database: one URL, SQLite by default or PostgreSQL, the same code for both.

Each feature declares its tables in its own ``tables.py`` on the one :data:`metadata`; services take a
:class:`sqlalchemy.Connection`, so that one transaction can span features (a message and its watermark commit together).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa

from edge_agent.contract.errors import ConfigurationError

# Names our lock among those of the programs that share a PostgreSQL: "shoal" as a number.
_RESTRUCTURE_LOCK = int.from_bytes(b"shoal", "big")

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)


class Database:
    """Connections to one database.

    Args:
        url: SQLAlchemy URL: ``sqlite:////var/lib/shoal/shoal.db`` or ``postgresql+psycopg://...``.
    Raises:
        ConfigurationError: It is no URL, or of a database whose driver is not installed.
    """

    def __init__(self, url: str) -> None:
        try:
            self.url = sa.make_url(url)
            self.is_sqlite = self.url.get_backend_name() == "sqlite"
            self.engine = sa.create_engine(self.url, pool_pre_ping=not self.is_sqlite)
        except (sa.exc.ArgumentError, sa.exc.NoSuchModuleError, ModuleNotFoundError, ValueError) as error:
            # Not the text itself: it may hold a password.
            raise ConfigurationError(
                f"the database's URL cannot be used: {error}; write sqlite:////FOLDER/shoal.db, or "
                "postgresql+psycopg://USER@HOST/DATABASE"
            ) from error
        # SQLite has one writer. Waiting for it here, in order, beats its busy handler, which starves.
        self._writer = threading.Lock()
        self._writing: int | None = None  # the thread that holds it
        if self.is_sqlite:
            sa.event.listen(self.engine, "connect", _prepare_sqlite)
            sa.event.listen(self.engine, "begin", _begin_sqlite)

    @contextlib.contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """A transaction that may write: committed at the end, rolled back on an exception. Never nest them.

        Raises:
            RuntimeError: This thread is in such a transaction already: it would wait for itself.
        """
        with contextlib.ExitStack() as stack:
            if self.is_sqlite:
                stack.enter_context(self._alone())
            connection = stack.enter_context(self.engine.connect())
            if self.is_sqlite:
                connection = connection.execution_options(shoal_begin="IMMEDIATE")
            with connection.begin():
                yield connection

    @contextlib.contextmanager
    def restructure(self) -> Iterator[sa.Connection]:
        """A transaction that changes tables: one at a time, whichever process asks for it. Never nest it.

        On SQLite foreign keys are not enforced before its end: to change a table there is to copy and drop it, and the
        drop of one that others refer to would fail, or take their rows along (sqlite.org/lang_altertable.html, 7).

        Raises:
            ConfigurationError: Rows refer to rows that are not there; nothing is changed.
        """
        with contextlib.ExitStack() as stack:
            if self.is_sqlite:
                stack.enter_context(self._alone())
            connection = stack.enter_context(self.engine.connect())
            if self.is_sqlite:
                stack.enter_context(_foreign_keys_off(connection))
                connection = connection.execution_options(shoal_begin="IMMEDIATE")
            with connection.begin():
                if not self.is_sqlite:
                    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_RESTRUCTURE_LOCK)))
                yield connection
                if self.is_sqlite:
                    _check_foreign_keys(connection)

    @contextlib.contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A transaction that only reads."""
        with self.engine.connect() as connection, connection.begin():
            yield connection

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        if self._writing == threading.get_ident():
            raise RuntimeError("a write transaction inside another: pass the connection on instead")
        with self._writer:
            self._writing = threading.get_ident()
            try:
                yield
            finally:
                self._writing = None

    @property
    def name(self) -> str:
        """How people know it: the file, or the URL without its password."""
        return self.url.database or "" if self.is_sqlite else self.url.render_as_string(hide_password=True)

    def close(self) -> None:
        """Give all connections back."""
        self.engine.dispose()


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver must not begin transactions by itself: _begin_sqlite does
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=10000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    mode = connection.get_execution_options().get("shoal_begin", "DEFERRED")
    connection.exec_driver_sql(f"BEGIN {mode}")


@contextlib.contextmanager
def _foreign_keys_off(connection: sa.Connection) -> Iterator[None]:
    # By the driver's own cursor: SQLite ignores this pragma inside a transaction, and execute() would begin one.
    cursor = connection.connection.cursor()
    cursor.execute("PRAGMA foreign_keys=OFF")
    try:
        yield
    finally:
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()


def _check_foreign_keys(connection: sa.Connection) -> None:
    for broken in connection.exec_driver_sql("PRAGMA foreign_key_check"):
        table, row, referred, _ = broken
        raise ConfigurationError(
            f"{connection.engine.url.database}: row {row} of {table} refers to no row of {referred}"
        )
