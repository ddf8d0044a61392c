"""Makes a delta of two files and the layouts of their tensors: on the fleet server, never on a device."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
import os
import struct
from collections.abc import Callable, Iterator
from typing import BinaryIO

from edge_agent.contract.delta.apply import region, same_place
from edge_agent.contract.delta.chunks import pack_bytes, pack_tensor
from edge_agent.contract.delta.form import (
    MAX_SEGMENTS,
    Head,
    Segment,
    SegmentKind,
    dictionary_of,
    write_head,
)
from edge_agent.contract.errors import ManifestError
from edge_agent.contract.stored_tensors import StoredFile, StoredTensor, StoredType

# From here on zstd splits blocks where the statistics change, as they do between groups of exponents: 1.5 % smaller
# than level 3 and a third of level 19's time (measured).
LEVEL = 13
_BYTES_LEVEL = 19
_READ_BYTES = 1 << 20


def make_delta(
    base: BinaryIO,
    target: BinaryIO,
    out: BinaryIO,
    *,
    base_layout: StoredFile = StoredFile(),  # noqa: B008 - frozen
    layout: StoredFile = StoredFile(),  # noqa: B008 - frozen
    level: int = LEVEL,
    between_chunks: Callable[[], None] | None = None,
) -> Head:
    """Write to ``out`` what makes ``target`` of ``base``.

    Args:
        base, target: Can be sought in.
        base_layout, layout: Their tensors; without any, both are bytes.
        level: Of zstd, 1 to 22.
        between_chunks: Called again and again; what it raises ends the work.
    Returns:
        The delta's head.
    Raises:
        ManifestError: A layout names bytes beyond its file.
    """
    base_sha256, base_bytes = _digest(base)
    sha256, size_bytes = _digest(target)
    segments = tuple(plan(base_layout, layout, base_bytes, size_bytes, base_sha256))
    head = Head(base_sha256=base_sha256, sha256=sha256, base_bytes=base_bytes, size_bytes=size_bytes, segments=segments)
    write_head(out, head)
    target.seek(0)
    for segment in segments:
        most = segment.chunk_bytes
        for at in range(0, segment.length, most):
            size = min(most, segment.length - at)
            new, same = target.read(size), same_place(base, segment, at, size)
            if segment.kind is SegmentKind.BYTES:
                known = region(base, *dictionary_of(segment, at))
                out.write(pack_bytes(new, known, same, level=max(level, _BYTES_LEVEL)))
            else:
                out.write(pack_tensor(new, same, segment, level=level))
            if between_chunks is not None:
                between_chunks()
    return head


def plan(
    base_layout: StoredFile, layout: StoredFile, base_bytes: int, size_bytes: int, base_sha256: str
) -> list[Segment]:
    """The segments of a file, each with the place of the base that it is made of.

    Raises:
        ManifestError: A layout names bytes beyond its file.
    """
    _check_within(base_layout, base_bytes)
    _check_within(layout, size_bytes)
    known = {tensor.name: tensor for tensor in base_layout.tensors}
    stepped = layout.base == base_sha256
    found: list[Segment] = []
    at = base_at = 0
    for tensor in layout.tensors:
        old = _alike(tensor, known.get(tensor.name))
        base_end = old.offset if old is not None and old.offset >= base_at else base_at
        found.append(_gap(at, tensor.offset, base_at, base_end, base_bytes))
        found.append(_of_tensor(tensor, old, stepped=stepped))
        at = _end(tensor)
        base_at = _end(old) if old is not None else base_at
    found.append(_gap(at, size_bytes, base_at, base_bytes, base_bytes))
    merged = list(_merged(each for each in found if each.length))
    # A file of that many tensors is not what anybody has; as bytes it travels all the same.
    return merged if len(merged) <= MAX_SEGMENTS else [_gap(0, size_bytes, 0, base_bytes, base_bytes)]


def _alike(tensor: StoredTensor, old: StoredTensor | None) -> StoredTensor | None:
    """The base's tensor of that name, where it can be subtracted."""
    return old if old is not None and (old.dtype, old.count) == (tensor.dtype, tensor.count) else None


def _of_tensor(tensor: StoredTensor, old: StoredTensor | None, *, stepped: bool) -> Segment:
    length = tensor.count * tensor.dtype.size_bytes
    if old is None:
        return Segment(kind=SegmentKind.TENSOR, element=tensor.dtype, length=length)
    step = _usable(tensor.step) if stepped and tensor.dtype is StoredType.FP32 else None
    return Segment(
        kind=SegmentKind.TENSOR if step is None else SegmentKind.STEPS, element=tensor.dtype, length=length,
        base_offset=old.offset, base_length=length, step=step or 0.0,
    )  # fmt: skip


def _usable(step: float | None) -> float | None:
    """The step as fp32, in which it counts; None where that is no number to multiply by."""
    with contextlib.suppress(OverflowError):
        rounded: float = struct.unpack("<f", struct.pack("<f", step or 0.0))[0]
        return rounded if rounded and math.isfinite(rounded) else None
    return None


def _gap(at: int, end: int, base_at: int, base_end: int, base_bytes: int) -> Segment:
    """Bytes between tensors: like those of the base between the same two."""
    base_at = min(base_at, base_bytes)
    return Segment(
        kind=SegmentKind.BYTES,
        length=end - at,
        base_offset=base_at,
        base_length=max(min(base_end, base_bytes) - base_at, 0),
    )


def _merged(segments: Iterator[Segment]) -> Iterator[Segment]:
    """Tensors that follow each other in both files as one: small ones share their chunks."""
    last: Segment | None = None
    for each in segments:
        if last is not None and _joins(last, each):
            last = dataclasses.replace(
                last, length=last.length + each.length, base_length=last.base_length + each.base_length
            )
            continue
        if last is not None:
            yield last
        last = each
    if last is not None:
        yield last


def _joins(last: Segment, each: Segment) -> bool:
    same = (last.kind, last.element, last.step) == (each.kind, each.element, each.step)
    if not same or each.kind is SegmentKind.BYTES:
        return False
    if not last.base_length or not each.base_length:
        return not last.base_length and not each.base_length
    return last.base_offset + last.base_length == each.base_offset


def _check_within(layout: StoredFile, size_bytes: int) -> None:
    if layout.tensors and _end(layout.tensors[-1]) > size_bytes:
        raise ManifestError(f"tensor {layout.tensors[-1].name!r} ends beyond the {size_bytes} bytes of its file")


def _end(tensor: StoredTensor) -> int:
    return tensor.offset + tensor.count * tensor.dtype.size_bytes


def _digest(file: BinaryIO) -> tuple[str, int]:
    file.seek(0)
    digest = hashlib.sha256()
    while data := file.read(_READ_BYTES):
        digest.update(data)
    return digest.hexdigest(), file.seek(0, os.SEEK_END)
