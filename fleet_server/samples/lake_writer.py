"""Moves spooled rows into the Delta tables, each exactly once, through crashes at any point.

Three steps, each safe to repeat: give rows a batch number (a transaction of the database: the batch never changes
again); append the batch with its number as a Delta application transaction (Delta protocol, "Transaction Identifiers");
delete it from the spool. Whoever finds a numbered batch asks the lake whether it is in there already.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Mapping
from typing import Any

import msgspec
import pyarrow as pa
import sqlalchemy as sa
from deltalake import CommitProperties, DeltaTable, Transaction, WriterProperties, write_deltalake
from deltalake.exceptions import DeltaError, TableNotFoundError

from edge_agent.contract.errors import ConfigurationError
from edge_agent.contract.lake import (
    LABEL_COLUMNS,
    LABELS,
    LOG_RETENTION,
    ROW_GROUP_ROWS,
    SAMPLE_COLUMNS,
    SAMPLES,
)
from fleet_server.database import Database
from fleet_server.samples.tables import lake_batches, lake_spool
from fleet_server.upsert import upsert

_log = logging.getLogger(__name__)

_ARROW: Mapping[str, pa.DataType] = {
    "string": pa.string(),
    "int64": pa.int64(),
    "float64": pa.float64(),
    "binary": pa.binary(),
}
SCHEMAS: Mapping[str, pa.Schema] = {
    table: pa.schema([pa.field(name, _ARROW[kind]) for name, kind in columns.items()])
    for table, columns in ((SAMPLES, SAMPLE_COLUMNS), (LABELS, LABEL_COLUMNS))
}
_PARTITIONS: Mapping[str, list[str]] = {SAMPLES: ["day"], LABELS: []}
_BATCH_ROWS = 2000
_APP = "shoal"
_LOG = "delta.logRetentionDuration"


class LakeWriter:
    """Appends to the lake; one per lake.

    Args:
        uri: The lake: a folder, or any URI that ``deltalake`` understands; a table is a folder in it.
        storage: Options for object storage (keys, endpoint), as ``deltalake`` takes them.
    """

    def __init__(self, db: Database, uri: str, *, storage: Mapping[str, str] | None = None) -> None:
        self._db, self._uri, self._storage = db, uri.rstrip("/"), dict(storage or {})
        self._lock = threading.Lock()  # two batches at once would only fight for the same commit

    def prepare(self) -> None:
        """Make the tables that are not there yet, so that readers find them, empty.

        Raises:
            ConfigurationError: The lake cannot be reached or written to.
        """
        for table, schema in SCHEMAS.items():
            try:
                DeltaTable.create(
                    self.path(table),
                    schema=schema,
                    mode="ignore",
                    partition_by=_PARTITIONS[table] or None,
                    configuration={_LOG: LOG_RETENTION},
                    storage_options=self._storage or None,
                )
            except (DeltaError, OSError) as error:
                said = " ".join(str(error).split())[:300]
                raise ConfigurationError(f"{self.path(table)}: the lake cannot be used: {said}") from error

    def path(self, table: str) -> str:
        """Where a table lies."""
        return f"{self._uri}/{table}"

    def flush(self) -> int:
        """Move everything that is spooled.

        Returns:
            How many rows.
        Raises:
            deltalake.exceptions.DeltaError, OSError: The lake refuses; the rows stay in the spool.
        """
        moved = 0
        with self._lock:
            for table in SCHEMAS:
                while rows := self._flush_batch(table):
                    moved += rows
        return moved

    def compact(self) -> None:
        """Merge small files into ones with small row groups; old versions stay readable, their log too."""
        properties = WriterProperties(max_row_group_size=ROW_GROUP_ROWS, compression="SNAPPY")
        with self._lock:
            self.prepare()
            for name in SCHEMAS:
                table = self._open(name)
                if table.metadata().configuration.get(_LOG) != LOG_RETENTION:  # an older lake
                    table.alter.set_table_properties({_LOG: LOG_RETENTION})
                table.optimize.compact(writer_properties=properties)

    def _flush_batch(self, table: str) -> int:
        waiting = lake_spool.c.lake_table == table
        with self._db.read() as connection:
            if connection.execute(sa.select(lake_spool.c.id).where(waiting).limit(1)).first() is None:
                return 0
            app_id = connection.execute(
                sa.select(lake_batches.c.app_id).where(lake_batches.c.lake_table == table)
            ).scalar()
        in_lake = self._last_in_lake(table, app_id) if app_id is not None else 0
        number, named = self._number_batch(table, in_lake)
        this = waiting & (lake_spool.c.batch == number)
        with self._db.read() as connection:
            packed = (
                connection.execute(sa.select(lake_spool.c.row).where(this).order_by(lake_spool.c.id)).scalars().all()
            )
        if named != app_id or in_lake < number:
            self._append(table, [msgspec.msgpack.decode(row) for row in packed], named, number)
        else:
            _log.info("batch %d of %s is in the lake already: a crash came between", number, table)
        with self._db.write() as connection:
            connection.execute(sa.delete(lake_spool).where(this))
        return len(packed)

    def _number_batch(self, table: str, in_lake: int) -> tuple[int, str]:
        """The oldest batch under way, or a new one; and the name under which it goes into the lake.

        Args:
            in_lake: The newest batch that the lake has from us. Beyond our own count it means that the database went
                back in time (a backup was put back): under the old name new rows would pass for those of then, and be
                dropped. So they go on under a new one.
        """
        with self._db.write() as connection:
            upsert(connection, lake_batches, {"lake_table": table}, {}, first={"app_id": uuid.uuid4().hex, "last": 0})
            ours = lake_batches.c.lake_table == table
            state = connection.execute(sa.select(lake_batches).where(ours).with_for_update()).one()
            waiting = lake_spool.c.lake_table == table
            oldest = connection.execute(sa.select(sa.func.min(lake_spool.c.batch)).where(waiting)).scalar()
            if oldest is not None:
                return int(oldest), state.app_id
            app_id, number = state.app_id, state.last + 1
            if in_lake > state.last:
                app_id, number = uuid.uuid4().hex, 1
                _log.warning("%s: the lake has batches that this database has forgotten; a backup was put back", table)
            newest = sa.select(lake_spool.c.id).where(waiting).order_by(lake_spool.c.id).limit(_BATCH_ROWS)
            connection.execute(sa.update(lake_spool).where(lake_spool.c.id.in_(newest)).values(batch=number))
            connection.execute(sa.update(lake_batches).where(ours).values(app_id=app_id, last=number))
            return number, app_id

    def _append(self, table: str, rows: list[dict[str, Any]], app_id: str, number: int) -> None:
        write_deltalake(
            self.path(table),
            pa.Table.from_pylist(rows, schema=SCHEMAS[table]),
            mode="append",
            partition_by=_PARTITIONS[table] or None,
            storage_options=self._storage or None,
            commit_properties=CommitProperties(
                app_transactions=[Transaction(app_id=f"{_APP}-{app_id}", version=number)]
            ),
        )

    def _last_in_lake(self, table: str, app_id: str) -> int:
        try:
            return self._open(table).transaction_version(f"{_APP}-{app_id}") or 0
        except TableNotFoundError:
            return 0

    def _open(self, table: str) -> DeltaTable:
        return DeltaTable(self.path(table), storage_options=self._storage or None)
