"""What every input comes to: files of rows that stay as they are for the batch, and where the next one begins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pyarrow as pa

from trainer.batch.moments import Window
from trainer.batch.plan import Piece

Say = Callable[[str], None]


class Pinned(msgspec.Struct, frozen=True, kw_only=True):
    """An input, pinned.

    Args:
        shown: What it is called in errors.
        filesystem: URI that tells the file system of the pieces.
        schema: Of the rows; None where there are none.
        watermark: What the next batch of new rows begins after.
    """

    shown: str
    filesystem: str
    pieces: tuple[Piece, ...]
    schema: pa.Schema | None
    watermark: dict[str, Any]
    where: Window | None = None
    equal: dict[str, str] = {}
    spool: str = ""
