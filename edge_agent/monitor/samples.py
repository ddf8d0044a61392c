"""Chosen rows as messages: what may travel of them, in parts small enough for any broker."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import msgspec
from numpy.typing import NDArray

from edge_agent.contract.constraint import Sensitivity
from edge_agent.contract.envelope import MAX_PAYLOAD_BYTES
from edge_agent.contract.profile import FeatureCounts
from edge_agent.contract.signature import TensorSpec
from edge_agent.contract.tensors import Tensor

# What the envelope and the body's other fields take at most: names of 63 characters, a digest, times.
OVERHEAD_BYTES = 2048
ROOM_BYTES = MAX_PAYLOAD_BYTES - OVERHEAD_BYTES

T = TypeVar("T")


def travelling(specs: Sequence[TensorSpec]) -> tuple[str, ...]:
    """Names of the tensors whose values may leave the device.

    Those to be masked stay as well: as they are, they are not masked.
    """
    return tuple(spec.name for spec in specs if spec.constraint.sensitivity is Sensitivity.PUBLIC)


def row_of(tensors: Mapping[str, NDArray[Any]], names: Sequence[str], row: int) -> dict[str, Tensor]:
    """One row of the named tensors, without the batch axis."""
    return {name: Tensor.of(tensors[name][row : row + 1].reshape(tensors[name].shape[1:])) for name in names}


def encoded_bytes(item: object) -> int:
    """Bytes that an item takes in a message."""
    return len(msgspec.msgpack.encode(item))


def parts(items: Sequence[T], sizes: Sequence[int], room_bytes: int = ROOM_BYTES) -> Iterator[list[T]]:
    """The items in order, in lists that each fit into one message.

    Args:
        sizes: Of each item in bytes, each at most ``room_bytes``.
    """
    part: list[T] = []
    used = 0
    for item, size in zip(items, sizes, strict=True):
        if part and used + size > room_bytes:
            yield part
            part, used = [], 0
        part.append(item)
        used += size
    if part:
        yield part


def counts_in_parts(counts: Mapping[str, FeatureCounts]) -> Iterator[dict[str, FeatureCounts]]:
    """Counts of any number of features, in parts that each fit into one message."""
    items = list(counts.items())
    for part in parts(items, [encoded_bytes(item) for item in items]):
        yield dict(part)
