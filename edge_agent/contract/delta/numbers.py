"""Weights as whole numbers of which neighbours in value are neighbours, and those numbers as planes of bytes.

The bits of a float, read as an integer and turned round where the sign is set, ascend as the floats do. So the
difference of two near weights is a small number, whatever their size, and every pattern of bits, NaN and -0 among
them, comes back as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.stored_tensors import StoredType

Numbers = NDArray[np.unsignedinteger[Any]]
Plane = NDArray[np.uint8]

_UNSIGNED: dict[int, np.dtype[Any]] = {size: np.dtype(f"<u{size}") for size in (1, 2, 4, 8)}
_SIGNED: dict[int, np.dtype[Any]] = {size: np.dtype(f"<i{size}") for size in (1, 2, 4, 8)}
# Where the exponent lies: bits to its right, and its own width.
_EXPONENTS = {StoredType.FP32: (23, 0xFF), StoredType.FP16: (10, 0x1F), StoredType.BF16: (7, 0xFF)}


def is_float(kind: StoredType) -> bool:
    """Whether elements of this type have an exponent."""
    return kind in _EXPONENTS


def as_numbers(data: bytes | bytearray | memoryview, kind: StoredType) -> Numbers:
    """The elements' bits, unsigned; shares ``data``'s memory."""
    return np.frombuffer(data, _UNSIGNED[kind.size_bytes])


def unsigned(size_bytes: int) -> np.dtype[Any]:
    """The unsigned little-endian type of this size: 1, 2, 4 or 8."""
    return _UNSIGNED[size_bytes]


def exponents(bits: Numbers, kind: StoredType) -> NDArray[np.uint8]:
    """The exponent of each float, uint8[N]: the size of its last place, and so of what an update makes of it."""
    shift, mask = _EXPONENTS[kind]
    return np.asarray((bits >> bits.dtype.type(shift)) & bits.dtype.type(mask), dtype=np.uint8)


def subtract(new: Numbers, base: Numbers, kind: StoredType) -> Numbers:
    """The zigzag of ``new - base``, both in ascending order of value: 0, -1, 1, -2, ... become 0, 1, 2, 3, ..."""
    if is_float(kind):
        new, base = _ascending(new), _ascending(base)
    return zigzag(new - base)


def add(difference: Numbers, base: Numbers, kind: StoredType) -> Numbers:
    """What :func:`subtract` took apart; ``difference`` is overwritten."""
    step = unzigzag(difference)
    if not is_float(kind):
        step += base
        return step
    step += _ascending(base)
    return _descending(step)


def zigzag(numbers: Numbers) -> Numbers:
    """Signed numbers, given as unsigned ones, with the sign in the lowest bit."""
    size = numbers.dtype.itemsize
    signed = numbers.view(_SIGNED[size])
    return np.asarray(((signed << 1) ^ (signed >> (8 * size - 1))).view(_UNSIGNED[size]))


def unzigzag(numbers: Numbers) -> Numbers:
    """The inverse of :func:`zigzag`, as unsigned numbers."""
    one = numbers.dtype.type(1)
    sign = numbers & one
    np.negative(sign, out=sign)
    sign ^= numbers >> one
    return np.asarray(sign)


def planes_of(numbers: Numbers) -> list[Plane]:
    """uint8[N] for each byte of an element, the lowest first."""
    each = numbers.view(np.uint8).reshape(len(numbers), numbers.dtype.itemsize)
    return [np.ascontiguousarray(each[:, at]) for at in range(each.shape[1])]


def from_planes(planes: Sequence[Plane]) -> Numbers:
    """The numbers that these planes, a power of two of them and the lowest first, were taken from."""
    each = np.empty((len(planes[0]), len(planes)), np.uint8)
    for at, plane in enumerate(planes):
        each[:, at] = plane
    return each.reshape(-1).view(_UNSIGNED[len(planes)])


def _ascending(bits: Numbers) -> Numbers:
    size = bits.dtype.itemsize
    turn = (bits.view(_SIGNED[size]) >> (8 * size - 1)).view(_UNSIGNED[size])
    turn |= bits.dtype.type(1 << (8 * size - 1))
    turn ^= bits
    return np.asarray(turn)


def _descending(numbers: Numbers) -> Numbers:
    size = numbers.dtype.itemsize
    turn = (~numbers.view(_SIGNED[size]) >> (8 * size - 1)).view(_UNSIGNED[size])
    turn |= numbers.dtype.type(1 << (8 * size - 1))
    turn ^= numbers
    return np.asarray(turn)
