"""Datatypes of the Open Inference Protocol and tensors as they travel in messages."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.errors import MessageError


class Datatype(str, enum.Enum):
    """An Open Inference Protocol datatype (OIP v2, "Tensor Data Types")."""

    BOOL = "BOOL"
    UINT8 = "UINT8"
    UINT16 = "UINT16"
    UINT32 = "UINT32"
    UINT64 = "UINT64"
    INT8 = "INT8"
    INT16 = "INT16"
    INT32 = "INT32"
    INT64 = "INT64"
    FP16 = "FP16"
    FP32 = "FP32"
    FP64 = "FP64"
    BYTES = "BYTES"

    @property
    def numpy(self) -> np.dtype[Any]:
        """The numpy dtype, little-endian; ``object`` (Python ``bytes``) for BYTES."""
        return _NUMPY[self]

    @property
    def size_bytes(self) -> int | None:
        """Bytes per element; None for BYTES, whose elements carry their own length."""
        return None if self is Datatype.BYTES else _NUMPY[self].itemsize

    @classmethod
    def of(cls, dtype: np.dtype[Any]) -> Datatype:
        """The datatype of a numpy dtype; any string or object dtype is BYTES.

        Raises:
            MessageError: OIP has no such datatype (complex numbers, dates).
        """
        if dtype.kind in "OSU":
            return cls.BYTES
        try:
            return _OIP[dtype.newbyteorder("<")]
        except KeyError:
            raise MessageError(f"numpy dtype {dtype} has no Open Inference Protocol datatype") from None


_NUMPY: Mapping[Datatype, np.dtype[Any]] = {
    Datatype.BOOL: np.dtype(np.bool_),
    Datatype.UINT8: np.dtype("<u1"),
    Datatype.UINT16: np.dtype("<u2"),
    Datatype.UINT32: np.dtype("<u4"),
    Datatype.UINT64: np.dtype("<u8"),
    Datatype.INT8: np.dtype("<i1"),
    Datatype.INT16: np.dtype("<i2"),
    Datatype.INT32: np.dtype("<i4"),
    Datatype.INT64: np.dtype("<i8"),
    Datatype.FP16: np.dtype("<f2"),
    Datatype.FP32: np.dtype("<f4"),
    Datatype.FP64: np.dtype("<f8"),
    Datatype.BYTES: np.dtype(object),
}
_OIP: Mapping[np.dtype[Any], Datatype] = {dtype: oip for oip, dtype in _NUMPY.items() if oip is not Datatype.BYTES}


class Tensor(msgspec.Struct, frozen=True, kw_only=True):
    """One array in a message.

    Args:
        shape: Axis sizes.
        data: Little-endian, row-major bytes; for BYTES each element is a 4-byte little-endian length and its bytes.
    """

    datatype: Datatype
    shape: tuple[int, ...]
    data: bytes

    @classmethod
    def of(cls, array: NDArray[Any]) -> Tensor:
        """The tensor holding a copy of ``array``.

        Raises:
            MessageError: OIP has no such datatype, or an object in it is neither text nor bytes.
        """
        datatype = Datatype.of(array.dtype)
        data = pack_bytes(array) if datatype is Datatype.BYTES else array.astype(datatype.numpy, copy=False).tobytes()
        return cls(datatype=datatype, shape=tuple(array.shape), data=data)

    def array(self) -> NDArray[Any]:
        """A read-only array over this tensor's bytes (a copy for BYTES).

        Raises:
            MessageError: The bytes do not fill the shape.
        """
        if any(axis < 0 for axis in self.shape):
            raise MessageError(f"{self.datatype.value} tensor of shape {self.shape}: an axis is negative")
        count = math.prod(self.shape)  # of Python's integers: a product that overflows must not look small
        if self.datatype is Datatype.BYTES:
            return _reshape(unpack_bytes(self.data, count), self.shape)
        expected = count * self.datatype.numpy.itemsize
        if len(self.data) != expected:
            raise MessageError(
                f"{self.datatype.value} tensor of shape {self.shape} needs {expected} bytes, got {len(self.data)}"
            )
        if self.datatype is Datatype.BOOL and max(self.data, default=0) > 1:
            raise MessageError(f"BOOL tensor of shape {self.shape} holds a byte that is neither 0 nor 1")
        return _reshape(np.frombuffer(self.data, dtype=self.datatype.numpy), self.shape)


def _reshape(flat: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    try:
        return flat.reshape(shape)
    except (ValueError, OverflowError) as error:  # more axes, or longer empty ones, than numpy can hold
        raise MessageError(f"tensor of {len(shape)} axes {shape[:8]}: {error}") from error


def pack_bytes(array: NDArray[Any]) -> bytes:
    """BYTES elements as they travel: each a 4-byte little-endian length and its bytes; ``str`` becomes UTF-8.

    Raises:
        MessageError: An element is neither text nor bytes.
    """
    parts: list[bytes] = []
    for index, element in enumerate(array.ravel()):
        try:
            raw = as_bytes(element)
        except MessageError as error:
            raise MessageError(f"BYTES element {index} {error}") from error
        parts.append(len(raw).to_bytes(4, "little"))
        parts.append(raw)
    return b"".join(parts)


def as_bytes(element: object) -> bytes:
    """One BYTES element: bytes as they are, text in UTF-8.

    Raises:
        MessageError: It is neither; the text goes on after the element's place.
    """
    if isinstance(element, str):
        try:
            return element.encode()
        except UnicodeEncodeError as error:
            raise MessageError(f"is no Unicode text: {error}") from error
    if isinstance(element, (bytes, bytearray, memoryview)):
        return bytes(element)
    # bytes(5) would quietly be five zeros.
    raise MessageError(f"is {type(element).__name__}, neither text nor bytes")


def unpack_bytes(data: bytes | memoryview, count: int) -> NDArray[Any]:
    """The ``count`` BYTES elements in ``data`` as an object array[count] of ``bytes``.

    Raises:
        MessageError: ``data`` holds fewer or more elements.
    """
    view = memoryview(data)
    if not 0 <= count * 4 <= len(view):  # refuse before allocating: each element takes at least its length field
        raise MessageError(f"{count} BYTES elements need at least {count * 4} bytes, got {len(view)}")
    out = np.empty(count, dtype=object)
    at = 0
    for index in range(count):
        end = at + 4 + int.from_bytes(view[at : at + 4], "little")
        if at + 4 > len(view) or end > len(view):
            raise MessageError(f"BYTES element {index} reaches to byte {end}, the tensor has {len(view)}")
        out[index] = bytes(view[at + 4 : end])
        at = end
    if at != len(view):
        raise MessageError(f"{len(view) - at} bytes are left over after {count} BYTES elements")
    return out
