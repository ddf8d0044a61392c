"""Alembic's way in: runs revisions on the connection that ``fleet_server.migrate`` gives, inside its transaction."""

from __future__ import annotations

from alembic import context

from fleet_server.migrate import VERSION_TABLE

context.configure(
    connection=context.config.attributes["connection"],
    version_table=VERSION_TABLE,
    # True of SQLite too: Database begins transactions itself, where its driver would commit before a CREATE TABLE.
    transactional_ddl=True,
)
context.run_migrations()
