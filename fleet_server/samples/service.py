"""What is in the lake: versions and numbers of rows."""

from __future__ import annotations

from collections.abc import Mapping

import sqlalchemy as sa
from deltalake import DeltaTable
from deltalake.exceptions import TableNotFoundError

from edge_agent.contract.lake import LABELS, SAMPLES
from fleet_server.database import Database
from fleet_server.samples.tables import lake_spool


class SampleService:
    """Reads the lake; ``uri`` and ``storage`` as for :class:`~fleet_server.samples.lake_writer.LakeWriter`."""

    def __init__(self, db: Database, uri: str, *, storage: Mapping[str, str] | None = None) -> None:
        self._db, self._uri, self._storage = db, uri.rstrip("/"), dict(storage or {})

    def versions(self) -> dict[str, int | None]:
        """The newest Delta version of ``samples`` and of ``labels``; None where the table does not exist yet."""
        found = {name: self._open(name) for name in (SAMPLES, LABELS)}
        return {name: table.version() if table is not None else None for name, table in found.items()}

    def counts(self) -> dict[str, int]:
        """Rows in the lake, by table (read from the log's statistics, not from the files)."""
        found = {name: self._open(name) for name in (SAMPLES, LABELS)}
        return {name: table.count() if table is not None else 0 for name, table in found.items()}

    def spooled(self) -> dict[str, int]:
        """Rows that wait before the lake, by table."""
        by_table = sa.select(lake_spool.c.lake_table, sa.func.count()).group_by(lake_spool.c.lake_table)
        with self._db.read() as connection:
            found = {name: int(count) for name, count in connection.execute(by_table)}
        return {name: found.get(name, 0) for name in (SAMPLES, LABELS)}

    def _open(self, name: str) -> DeltaTable | None:
        try:
            return DeltaTable(f"{self._uri}/{name}", storage_options=self._storage or None)
        except TableNotFoundError:
            return None
