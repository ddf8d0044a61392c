"""Deltas are unsigned: whatever comes, one clear error, little memory, and never another file than the one wanted."""

from __future__ import annotations

import contextlib
import io
import struct
import tracemalloc
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.contract.delta import form
from edge_agent.contract.delta.apply import apply_delta
from edge_agent.contract.delta.form import Head, Method, PlaneForm, Segment, SegmentKind
from edge_agent.contract.errors import DeltaUnusable
from edge_agent.contract.stored_tensors import StoredType
from tests.edge_agent.contract.delta.weights import applied, made, pairs, sha256

PAIRS = pairs()
DELTAS = {name: made(*pair) for name, pair in PAIRS.items()}
BASE, TARGET = bytes(400), bytes(range(200)) * 2


def blob(chunks: bytes, *segments: Segment, base: bytes = BASE, target: bytes = TARGET) -> bytes:
    """A delta with a right head and these chunks."""
    out = io.BytesIO()
    head = Head(
        base_sha256=sha256(base), sha256=sha256(target), base_bytes=len(base), size_bytes=len(target),
        segments=segments,
    )  # fmt: skip
    form.write_head(out, head)
    return out.getvalue() + chunks


def tensor(element: StoredType = StoredType.FP32, **changed: object) -> Segment:
    fields = {"kind": SegmentKind.TENSOR, "element": element, "length": 400, "base_length": 400} | changed
    return Segment(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", sorted(PAIRS))
def test_a_truncated_delta_is_unusable_wherever_it_ends(name: str) -> None:
    base, target, _, _ = PAIRS[name]
    delta = DELTAS[name]
    for length in [*range(140), *range(140, len(delta), max(1, len(delta) // 40))]:
        with pytest.raises(DeltaUnusable):
            applied(delta[:length], base, target)


@settings(max_examples=300, deadline=None)
@given(name=st.sampled_from(sorted(PAIRS)), at=st.integers(0), bit=st.integers(0, 7))
def test_a_flipped_bit_is_unusable_or_changes_nothing(name: str, at: int, bit: int) -> None:
    base, target, _, _ = PAIRS[name]
    damaged = bytearray(DELTAS[name])
    damaged[at % len(damaged)] ^= 1 << bit
    with contextlib.suppress(DeltaUnusable):
        assert applied(bytes(damaged), base, target) == target  # a bit that nobody reads


@settings(max_examples=200, deadline=None)
@given(head=st.booleans(), data=st.binary(max_size=300), kind=st.sampled_from(list(SegmentKind)))
def test_any_bytes_at_all_are_unusable(head: bool, data: bytes, kind: SegmentKind) -> None:
    whole = blob(data, tensor(kind=kind, step=0.5)) if head else data
    with pytest.raises(DeltaUnusable):
        applied(whole, BASE, TARGET)


def test_bytes_after_the_end_are_unusable() -> None:
    base, target, _, _ = PAIRS["fp32"]
    with pytest.raises(DeltaUnusable, match="goes on"):
        applied(DELTAS["fp32"] + b"x", base, target)


def test_a_delta_for_other_files_is_unusable_before_anything_is_written() -> None:
    base, target, _, _ = PAIRS["fp32"]
    for wrong in ((base, base), (target, target)):
        with pytest.raises(DeltaUnusable, match="not what was asked for"):
            applied(DELTAS["fp32"], *wrong)


def test_a_base_that_is_not_what_it_was_gives_no_other_file() -> None:
    base, target, _, _ = PAIRS["fp32"]
    out = io.BytesIO()
    with pytest.raises(DeltaUnusable, match="its result has SHA-256"):
        apply_to(DELTAS["fp32"], bytes(len(base)), out, sha256(base), target)
    with pytest.raises(DeltaUnusable, match="the one here has"):
        apply_to(DELTAS["fp32"], base[:-4], out, sha256(base), target)


def apply_to(delta: bytes, base: bytes, out: io.BytesIO, base_sha256: str, target: bytes) -> None:
    apply_delta(
        io.BytesIO(delta), io.BytesIO(base), out, base_sha256=base_sha256, sha256=sha256(target),
        size_bytes=len(target),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("segments", "why"),
    [
        ((tensor(length=404, base_length=0),), "do not add up"),
        ((tensor(length=2**62),), "do not add up|a tensor of"),
        ((tensor(base_offset=4),), "a segment of bytes 4 to 404 of 400"),
        ((tensor(base_offset=2**62, base_length=400),), "a segment of bytes"),
        ((tensor(base_length=396),), "396 in the base"),
        ((tensor(length=399, base_length=399), tensor(length=1, base_length=1)), "a tensor of 399 bytes"),
        ((tensor(kind=SegmentKind.STEPS, base_length=0),), "steps are about"),
        ((tensor(StoredType.FP16, kind=SegmentKind.STEPS),), "steps are about"),
        ((), "do not add up"),
    ],
)
def test_segments_that_do_not_fit_are_refused_by_the_head(segments: tuple[Segment, ...], why: str) -> None:
    with pytest.raises(DeltaUnusable, match=why):
        applied(blob(b"", *segments), BASE, TARGET)


@pytest.mark.parametrize(
    ("chunk", "segment", "why"),
    [
        (bytes([99]), tensor(), "form 99"),
        (bytes([Method.CODES]), tensor(), "codes without a step"),
        (bytes([Method.SUBTRACT_GROUPED]) + bytes(8), tensor(StoredType.INT32), "no exponent"),
        (bytes([Method.SUBTRACT]), tensor(base_length=0), "over 0 bytes"),
        (bytes([Method.WHOLE, 77]), tensor(), "a plane of form 77"),
        (bytes([Method.WHOLE, PlaneForm.ZSTD]) + b"\xff\xff\xff\x7f", tensor(), "2147483647 bytes for 100 values"),
        (bytes([Method.WHOLE, PlaneForm.PACKED_1, PlaneForm.PACKED_1]) + bytes(4), tensor(), "a plane of form 3"),
        (struct.pack("<BBI", Method.CODES, 3, 0), tensor(kind=SegmentKind.STEPS, step=1.0), "codes of 3 bytes"),
        (struct.pack("<BBI", Method.CODES, 1, 2**31), tensor(kind=SegmentKind.STEPS, step=1.0), "elements written out"),
        (
            struct.pack("<BBIBBII", Method.CODES, 1, 1, PlaneForm.CONSTANT, 0, 100, 0),
            tensor(kind=SegmentKind.STEPS, step=1.0),
            "beyond its chunk",
        ),
        (struct.pack("<BI", Method.BYTES, 2**31), tensor(kind=SegmentKind.BYTES), "2147483648 bytes for 400"),
        (bytes([Method.SAME]), tensor(kind=SegmentKind.BYTES, base_length=10), "early|form 0"),
    ],
)
def test_a_chunk_that_does_not_fit_is_refused(chunk: bytes, segment: Segment, why: str) -> None:
    with pytest.raises(DeltaUnusable, match=why):
        applied(blob(chunk, segment), BASE, TARGET)


@pytest.mark.parametrize("told", [True, False])
def test_a_frame_that_unpacks_to_more_than_belongs_there_takes_no_memory(told: bool) -> None:
    bomb = zstandard.ZstdCompressor(level=19, write_content_size=told).compress(bytes(200 << 20))[:350]
    chunk = struct.pack("<BI", Method.BYTES, len(bomb)) + bomb
    tracemalloc.start()
    with pytest.raises(DeltaUnusable):
        applied(blob(chunk, tensor(kind=SegmentKind.BYTES)), BASE, TARGET)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


def test_a_frame_that_wants_a_large_window_is_refused() -> None:
    wide = zstandard.ZstdCompressionParameters(window_log=27, write_content_size=False)
    stream = zstandard.ZstdCompressor(compression_params=wide).compressobj()
    frame = stream.compress(TARGET) + stream.flush()
    with pytest.raises(DeltaUnusable, match="a frame"):
        applied(
            blob(struct.pack("<BI", Method.BYTES, len(frame)) + frame, tensor(kind=SegmentKind.BYTES)), BASE, TARGET
        )


def test_too_many_segments_are_not_even_unpacked() -> None:
    head = bytearray(blob(b"", tensor()))
    head[12:16] = struct.pack("<I", 2**32 - 1)
    with pytest.raises(DeltaUnusable, match="4294967295 segments"):
        applied(bytes(head), BASE, TARGET)


def test_another_version_is_named() -> None:
    head = bytearray(blob(b"", tensor()))
    head[8] = 2
    with pytest.raises(DeltaUnusable, match="version 2; this code reads"):
        applied(bytes(head), BASE, TARGET)


def test_offsets_that_no_file_has_are_unusable_before_anything_is_sought(tmp_path: Path) -> None:
    far, half = (1 << 63) - 1, len(TARGET) // 2
    segments = [
        Segment(kind=SegmentKind.BYTES, length=half, base_offset=offset, base_length=half)
        for offset in (far - half, 2 * far - half)
    ]
    out = io.BytesIO()
    head = Head(
        base_sha256=sha256(BASE), sha256=sha256(TARGET), base_bytes=2 * far, size_bytes=len(TARGET),
        segments=tuple(segments),
    )  # fmt: skip
    form.write_head(out, head)
    out.seek(0)
    (tmp_path / "base").write_bytes(BASE)
    with (tmp_path / "base").open("rb") as base, pytest.raises(DeltaUnusable, match="the one here has 400"):
        apply_delta(out, base, io.BytesIO(), base_sha256=sha256(BASE), sha256=sha256(TARGET), size_bytes=len(TARGET))
