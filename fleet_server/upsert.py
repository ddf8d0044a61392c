"""Insert a row or update the one that is there: one statement, the same on SQLite and PostgreSQL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite


def upsert(
    connection: sa.Connection,
    table: sa.Table,
    keys: Mapping[str, Any],
    values: Mapping[str, Any],
    *,
    first: Mapping[str, Any] | None = None,
) -> None:
    """Make the row with primary key ``keys`` hold ``values``.

    Args:
        first: Columns that only a new row gets; an existing one keeps its own.
    """
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    statement = dialect.insert(table).values({**(first or {}), **keys, **values})
    if values:
        connection.execute(statement.on_conflict_do_update(index_elements=list(keys), set_=dict(values)))
    else:
        connection.execute(statement.on_conflict_do_nothing(index_elements=list(keys)))
