"""One chunk of a file: the smallest of its forms when it is made, and back again."""

from __future__ import annotations

import struct

import numpy as np
import zstandard

from edge_agent.contract.delta.form import (
    CHUNK_BYTES,
    Method,
    Segment,
    SegmentKind,
)
from edge_agent.contract.delta.numbers import (
    Numbers,
    add,
    as_numbers,
    exponents,
    from_planes,
    is_float,
    planes_of,
    subtract,
    unsigned,
    unzigzag,
    zigzag,
)
from edge_agent.contract.delta.planes import entropy_bits, pack_plane, read_plane
from edge_agent.contract.delta.reading import WINDOW_BYTES, DeltaReader
from edge_agent.contract.errors import DeltaUnusable

# To choose among forms; what is chosen is then packed at the level asked for.
_QUICK_LEVEL = 3
_CODES = struct.Struct("<BI")
_PATCH = np.dtype([("at", "<u4"), ("bits", "<u4")])
_LENGTH = struct.Struct("<I")
# Codes beyond are no small steps any more, and doubles hold these exactly.
_MOST_CODE = 1 << 30
_FINITE = np.uint32(0x7F800000)


def pack_tensor(new: bytes, base: bytes, segment: Segment, *, level: int) -> bytes:
    """The smallest form of a tensor's chunk.

    Args:
        base: As many bytes, or none: then it travels whole.
        level: Of zstd.
    """
    if new == base:
        return bytes([Method.SAME])
    kind = segment.element
    bits = as_numbers(new, kind)
    if not base:
        return bytes([Method.WHOLE]) + _packed(bits, level)
    old = as_numbers(base, kind)
    if segment.kind is SegmentKind.STEPS:
        codes = _pack_codes(bits, old, segment.step, level)
        if codes is not None:
            return codes
    forms = {Method.SUBTRACT: subtract(bits, old, kind)}
    if is_float(kind):
        order = np.argsort(exponents(old, kind), kind="stable")
        forms[Method.SUBTRACT_GROUPED] = forms[Method.SUBTRACT][order]
    bound = _entropy_bits(forms[Method.SUBTRACT])
    others = {Method.XOR: bits ^ old, Method.WHOLE: bits}
    forms |= {method: numbers for method, numbers in others.items() if _entropy_bits(numbers) < bound}
    sizes = {method: len(_packed(numbers, _QUICK_LEVEL)) for method, numbers in forms.items()}
    best = min(sizes, key=lambda method: sizes[method])
    return bytes([best]) + _packed(forms[best], level)


def read_tensor(reader: DeltaReader, base: bytes, segment: Segment, size: int) -> bytes | bytearray | memoryview:
    """A chunk of ``size`` bytes of a tensor.

    Raises:
        DeltaUnusable: It is damaged.
    """
    method, kind = reader.exactly(1)[0], segment.element
    count = size // kind.size_bytes
    if method == Method.WHOLE:
        return _as_bytes(_read_numbers(reader, count, kind.size_bytes))
    if len(base) != size or method not in _OF_TENSORS:
        raise DeltaUnusable(f"a tensor's chunk of form {method} over {len(base)} bytes")
    if method == Method.SAME:
        return base
    old = as_numbers(base, kind)
    if method == Method.CODES:
        if segment.kind is not SegmentKind.STEPS:
            raise DeltaUnusable("codes without a step")
        return _as_bytes(_read_codes(reader, old, segment.step))
    numbers = _read_numbers(reader, count, kind.size_bytes)
    if method == Method.XOR:
        return _as_bytes(numbers ^ old)
    if method == Method.SUBTRACT_GROUPED:
        if not is_float(kind):
            raise DeltaUnusable(f"{kind.value} has no exponent to be grouped by")
        spread = np.empty_like(numbers)
        spread[np.argsort(exponents(old, kind), kind="stable")] = numbers
        numbers = spread
    return _as_bytes(add(numbers, old, kind))


def pack_bytes(new: bytes, dictionary: bytes, same: bytes, *, level: int) -> bytes:
    """A chunk that is no tensor, compressed beside what the base has there.

    Args:
        dictionary: Bytes of the base around the same place; ``same``: those of exactly the same place.
    """
    if new == same:
        return bytes([Method.SAME])
    frame = _compressor(level, dictionary).compress(new)
    return bytes([Method.BYTES]) + _LENGTH.pack(len(frame)) + frame


def read_bytes(reader: DeltaReader, dictionary: bytes, same: bytes, size: int) -> bytes:
    """A chunk of ``size`` bytes that is no tensor.

    Raises:
        DeltaUnusable: It is damaged.
    """
    method = reader.exactly(1)[0]
    if method == Method.SAME and len(same) == size:
        return same
    (length,) = _LENGTH.unpack(reader.exactly(_LENGTH.size))
    if method != Method.BYTES or length > size + CHUNK_BYTES // 8:
        raise DeltaUnusable(f"a chunk of form {method}, {length} bytes for {size}")
    return reader.frame(length, size, dictionary)


_OF_TENSORS = frozenset({Method.SAME, Method.SUBTRACT, Method.SUBTRACT_GROUPED, Method.XOR, Method.CODES})


def _packed(numbers: Numbers, level: int) -> bytes:
    return b"".join(pack_plane(plane, level=level) for plane in planes_of(numbers))


def _read_numbers(reader: DeltaReader, count: int, planes: int) -> Numbers:
    return from_planes([read_plane(reader, count) for _ in range(planes)])


def _entropy_bits(numbers: Numbers) -> float:
    return sum(entropy_bits(np.bincount(plane, minlength=256)) for plane in planes_of(numbers))


def _compressor(level: int, dictionary: bytes) -> zstandard.ZstdCompressor:
    raw = zstandard.ZstdCompressionDict(dictionary, dict_type=zstandard.DICT_TYPE_RAWCONTENT) if dictionary else None
    size = CHUNK_BYTES + len(dictionary)
    settings = zstandard.ZstdCompressionParameters.from_level(
        level, source_size=size, dict_size=len(dictionary), window_log=WINDOW_BYTES.bit_length() - 1,
        write_content_size=False, write_dict_id=False,
    )  # fmt: skip
    return zstandard.ZstdCompressor(compression_params=settings, dict_data=raw)


def _stepped(old: Numbers, codes: np.ndarray, step: float) -> Numbers:
    """``base + fp32(step * code)``, both operations rounded to fp32."""
    with np.errstate(all="ignore"):
        moved = codes.astype(np.float32)
        moved *= np.float32(step)
        moved += old.view(np.float32)
    return np.asarray(moved.view(np.uint32))


def _pack_codes(new: Numbers, old: Numbers, step: float, level: int) -> bytes | None:
    """The whole codes of a quantised update, where nearly all elements follow from them bit for bit; else None."""
    with np.errstate(all="ignore"):
        codes = np.rint((new.view(np.float32).astype(np.float64) - old.view(np.float32)) / np.float64(np.float32(step)))
    # Arithmetic on NaN gives other bits on other processors: such elements are written out.
    sound = ((new & _FINITE) != _FINITE) & ((old & _FINITE) != _FINITE) & (np.abs(codes) < _MOST_CODE)
    whole = np.where(sound, codes, 0.0).astype(np.int32)
    sound &= _stepped(old, whole, step) == new
    patched = np.flatnonzero(~sound)
    if len(patched) > len(new) // 16:
        return None
    whole[patched] = 0
    zigzagged = zigzag(whole.view(np.uint32))
    width = next(size for size in (1, 2, 4) if int(zigzagged.max()) < 1 << (8 * size))
    patches = np.empty(len(patched), _PATCH)
    patches["at"], patches["bits"] = patched, new[patched]
    planes = _packed(zigzagged.astype(unsigned(width)), level)
    return bytes([Method.CODES]) + _CODES.pack(width, len(patched)) + planes + patches.tobytes()


def _read_codes(reader: DeltaReader, old: Numbers, step: float) -> Numbers:
    width, patched = _CODES.unpack(reader.exactly(_CODES.size))
    if width not in (1, 2, 4) or patched > len(old):
        raise DeltaUnusable(f"codes of {width} bytes, {patched} of {len(old)} elements written out")
    numbers = _read_numbers(reader, len(old), width).astype(np.uint32)
    new = _stepped(old, unzigzag(numbers).view(np.int32), step)
    patches = np.frombuffer(reader.exactly(patched * _PATCH.itemsize), _PATCH)
    if patched and int(patches["at"].max()) >= len(old):
        raise DeltaUnusable("an element beyond its chunk")
    new[patches["at"]] = patches["bits"]
    return new


def _as_bytes(numbers: Numbers) -> memoryview:
    return numbers.data.cast("B")
