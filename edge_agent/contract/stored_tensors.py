"""``tensors.json``: how the weights lie in a package's files, so that a new version can travel as a difference.

Written and signed with the package. The fleet server makes deltas of it; devices do not need it to apply one.
"""

from __future__ import annotations

import enum

import msgspec

from edge_agent.contract.errors import ManifestError
from edge_agent.contract.names import check_digest
from edge_agent.contract.quantities import Count


class StoredType(str, enum.Enum):
    """Element type of a stored tensor; all little-endian."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"
    UINT8 = "uint8"
    INT32 = "int32"
    INT64 = "int64"

    @property
    def size_bytes(self) -> int:
        """Bytes of one element."""
        return _SIZES[self]


_SIZES = {
    StoredType.FP32: 4, StoredType.FP16: 2, StoredType.BF16: 2, StoredType.INT8: 1, StoredType.UINT8: 1,
    StoredType.INT32: 4, StoredType.INT64: 8,
}  # fmt: skip


class StoredTensor(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One tensor in a file.

    Args:
        offset: Of its first byte in the file.
        count: Elements.
        step: Where the update was quantised: each element is ``base + fp32(step * code)`` of a whole ``code``, computed
            in fp32 as two rounded operations; None where it was not.
    """

    name: str
    dtype: StoredType
    offset: Count
    count: Count
    step: float | None = None


class StoredFile(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The tensors of one file, by ascending offset, none over another; bytes between them belong to none.

    Args:
        base: SHA-256 of the file that the steps are about: the same file of the parent package.
    """

    tensors: tuple[StoredTensor, ...] = ()
    base: str | None = None

    def __post_init__(self) -> None:
        if self.base is not None:
            check_digest(self.base, "base")
        end = 0
        for tensor in self.tensors:
            if tensor.offset < end:
                raise ManifestError(f"tensor {tensor.name!r} at byte {tensor.offset} lies over the one before it")
            end = tensor.offset + tensor.count * tensor.dtype.size_bytes


class StoredTensors(msgspec.Struct, frozen=True, kw_only=True):
    """What ``tensors.json`` says: by path in the package, the files with weights."""

    files: dict[str, StoredFile]


def decode_stored_tensors(data: bytes) -> StoredTensors:
    """The layout in the bytes of ``tensors.json``.

    Raises:
        ManifestError: It is none, or breaks a rule.
    """
    try:
        return msgspec.json.decode(data, type=StoredTensors)
    except (msgspec.DecodeError, UnicodeDecodeError, ManifestError) as error:
        raise ManifestError(f"tensors.json: {error}") from error


def encode_stored_tensors(stored: StoredTensors) -> bytes:
    """The bytes of ``tensors.json``; equal layouts give equal bytes."""
    return msgspec.json.format(msgspec.json.encode(stored, order="deterministic"), indent=1) + b"\n"
