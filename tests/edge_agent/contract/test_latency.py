from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.contract.errors import MessageError
from edge_agent.contract.latency import BOUNDS_US, BUCKETS, bucket_of, merge, quantile_us
from tests.edge_agent.contract.strategies import fast

histograms = st.lists(st.integers(0, 1000), min_size=BUCKETS, max_size=BUCKETS)


def only(bucket: int, number: int = 10) -> list[int]:
    return [number if index == bucket else 0 for index in range(BUCKETS)]


def test_the_buckets_go_from_microseconds_to_seconds_in_half_octaves() -> None:
    assert BOUNDS_US[0] == 16.0
    assert BOUNDS_US[2] == 32.0
    assert BOUNDS_US[-1] == pytest.approx(11.9e6, rel=0.01)
    assert list(BOUNDS_US) == sorted(set(BOUNDS_US))
    assert len(BOUNDS_US) + 1 == BUCKETS == 41


def test_a_latency_falls_into_the_bucket_under_whose_bound_it_stays() -> None:
    assert bucket_of(0.0) == 0
    for index, bound in enumerate(BOUNDS_US):
        assert bucket_of(bound) == index
        assert bucket_of(bound * 1.0001) == index + 1
    assert bucket_of(1e12) == BUCKETS - 1


def test_quantiles_of_the_edges() -> None:
    assert quantile_us([0] * BUCKETS, 0.5) is None
    assert quantile_us(only(0), 0.5) == 8.0
    assert quantile_us(only(0), 1.0) == 16.0
    assert quantile_us(only(3), 0.0) == BOUNDS_US[2]
    assert quantile_us(only(BUCKETS - 1), 0.01) == BOUNDS_US[-1]


@fast
@given(histograms, st.floats(0, 1), st.floats(0, 1))
def test_quantiles_are_monotonic_and_within_the_buckets_counted(counts: list[int], a: float, b: float) -> None:
    low, high = quantile_us(counts, min(a, b)), quantile_us(counts, max(a, b))
    if low is None or high is None:
        assert sum(counts) == 0
        return
    assert low <= high
    filled = [index for index, number in enumerate(counts) if number]
    assert low >= (BOUNDS_US[min(filled[0], BUCKETS - 1) - 1] if filled[0] else 0.0)
    assert high <= BOUNDS_US[min(filled[-1], BUCKETS - 2)]


@fast
@given(st.lists(st.floats(0.1, 2e7), min_size=1, max_size=50), st.floats(0.01, 1.0))
def test_a_quantile_is_in_the_bucket_of_the_latency_that_it_estimates(latencies: list[float], share: float) -> None:
    counts = [0] * BUCKETS
    for latency in latencies:
        counts[bucket_of(latency)] += 1
    exact = sorted(latencies)[max(0, -int(-share * len(latencies) // 1) - 1)]
    found = quantile_us(counts, share)
    assert found is not None
    low = BOUNDS_US[bucket_of(exact) - 1] if bucket_of(exact) else 0.0
    high = BOUNDS_US[min(bucket_of(exact), BUCKETS - 2)]
    assert low <= found <= high


@fast
@given(histograms, histograms, histograms)
def test_merging_is_addition(a: list[int], b: list[int], c: list[int]) -> None:
    assert merge(merge(a, b), c) == merge(a, merge(b, c))
    assert merge(a, b) == merge(b, a)
    assert sum(merge(a, b)) == sum(a) + sum(b)


def test_merging_other_buckets_is_refused() -> None:
    with pytest.raises(MessageError, match="in 41 and 3 buckets"):
        merge([0] * BUCKETS, [1, 2, 3])
