"""What a batch will answer, written down before the first row is: who resumes it answers the same rows, and no others.

A plan cuts the input into parts of whole row groups. A part is answered into a file of its own, and then marked as
done; a run that was killed goes on with the parts that have no mark.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from edge_agent.contract.batch import BatchJob
from trainer.batch.moments import Window

# Rows of a part, where row groups are smaller: a file of answers of a few MiB, and seconds of work to lose by a kill.
PART_ROWS = 262_144
_LEAST_ROWS = 16_384
# So many parts a worker, that the last one to end is not waited for long.
_PARTS_PER_WORKER = 4


class Piece(msgspec.Struct, frozen=True, kw_only=True):
    """A Parquet file of the input.

    Args:
        path: Within the file system of ``Plan.files``.
        shown: As a person knows it; what the table of rejected rows says.
        first_row: Number of its first row in what ``shown`` names.
        constants: Columns that the file itself lacks: partition values of a Delta table.
        without: Files whose rows, by their keys, are not to be answered though they are in this one.
    """

    path: str
    shown: str
    groups: tuple[int, ...]  # rows of each row group
    size_bytes: int
    first_row: int = 0
    constants: dict[str, Any] = {}
    without: tuple[str, ...] = ()


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """Consecutive row groups of one file.

    Args:
        file: Index of its piece.
        rows: In all.
        first_row: Number of its first row within the file.
    """

    index: int
    file: int
    first_group: int
    end_group: int
    rows: int
    first_row: int


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The input of one batch, pinned.

    Args:
        job: Digest of the job's content, but for its resources.
        filesystem: URI that tells the file system of the pieces' paths.
        watermark: What the next batch begins after.
        where: Rows whose time lies in it are answered, the others are not.
        equal: Columns that must have this value.
        after: Number of the batch before.
        schema: Of the rows, as Arrow writes it, in base64.
        spool: Folder of pieces that were made for this batch; goes with it.
    """

    job: str
    logical_time: str
    package: str
    model: str
    version: str
    filesystem: str
    pieces: tuple[Piece, ...]
    parts: tuple[Part, ...]
    watermark: dict[str, Any]
    after: int
    where: Window | None = None
    equal: dict[str, str] = {}
    schema: str = ""
    spool: str = ""

    @property
    def id(self) -> str:
        """Its name, of its content."""
        return hashlib.sha256(msgspec.json.encode(self, order="deterministic")).hexdigest()[:16]

    @property
    def rows(self) -> int:
        """Rows to read; a filter leaves fewer."""
        return sum(part.rows for part in self.parts)


class PartDone(msgspec.Struct, frozen=True, kw_only=True):
    """The mark of a part that is answered.

    Args:
        file: Name of its answers within the staged data; None where every row was left out or set aside.
        keys: Smallest and largest key, as the table's statistics.
        rejected_file: Name of the rows set aside.
        noted: Rows let through though they broke a rule, by rule and policy (``range clip``).
    """

    index: int
    rows: int
    rejected: int
    file: str | None = None
    size_bytes: int = 0
    keys: tuple[str, str] | None = None
    rejected_file: str | None = None
    rejected_bytes: int = 0
    complaint: str = ""
    noted: dict[str, int] = {}


def job_digest(job: BatchJob) -> str:
    """SHA-256 of what a job asks for: the same wherever and with however many workers it runs."""
    content = msgspec.to_builtins(job)
    content.pop("resources", None)
    content.pop("replace", None)
    return hashlib.sha256(msgspec.json.encode(content, order="deterministic")).hexdigest()


def cut(pieces: Sequence[Piece], workers: int) -> tuple[Part, ...]:
    """Parts of about equal size; a part never spans two files, and never cuts a row group."""
    total = sum(sum(piece.groups) for piece in pieces)
    wanted = min(PART_ROWS, max(_LEAST_ROWS, -(-total // (_PARTS_PER_WORKER * workers))))
    parts: list[Part] = []
    for number, piece in enumerate(pieces):
        for first, end, first_row, rows in _ranges(piece.groups, wanted):
            parts.append(
                Part(index=len(parts), file=number, first_group=first, end_group=end, rows=rows, first_row=first_row)
            )
    return tuple(parts)


def _ranges(groups: Iterable[int], wanted: int) -> Iterable[tuple[int, int, int, int]]:
    first, first_row, rows, at = 0, 0, 0, 0
    for at, group in enumerate(groups, start=1):
        rows += group
        if rows >= wanted:
            yield first, at, first_row, rows
            first, first_row, rows = at, first_row + rows, 0
    if rows:
        yield first, at, first_row, rows
