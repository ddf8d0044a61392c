"""Latency as counts in fixed buckets, so that devices and windows merge by addition."""

from __future__ import annotations

import bisect
from collections.abc import Sequence

from edge_agent.contract.errors import MessageError

# Upper bounds in microseconds, half-octave steps from 16 us to 11.9 s; a last bucket takes the rest.
BOUNDS_US: tuple[float, ...] = tuple(round(16.0 * 2 ** (step / 2), 1) for step in range(40))
BUCKETS = len(BOUNDS_US) + 1


def bucket_of(latency_us: float) -> int:
    """Index of the bucket that a latency in microseconds belongs to; an upper bound belongs to its own bucket."""
    return bisect.bisect_left(BOUNDS_US, latency_us)


def merge(a: Sequence[int], b: Sequence[int]) -> tuple[int, ...]:
    """The counts of both together.

    Raises:
        MessageError: They are not counts in these buckets.
    """
    if len(a) != BUCKETS or len(b) != BUCKETS:
        raise MessageError(f"cannot merge latencies in {len(a)} and {len(b)} buckets: there are {BUCKETS}")
    return tuple(x + y for x, y in zip(a, b, strict=True))


def quantile_us(counts: Sequence[int], share: float) -> float | None:
    """The latency in microseconds that ``share`` of the requests stay under, interpolated within its bucket.

    Args:
        counts: One count per bucket, ``BUCKETS`` long.
    Returns:
        None where nothing was counted; the last bound where it lies beyond.
    """
    total = sum(counts)
    if total == 0:
        return None
    wanted = share * total
    before = 0
    for index, bucket in enumerate(counts[:-1]):
        if bucket and before + bucket >= wanted:
            low = BOUNDS_US[index - 1] if index else 0.0
            return low + (BOUNDS_US[index] - low) * (wanted - before) / bucket
        before += bucket
    return BOUNDS_US[-1]
