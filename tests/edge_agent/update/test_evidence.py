from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.contract.latency import BOUNDS_US, BUCKETS
from edge_agent.update.evidence import (
    highest_median,
    least_median,
    like_for_like,
    lowest_median,
    most_frequent,
    most_median,
    shift,
    tail,
)

counts_by_class = st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 500), max_size=8)
histograms = st.lists(st.integers(0, 1000), min_size=BUCKETS, max_size=BUCKETS).filter(any)


@given(st.integers(1, 60), st.data(), st.floats(0.0, 1.0))
def test_the_tail_is_that_of_the_binomial_distribution(trials: int, data: st.DataObject, probability: float) -> None:
    successes = data.draw(st.integers(0, trials))
    exact = sum(
        math.comb(trials, count) * probability**count * (1 - probability) ** (trials - count)
        for count in range(successes, trials + 1)
    )
    found = tail(successes, trials, probability)
    if successes <= trials * probability:
        assert found == 1.0
    else:
        assert found == pytest.approx(exact, rel=1e-6, abs=1e-12)


def test_the_tail_of_millions_of_trials_is_found_at_once() -> None:
    assert tail(10_000_000, 10_000_000, 0.5) == 0.0
    assert tail(5_000_001, 10_000_000, 0.5) == pytest.approx(0.5, abs=0.001)
    assert tail(1, 10_000_000, 0.0) == 0.0


@given(st.integers(1, 1000), st.data(), st.floats(0.0, 0.99))
def test_more_successes_are_never_likelier(trials: int, data: st.DataObject, probability: float) -> None:
    successes = data.draw(st.integers(0, trials - 1))
    assert tail(successes + 1, trials, probability) <= tail(successes, trials, probability) * (1 + 1e-9)


@given(counts_by_class, counts_by_class)
def test_a_shift_is_a_distance_and_its_lower_bound_is_below_it(now: dict[str, int], before: dict[str, int]) -> None:
    distance, surely = shift(now, before)
    assert 0.0 <= surely <= distance <= 1.0
    assert shift(before, now) == pytest.approx((distance, surely))
    if now == before:
        assert (distance, surely) == (0.0, 0.0)


@given(counts_by_class, counts_by_class, st.integers(2, 1000))
def test_more_rows_of_the_same_shares_prove_no_less(now: dict[str, int], before: dict[str, int], times: int) -> None:
    more = {name: count * times for name, count in now.items()}
    assert shift(more, before)[1] >= shift(now, before)[1] - 1e-9


def test_samples_of_one_distribution_are_hardly_ever_surely_apart() -> None:
    random = np.random.default_rng(7)
    false = 0
    for _ in range(2000):
        shares = random.dirichlet(np.full(random.integers(2, 30), 0.7))
        now, before = (
            Counter(random.choice(len(shares), size=int(random.integers(1, 400)), p=shares).tolist()) for _ in range(2)
        )
        false += shift({str(k): v for k, v in now.items()}, {str(k): v for k, v in before.items()})[1] > 0.0
    assert false <= 2


def test_a_model_that_has_collapsed_onto_one_class_shows_after_few_rows() -> None:
    before = {str(digit): 1000 for digit in range(10)}
    assert shift({"3": 3}, before)[1] == 0.0
    assert shift({"3": 40}, before)[1] > 0.5


@given(histograms)
def test_what_a_median_is_at_least_is_below_what_it_is_at_most(counts: list[int]) -> None:
    assert least_median(counts) <= lowest_median(counts) <= highest_median(counts) <= most_median(counts)


def test_a_median_beyond_the_last_bound_may_be_anything() -> None:
    counts = [0] * (BUCKETS - 1) + [100]
    assert highest_median(counts) == BOUNDS_US[-1]
    many = [0] * BUCKETS
    many[0] = 100
    assert (least_median(many), most_median(many)) == (0.0, BOUNDS_US[0])


def test_runs_are_compared_with_those_of_as_many_rows() -> None:
    # Larger requests than before: each run takes longer, none of its size does.
    now, before = {1: (10, 10_000), 32: (90, 2_880_000)}, {1: (90, 90_000), 32: (10, 320_000)}
    assert like_for_like(now, before) == pytest.approx(1.0)
    assert like_for_like({1: (100, 200_000)}, before) == pytest.approx(2.0)


def test_runs_of_sizes_that_were_not_there_before_are_compared_with_nothing() -> None:
    assert like_for_like({64: (1000, 1_000_000)}, {1: (1000, 1_000_000)}) is None
    assert like_for_like({1: (29, 29_000)}, {1: (1000, 1_000_000)}) is None
    assert like_for_like({1: (1000, 29_000)}, {1: (4, 1_000_000)}) is None


def test_the_most_frequent_sizes_are_kept() -> None:
    runs = {rows: (rows, rows * 1000) for rows in range(1, 101)}
    kept = most_frequent(runs)
    assert sorted(kept) == list(range(69, 101))
    assert most_frequent({}) == {}
