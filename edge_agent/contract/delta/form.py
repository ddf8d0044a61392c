"""The head of a delta: which file it makes of which, and the segments of that file, in order."""

from __future__ import annotations

import enum
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import zstandard
from numpy.typing import NDArray

from edge_agent.contract.delta.reading import DeltaReader
from edge_agent.contract.errors import DeltaUnusable
from edge_agent.contract.stored_tensors import StoredType

MAGIC = b"SHOALDLT"
VERSION = 1
# A chunk's temporaries stay in the processor's cache: to sort twice as many takes five times as long (measured), and
# makes the delta no smaller.
CHUNK_ELEMENTS = 1 << 15
CHUNK_BYTES = 1 << 18
DICTIONARY_BEFORE, DICTIONARY_AFTER = 3 << 17, 5 << 17
MAX_SEGMENTS = 1 << 16

_HEAD = struct.Struct("<8sHHIQQ32s32sI")
_SEGMENT_BYTES = 30


class SegmentKind(enum.IntEnum):
    """What the bytes of a segment are."""

    BYTES = 0
    TENSOR = 1
    STEPS = 2


class Method(enum.IntEnum):
    """How a chunk is made."""

    SAME = 0
    SUBTRACT = 1
    SUBTRACT_GROUPED = 2
    XOR = 3
    WHOLE = 4
    CODES = 5
    BYTES = 6


class PlaneForm(enum.IntEnum):
    """How a plane of bytes is written."""

    CONSTANT = 0
    RAW = 1
    ZSTD = 2
    PACKED_1 = 3
    PACKED_2 = 4
    PACKED_4 = 5


ELEMENTS: tuple[StoredType, ...] = (
    StoredType.UINT8, StoredType.INT8, StoredType.FP16, StoredType.BF16, StoredType.FP32, StoredType.INT32,
    StoredType.INT64,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A run of bytes of the target; they follow one another.

    Args:
        length: Bytes of the target.
        base_offset, base_length: Where the base has what they are made of; of a tensor as many bytes, or none: then it
            travels whole.
        step: Of ``STEPS`` alone: each element is ``base + fp32(step * code)``.
    """

    kind: SegmentKind
    element: StoredType = StoredType.UINT8
    length: int
    base_offset: int = 0
    base_length: int = 0
    step: float = 0.0

    @property
    def chunk_bytes(self) -> int:
        """Most bytes of the target that one chunk makes."""
        return CHUNK_BYTES if self.kind is SegmentKind.BYTES else CHUNK_ELEMENTS * self.element.size_bytes


@dataclass(frozen=True, kw_only=True)
class Head:
    """What a delta says of itself; digests in lowercase hexadecimal."""

    base_sha256: str
    sha256: str
    base_bytes: int
    size_bytes: int
    segments: tuple[Segment, ...]


def dictionary_of(segment: Segment, at: int) -> tuple[int, int]:
    """Where the base has what a chunk of bytes, ``at`` bytes into its segment, may repeat: offset and length."""
    first = min(max(at - DICTIONARY_BEFORE, 0), segment.base_length)
    last = min(at + DICTIONARY_AFTER, segment.base_length)
    return segment.base_offset + first, max(last - first, 0)


def write_head(out: BinaryIO, head: Head) -> None:
    """Write the head; the chunks of all segments follow it."""
    packed = zstandard.ZstdCompressor(level=19, write_content_size=False).compress(_table(head.segments))
    digests = bytes.fromhex(head.base_sha256), bytes.fromhex(head.sha256)
    out.write(
        _HEAD.pack(MAGIC, VERSION, 0, len(head.segments), head.base_bytes, head.size_bytes, *digests, len(packed))
    )
    out.write(packed)


def read_head(reader: DeltaReader) -> Head:
    """The head at the beginning of a delta.

    Raises:
        DeltaUnusable: It is none, of a version that this code does not know, or does not fit together.
    """
    magic, version, zero, count, base_bytes, size_bytes, base, target, packed = _HEAD.unpack(reader.exactly(_HEAD.size))
    if magic != MAGIC or version != VERSION or zero:
        raise DeltaUnusable(f"begins with {magic[:8]!r}, version {version}; this code reads {MAGIC!r}, {VERSION}")
    if count > MAX_SEGMENTS or packed > count * _SEGMENT_BYTES + 64:
        raise DeltaUnusable(f"{count} segments in {packed} bytes; at most {MAX_SEGMENTS} are read")
    segments = _segments(reader.frame(packed, count * _SEGMENT_BYTES), count, base_bytes)
    if sum(each.length for each in segments) != size_bytes:
        raise DeltaUnusable(f"its segments do not add up to the {size_bytes} bytes of its target")
    return Head(
        base_sha256=base.hex(), sha256=target.hex(), base_bytes=base_bytes, size_bytes=size_bytes, segments=segments
    )


def _table(segments: tuple[Segment, ...]) -> bytes:
    """The segments by column, and by byte within a column: what is alike lies side by side.

    Where the base's bytes follow those of the segment before, and are as many as the target's, two columns hold zeros.
    """
    expected = [0, *(each.base_offset + each.base_length for each in segments)]
    columns: tuple[tuple[np.dtype[Any], Sequence[float]], ...] = (
        (np.dtype("u1"), [each.kind for each in segments]),
        (np.dtype("u1"), [ELEMENTS.index(each.element) for each in segments]),
        (np.dtype("<f4"), [each.step for each in segments]),
        (np.dtype("<i8"), [each.base_offset - end for each, end in zip(segments, expected, strict=False)]),
        (np.dtype("<i8"), [each.length for each in segments]),
        (np.dtype("<i8"), [each.base_length - each.length for each in segments]),
    )
    return b"".join(_by_byte(np.array(values, kind)) for kind, values in columns)


def _by_byte(column: NDArray[Any]) -> bytes:
    data: bytes = column.view(np.uint8).reshape(len(column), column.dtype.itemsize).T.tobytes()
    return data


def _segments(table: bytes, count: int, base_bytes: int) -> tuple[Segment, ...]:
    each = np.frombuffer(table, np.uint8).reshape(_SEGMENT_BYTES, count)
    kinds, elements = each[0].tolist(), each[1].tolist()
    steps = np.ascontiguousarray(each[2:6].T).view("<f4").ravel().tolist()
    skips, lengths, more = (
        np.ascontiguousarray(each[at : at + 8].T).view("<i8").ravel().tolist() for at in (6, 14, 22)
    )
    found: list[Segment] = []
    end = 0
    for fields in zip(kinds, elements, steps, skips, lengths, more, strict=True):
        found.append(_segment(fields, end, base_bytes))
        end = found[-1].base_offset + found[-1].base_length
    return tuple(found)


def _segment(fields: tuple[int, int, float, int, int, int], end: int, base_bytes: int) -> Segment:
    kind, element, step, skip, length, more = fields
    base_offset, base_length = end + skip, length + more
    if kind > SegmentKind.STEPS or element >= len(ELEMENTS) or length < 0:
        raise DeltaUnusable(f"a segment of kind {kind} with elements of type {element}, {length} bytes")
    found = Segment(
        kind=SegmentKind(kind), element=ELEMENTS[element], length=length, base_offset=base_offset,
        base_length=base_length, step=step,
    )  # fmt: skip
    if base_offset < 0 or base_length < 0 or base_offset + base_length > base_bytes:
        raise DeltaUnusable(f"a segment of bytes {base_offset} to {base_offset + base_length} of {base_bytes}")
    if found.kind is SegmentKind.BYTES:
        return found
    if length % found.element.size_bytes or base_length not in (0, length):
        raise DeltaUnusable(f"a tensor of {length} bytes of {found.element.value}, {base_length} in the base")
    if found.kind is SegmentKind.STEPS and (found.element is not StoredType.FP32 or not base_length):
        raise DeltaUnusable("steps are about elements of fp32 that the base has")
    return found
