"""Files of weights in every type and form, for tests of deltas; the golden ones are made of them too.

``python -m tests.edge_agent.contract.delta.weights`` writes the golden deltas anew.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.delta.apply import apply_delta
from edge_agent.contract.delta.make import make_delta
from edge_agent.contract.stored_tensors import StoredFile, StoredTensor, StoredType

GOLDEN = Path(__file__).parent / "golden"
STEP = float(np.float32(1e-4))
COUNT = 3000


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def made(base: bytes, target: bytes, base_layout: StoredFile, layout: StoredFile, **settings: Any) -> bytes:
    """The delta of two files in memory."""
    out = io.BytesIO()
    make_delta(io.BytesIO(base), io.BytesIO(target), out, base_layout=base_layout, layout=layout, **settings)
    return out.getvalue()


def applied(delta: bytes, base: bytes, target: bytes) -> bytes:
    """What the delta makes of the base, where it makes what is asked for."""
    out = io.BytesIO()
    apply_delta(
        io.BytesIO(delta), io.BytesIO(base), out, base_sha256=sha256(base), sha256=sha256(target),
        size_bytes=len(target),
    )  # fmt: skip
    return out.getvalue()


def one(
    kind: StoredType, count: int, *, offset: int = 0, step: float | None = None, base: str | None = None
) -> StoredFile:
    """The layout of a file with one tensor."""
    return StoredFile(tensors=(StoredTensor(name="w", dtype=kind, offset=offset, count=count, step=step),), base=base)


def noise(count: int, seed: int) -> NDArray[np.uint32]:
    """Numbers that look random, and are the same with every version of every library."""
    state = np.arange(count, dtype=np.uint64) + np.uint64(seed * 1_000_003 + 1)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        state = (state ^ (state >> np.uint64(shift))) * np.uint64(factor)
    return (state >> np.uint64(32)).astype(np.uint32)


def gaussian(count: int, seed: int, scale: float = 0.05) -> NDArray[np.float32]:
    """About normally distributed: a sum of twelve uniform numbers, exact in doubles."""
    sums = sum(noise(count, seed * 100 + at).astype(np.float64) for at in range(12)) / 2.0**32 - 6.0
    return np.asarray(sums * scale, dtype=np.float32)


def bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def pairs() -> dict[str, tuple[bytes, bytes, StoredFile, StoredFile]]:
    """Base, target and their layouts by name: each type, each way that a chunk can be made."""
    base = gaussian(COUNT, 1)
    near = base + gaussian(COUNT, 2, 1e-5)
    found: dict[str, tuple[bytes, bytes, StoredFile, StoredFile]] = {}

    def add(name: str, kind: StoredType, old: NDArray[Any], new: NDArray[Any], step: float | None = None) -> None:
        layout = one(kind, len(new), step=step, base=sha256(old.tobytes()) if step else None)
        found[name] = old.tobytes(), new.tobytes(), one(kind, len(old)), layout

    add("fp32", StoredType.FP32, base, near)
    add("fp16", StoredType.FP16, base.astype(np.float16), near.astype(np.float16))
    add("bf16", StoredType.BF16, bfloat16(base), bfloat16(near))
    small = np.rint(base * 400).astype(np.int8)
    add("int8", StoredType.INT8, small, small + (noise(COUNT, 5) % 9 == 0).astype(np.int8))
    add(
        "uint8",
        StoredType.UINT8,
        small.view(np.uint8),
        (small + np.rint(gaussian(COUNT, 6, 2)).astype(np.int8)).view(np.uint8),
    )
    add(
        "int32",
        StoredType.INT32,
        noise(COUNT, 7).view(np.int32),
        (noise(COUNT, 7) + noise(COUNT, 8) % 99).view(np.int32),
    )
    add("int64", StoredType.INT64, noise(COUNT, 9).astype(np.int64), noise(COUNT, 9).astype(np.int64) - 7)
    codes = np.rint(gaussian(COUNT, 3, 3.0))
    stepped = base + np.float32(STEP) * codes.astype(np.float32)
    stepped[[5, 9]] = np.float32("nan"), np.float32("inf")
    add("steps", StoredType.FP32, base, stepped, step=STEP)
    add("unlike", StoredType.FP32, base, gaussian(COUNT, 4))
    add("whole", StoredType.FP32, base[:-1], near)
    text = b"".join(b"%d: a line of text about nothing\n" % at for at in range(400))
    found["bytes"] = text, text.replace(b"77:", b"seventy-seven:"), StoredFile(), StoredFile()
    old = b"head" + base.tobytes() + b"between" * 9 + small.tobytes() + b"tail"
    new = b"a longer head" + small.tobytes() + b"between" * 10 + near.tobytes()
    found["moved"] = old, new, _two(4, 4 + base.nbytes + 63), _two(13 + small.nbytes + 70, 13)
    return found


def _two(floats_at: int, bytes_at: int) -> StoredFile:
    tensors = (
        StoredTensor(name="floats", dtype=StoredType.FP32, offset=floats_at, count=COUNT),
        StoredTensor(name="bytes", dtype=StoredType.INT8, offset=bytes_at, count=COUNT),
    )
    return StoredFile(tensors=tuple(sorted(tensors, key=lambda tensor: tensor.offset)))


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for name, (base, target, base_layout, layout) in pairs().items():
        (GOLDEN / f"{name}.delta").write_bytes(made(base, target, base_layout, layout))
