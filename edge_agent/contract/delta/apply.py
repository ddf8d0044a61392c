"""Makes a file of another and a delta, as a stream: a few megabytes of memory, whatever the files' size."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from typing import BinaryIO

import numpy as np

from edge_agent.contract.delta.chunks import read_bytes, read_tensor
from edge_agent.contract.delta.form import Head, Segment, SegmentKind, dictionary_of, read_head
from edge_agent.contract.delta.reading import DeltaReader
from edge_agent.contract.errors import DeltaUnusable

# More than a chunk takes in memory.
_FREED_BYTES = 2 << 20


def apply_delta(
    delta: BinaryIO,
    base: BinaryIO,
    target: BinaryIO,
    *,
    base_sha256: str,
    sha256: str,
    size_bytes: int,
    between_chunks: Callable[[], None] | None = None,
) -> None:
    """Write the file that a delta makes of ``base``.

    Args:
        delta: Read from its beginning to its end, once.
        base: Can be sought in.
        target: Written in order; what it holds is to be thrown away where this raises.
        base_sha256: Digest of ``base``, which the caller has checked; ``sha256``, ``size_bytes``: of the file wanted.
        between_chunks: Called again and again meanwhile.
    Raises:
        DeltaUnusable: It is damaged, is about other files, or its result is not the file wanted.
    """
    # glibc gives what a chunk has freed back to the system, to be faulted in again for the next: 40 % of the time. Once
    # so much was freed in one piece, it keeps as much; this piece is never touched, so that it takes no memory itself.
    np.empty(_FREED_BYTES, np.uint8)
    reader = DeltaReader(delta)
    head = read_head(reader)
    if (head.base_sha256, head.sha256, head.size_bytes) != (base_sha256, sha256, size_bytes):
        raise DeltaUnusable(f"makes {head.sha256[:12]} of {head.base_sha256[:12]}, which is not what was asked for")
    base_bytes = base.seek(0, os.SEEK_END)
    if base_bytes != head.base_bytes:  # else the head's offsets may be such as no file has
        raise DeltaUnusable(f"is about a file of {head.base_bytes} bytes, the one here has {base_bytes}")
    digest = hashlib.sha256()
    for segment in head.segments:
        most = segment.chunk_bytes
        for at in range(0, segment.length, most):
            size = min(most, segment.length - at)
            made = _chunk(reader, base, segment, at, size)
            target.write(made)
            digest.update(made)
            if between_chunks is not None:
                between_chunks()
    _check_end(reader, digest.hexdigest(), head)


def region(base: BinaryIO, offset: int, length: int) -> bytes:
    """Bytes of the base.

    Raises:
        DeltaUnusable: It is shorter than the delta was made for.
    """
    if not length:
        return b""
    base.seek(offset)
    data = base.read(length)
    if len(data) != length:
        raise DeltaUnusable("the file here is shorter than the one it was made for")
    return data


def same_place(base: BinaryIO, segment: Segment, at: int, size: int) -> bytes:
    """What the base has where a chunk lies, or nothing where it has not all of it."""
    return region(base, segment.base_offset + at, size) if at + size <= segment.base_length else b""


def _chunk(reader: DeltaReader, base: BinaryIO, segment: Segment, at: int, size: int) -> bytes | bytearray | memoryview:
    same = same_place(base, segment, at, size)
    if segment.kind is SegmentKind.BYTES:
        return read_bytes(reader, region(base, *dictionary_of(segment, at)), same, size)
    return read_tensor(reader, same, segment, size)


def _check_end(reader: DeltaReader, made: str, head: Head) -> None:
    reader.end()
    if made != head.sha256:
        raise DeltaUnusable(f"its result has SHA-256 {made[:12]} instead of {head.sha256[:12]}")
