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
    """

    def __init__(self, url: str) -> None:
        self.url = sa.make_url(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self.engine = sa.create_engine(self.url, pool_pre_ping=not self.is_sqlite)
        # SQLite has one writer. Waiting for it here, in order, beats its busy handler, which starves.
        self._writer = threading.RLock()
        if self.is_sqlite:
            sa.event.listen(self.engine, "connect", _prepare_sqlite)
            sa.event.listen(self.engine, "begin", _begin_sqlite)

    @contextlib.contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """A transaction that may write: committed at the end, rolled back on an exception. Never nest them."""
        with contextlib.ExitStack() as stack:
            if self.is_sqlite:
                stack.enter_context(self._writer)
            connection = stack.enter_context(self.engine.connect())
            if self.is_sqlite:
                connection = connection.execution_options(shoal_begin="IMMEDIATE")
            with connection.begin():
                yield connection

    @contextlib.contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A transaction that only reads."""
        with self.engine.connect() as connection, connection.begin():
            yield connection

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
