"""Delta tables as input, the lake's samples among them: a version's files, or the rows that came since another.

New rows are told by the table's log: files that a commit added to the data. A file that was only rewritten (compaction
says ``dataChange: false``) is none. A commit that replaces files (an update, a deletion) writes rows again that were
there before; those are told by their keys, of the files that it took away (Delta protocol, "Add File and Remove File").
"""

from __future__ import annotations

import datetime as dt
import urllib.parse
from typing import Any

import msgspec
import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, TableNotFoundError

from edge_agent.contract.batch import DeltaInput, LakeInput, RowChoice
from edge_agent.contract.lake import SAMPLES
from trainer.batch.errors import InputUnreadable
from trainer.batch.inputs.parquet import read_footer, window_of
from trainer.batch.inputs.pinned import Pinned
from trainer.batch.moments import parse
from trainer.batch.plan import Piece
from trainer.batch.storage import Storage
from trainer.data.tensors import without_views

_READ_HERE = {"timestampNtz", "vacuumProtocolCheck", "v2Checkpoint"}


class _File(msgspec.Struct):
    """An ``add`` or ``remove`` of the log."""

    path: str
    partitionValues: dict[str, str | None] | None = None  # noqa: N815 - the protocol's own names
    dataChange: bool = True  # noqa: N815


class _Action(msgspec.Struct):
    add: _File | None = None
    remove: _File | None = None


class _Added(msgspec.Struct):
    constants: dict[str, str | None]
    without: tuple[str, ...] = ()


def pin_lake(source: LakeInput, logical_time: str, since: dict[str, Any], model: str) -> Pinned:
    """The samples of one model; see :func:`pin_delta`."""
    if source.path is None:
        raise InputUnreadable('input of kind "lake": give `path`, the lake\'s folder or URI')
    table = DeltaInput(
        path=f"{source.path.rstrip('/')}/{SAMPLES}",
        version=source.version,
        rows=source.rows,
        time=source.time,
        window_s=source.window_s,
    )
    return msgspec.structs.replace(pin_delta(table, logical_time, since), equal={"model": model})


def pin_delta(source: DeltaInput, logical_time: str, since: dict[str, Any]) -> Pinned:
    """The files of a version, or of what came since the last batch's version.

    Raises:
        InputUnreadable: There is no such table or version, its log was cleaned up meanwhile, or it needs what this
            reader does not have.
    """
    table = _open(source, logical_time)
    version, folder = table.version(), Storage(source.path)
    identity = str(table.metadata().id)
    is_known = since.get("table") == identity and source.rows is RowChoice.NEW
    files = _added_since(folder, int(since["version"]), version) if is_known else _files_of(table)
    pieces = []
    for path, added in sorted(files.items()):
        info = folder.fs.get_file_info(folder.path(path))
        try:
            piece, _ = read_footer(folder.fs, info)
        except InputUnreadable as error:
            raise InputUnreadable(
                f'{source.path} at version {version}: {error}. Was it removed by a vacuum? Set rows = "all" once, or '
                "name a newer version"
            ) from error
        without = tuple(folder.path(name) for name in added.without)
        pieces.append(
            Piece(
                path=piece.path,
                shown=f"{source.path}@{version}/{path}",
                groups=piece.groups,
                size_bytes=piece.size_bytes,
                constants=added.constants,
                without=without,
            )
        )
    return Pinned(
        shown=f"{source.path} at version {version}",
        filesystem=source.path,
        pieces=tuple(pieces),
        schema=without_views(pa.schema(table.schema().to_arrow())),
        watermark={"table": identity, "version": version},
        where=window_of(source, logical_time),
    )


def _open(source: DeltaInput, logical_time: str) -> DeltaTable:
    try:
        table = DeltaTable(source.path, version=source.version)
        if source.as_of and source.version is None:
            table.load_as_version(min(parse(logical_time), dt.datetime.now(dt.UTC)))
    except TableNotFoundError as error:
        raise InputUnreadable(f"{source.path}: there is no Delta table") from error
    except (DeltaError, OSError, ValueError) as error:
        at = "" if source.version is None else f" at version {source.version}"
        raise InputUnreadable(
            f"{source.path}{at}: cannot be read: {error}", retry=isinstance(error, OSError)
        ) from error
    features = set(table.protocol().reader_features or ())
    if unknown := sorted(str(one) for one in features - _READ_HERE):
        raise InputUnreadable(
            f"{source.path}: uses {', '.join(unknown)}, which cannot be read here; write a copy of the table without"
        )
    return table


def _files_of(table: DeltaTable) -> dict[str, _Added]:
    """All files of the table's version."""
    actions = pa.table(table.get_add_actions(flatten=True))
    marks = [name for name in actions.column_names if name.startswith("partition.")]
    found = {}
    for row in actions.select(["path", *marks]).to_pylist():
        constants = {name.removeprefix("partition."): _text(row[name]) for name in marks}
        found[urllib.parse.unquote(row["path"])] = _Added(constants)
    return found


def _added_since(folder: Storage, since: int, version: int) -> dict[str, _Added]:
    """Files with rows that were not in the table at version ``since``."""
    pending: dict[str, _Added] = {}
    for number in range(since + 1, version + 1):
        data = folder.read(f"_delta_log/{number:020d}.json")
        if data is None:
            raise InputUnreadable(
                f"{folder.uri}: version {number} is gone from the table's log, so that new rows since version {since} "
                'cannot be told; set rows = "all" once'
            )
        actions = [msgspec.json.decode(line, type=_Action) for line in data.splitlines() if line.strip()]
        before: list[str] = []
        for removed in (one.remove for one in actions if one.remove is not None and one.remove.dataChange):
            path = urllib.parse.unquote(removed.path)
            dropped = pending.pop(path, None)
            before += [path] if dropped is None else dropped.without
        for added in (one.add for one in actions if one.add is not None and one.add.dataChange):
            constants = dict(added.partitionValues or {})
            pending[urllib.parse.unquote(added.path)] = _Added(constants, tuple(before))
    return pending


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
