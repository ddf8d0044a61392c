"""Deltas give back every bit, whatever the weights are, and are smaller than what else there is."""

from __future__ import annotations

import io
import os
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.contract.delta.apply import apply_delta
from edge_agent.contract.delta.form import Method, SegmentKind, read_head
from edge_agent.contract.delta.make import make_delta, plan
from edge_agent.contract.delta.numbers import as_numbers, subtract, unzigzag, zigzag
from edge_agent.contract.delta.reading import DeltaReader
from edge_agent.contract.errors import ManifestError
from edge_agent.contract.stored_tensors import StoredFile, StoredTensor, StoredType
from tests.edge_agent.contract.delta.weights import (
    COUNT,
    GOLDEN,
    STEP,
    applied,
    gaussian,
    made,
    noise,
    one,
    pairs,
    sha256,
)

PAIRS = pairs()
# What breaks arithmetic on floats: zeros, subnormals, the ends, infinities, NaN of both kinds with payloads.
ODD = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0x7C00, 0xFC01, 0x7E55, 0x7F80, 0xFF80, 0x7FC1, 0x80000000, 0x80000001,
       0x7F7FFFFF, 0x7F800000, 0xFF800000, 0x7F800001, 0xFFC12345, 0x7FFFFFFF, 0xFFFFFFFF)  # fmt: skip


def reading(delta: bytes) -> DeltaReader:
    return DeltaReader(io.BytesIO(delta))


def test_the_golden_deltas_are_exactly_those_of_the_pairs() -> None:
    assert sorted(path.stem for path in GOLDEN.iterdir()) == sorted(PAIRS)


@pytest.mark.parametrize("name", sorted(PAIRS))
def test_a_golden_delta_makes_the_file_it_was_made_for(name: str) -> None:
    base, target, _, _ = PAIRS[name]
    assert applied((GOLDEN / f"{name}.delta").read_bytes(), base, target) == target


@pytest.mark.parametrize("name", sorted(PAIRS))
def test_each_type_and_form_comes_back_and_is_smaller_than_zstd(name: str) -> None:
    base, target, base_layout, layout = PAIRS[name]
    delta = made(base, target, base_layout, layout)
    assert applied(delta, base, target) == target
    assert len(delta) < len(zstandard.ZstdCompressor(level=19).compress(target)) + 200


def test_the_same_files_give_the_same_delta() -> None:
    assert made(*PAIRS["moved"]) == made(*PAIRS["moved"])


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(list(StoredType)),
    words=st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)), max_size=50),
    odd=st.lists(st.tuples(st.sampled_from(ODD), st.sampled_from(ODD)), max_size=50),
    step=st.none() | st.floats(width=32) | st.just(STEP),
)
def test_every_pattern_of_bits_comes_back(
    kind: StoredType, words: list[tuple[int, int]], odd: list[tuple[int, int]], step: float | None
) -> None:
    mask = (1 << (8 * kind.size_bytes)) - 1
    both = [(old & mask, new & mask) for old, new in words + odd + [(new, new) for _, new in odd]]
    base, target = (b"".join(pair[at].to_bytes(kind.size_bytes, "little") for pair in both) for at in (0, 1))
    delta = made(base, target, one(kind, len(both)), one(kind, len(both), step=step, base=sha256(base)), level=3)
    assert applied(delta, base, target) == target


@settings(max_examples=40, deadline=None)
@given(
    old=st.lists(st.tuples(st.binary(max_size=9), st.integers(0, 40), st.sampled_from(list(StoredType))), max_size=5),
    new=st.lists(st.tuples(st.binary(max_size=9), st.integers(0, 40), st.sampled_from(list(StoredType))), max_size=5),
    tail=st.binary(max_size=30),
)
def test_any_two_layouts_make_a_delta(
    old: list[tuple[bytes, int, StoredType]], new: list[tuple[bytes, int, StoredType]], tail: bytes
) -> None:
    (base, base_layout), (target, layout) = _laid(old, 1, b""), _laid(new, 2, tail)
    assert applied(made(base, target, base_layout, layout, level=3), base, target) == target


def _laid(parts: list[tuple[bytes, int, StoredType]], seed: int, tail: bytes) -> tuple[bytes, StoredFile]:
    data, tensors = b"", []
    for at, (gap, count, kind) in enumerate(parts):
        data += gap
        tensors.append(StoredTensor(name=f"t{at}", dtype=kind, offset=len(data), count=count))
        data += noise(count * kind.size_bytes, seed + at).astype(np.uint8).tobytes()
    return data + tail, StoredFile(tensors=tuple(tensors))


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1))
def test_zigzag_keeps_small_numbers_of_either_sign_small(words: list[int]) -> None:
    numbers = np.array(words, np.uint32)
    assert unzigzag(zigzag(numbers)).tolist() == words
    assert zigzag(np.array([0, -1, 1, -2, 2], np.int32).view(np.uint32)).tolist() == [0, 1, 2, 3, 4]


def test_neighbours_in_value_differ_by_one_across_zero_too() -> None:
    floats = np.array([-1e-45, -0.0, 0.0, 1e-45], np.float32)
    bits = as_numbers(floats.tobytes(), StoredType.FP32)
    assert unzigzag(subtract(bits[1:], bits[:-1], StoredType.FP32)).tolist() == [1, 1, 1]


def test_a_quantised_update_travels_as_its_codes() -> None:
    base = gaussian(200_000, 1)
    codes = np.rint(gaussian(200_000, 2, 3.0))
    target = base + np.float32(STEP) * codes.astype(np.float32)
    stepped = one(StoredType.FP32, len(base), step=STEP, base=sha256(base.tobytes()))
    files = base.tobytes(), target.tobytes(), one(StoredType.FP32, len(base))
    delta, lossless = made(*files, stepped), made(*files, one(StoredType.FP32, len(base)))
    assert applied(delta, base.tobytes(), target.tobytes()) == target.tobytes()
    assert len(delta) < 0.12 * target.nbytes < len(lossless) / 3
    assert read_head(reading(delta)).segments[0].kind is SegmentKind.STEPS


def test_steps_about_another_base_and_steps_that_are_wrong_go_the_numeric_way() -> None:
    base, target, base_layout, layout = PAIRS["steps"]
    other = StoredFile(tensors=layout.tensors, base="ab" * 32)
    assert read_head(reading(made(base, target, base_layout, other))).segments[0].kind is SegmentKind.TENSOR
    wrong = one(StoredType.FP32, COUNT, step=0.017, base=sha256(base))
    delta = made(base, target, base_layout, wrong)
    assert applied(delta, base, target) == target
    reader = reading(delta)
    read_head(reader)
    assert reader.exactly(1)[0] in (Method.SUBTRACT, Method.SUBTRACT_GROUPED)


def test_small_tensors_side_by_side_share_their_chunks() -> None:
    tensors = [StoredTensor(name=str(at), dtype=StoredType.FP32, offset=40 * at, count=10) for at in range(30)]
    layout = StoredFile(tensors=tuple(tensors))
    assert [each.length for each in plan(layout, layout, 1200, 1200, "")] == [1200]


def test_a_layout_that_names_bytes_beyond_its_file_makes_no_delta() -> None:
    with pytest.raises(ManifestError, match="ends beyond the 8 bytes"):
        made(bytes(8), bytes(8), one(StoredType.FP32, 2), one(StoredType.FP32, 3))


def test_applying_takes_little_memory_whatever_the_size() -> None:
    base = gaussian(4_000_000, 1)
    target = base.copy()
    target[: 1 << 18] += gaussian(1 << 18, 2, 1e-5)
    target[1 << 18 :].view(np.uint32)[:] += 3
    layout = one(StoredType.FP32, len(base))
    old, new = base.tobytes(), target.tobytes()
    delta = made(old, new, layout, layout, level=1)
    asked: Any = {"base_sha256": sha256(old), "sha256": sha256(new), "size_bytes": len(new)}
    with Path(os.devnull).open("wb") as out:
        files = io.BytesIO(delta), io.BytesIO(old)
        tracemalloc.start()
        apply_delta(*files, out, **asked)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 8 << 20


def test_between_chunks_work_can_be_broken_off() -> None:
    class Enough(Exception):
        pass

    def stop() -> None:
        raise Enough

    base, target, base_layout, layout = PAIRS["fp32"]
    with pytest.raises(Enough):
        make_delta(
            io.BytesIO(base),
            io.BytesIO(target),
            io.BytesIO(),
            base_layout=base_layout,
            layout=layout,
            between_chunks=stop,
        )
