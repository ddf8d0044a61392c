"""The sampler: budgets are kept, and every probability it writes down is the true one."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.contract.messages import SampleReason
from edge_agent.contract.sampling import SamplingPolicy
from edge_agent.monitor.sampler import Draw, Lot, Rate, Sampler


def _run(
    policy: SamplingPolicy, *, seed: int, rows: int, per_minute: float, threshold: float = 0.2
) -> tuple[Sampler, list[tuple[float, Draw | None]]]:
    """Rows at a steady pace with margins spread evenly over 0..1; each margin with what became of it."""
    source = random.Random(seed)
    sampler = Sampler(policy, threshold=threshold, uniform=source.random)
    drawn = []
    for row in range(rows):
        margin = source.random()
        drawn.append((margin, sampler.draw(margin, row * 60.0 / per_minute)))
    return sampler, drawn


@pytest.mark.parametrize("per_minute", [30.0, 300.0, 6000.0])
def test_the_budget_is_kept_at_any_pace(per_minute: float) -> None:
    minutes = 10
    policy = SamplingPolicy(samples_per_minute=60, labels_per_minute=6)
    sampler, drawn = _run(policy, seed=1, rows=int(per_minute * minutes), per_minute=per_minute)
    chosen = [draw for _, draw in drawn if draw is not None]
    asked = [draw for draw in chosen if draw.label_wanted]
    assert len(chosen) <= 60 * (minutes + 1)
    assert len(asked) <= 6 * (minutes + 1)
    if per_minute >= 300:  # enough rows to use the budget up
        assert len(chosen) > 0.75 * 60 * minutes
        assert len(asked) > 0.6 * 6 * minutes
    assert sampler.over_budget < 0.1 * len(chosen)


def test_a_sudden_burst_stays_within_the_bucket() -> None:
    source = random.Random(2)
    sampler = Sampler(SamplingPolicy(samples_per_minute=60), threshold=0.2, uniform=source.random)
    chosen = [sampler.draw(source.random(), 100.0 + row * 0.0002) for row in range(20_000)]
    assert sum(draw is not None for draw in chosen) <= 60


@given(
    budget=st.floats(0.01, 1e6),
    labels=st.floats(0, 1e6),
    share=st.floats(0, 1),
    threshold=st.floats(0, 1),
    rows=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 100)), max_size=100),
)
@settings(max_examples=50)
def test_probabilities_are_probabilities(
    budget: float, labels: float, share: float, threshold: float, rows: list[tuple[float, float]]
) -> None:
    policy = SamplingPolicy(samples_per_minute=budget, labels_per_minute=labels, uniform_share=share)
    sampler = Sampler(policy, threshold=threshold, uniform=random.Random(0).random)
    now = 0.0
    for margin, pause in rows:
        now += pause
        draw = sampler.draw(margin, now)
        if draw is not None:
            assert 0.0 < draw.probability <= 1.0
            assert draw.label_wanted == (draw.label_probability > 0.0)
            assert draw.label_probability <= draw.probability


def test_the_probabilities_written_down_are_the_true_ones() -> None:
    """The Hajek estimate over chosen rows finds the mean over all, though uncertain rows are chosen far more often.

    Every row is right where its margin is above 0.3: plain averages over chosen rows would be far too low.
    """
    policy = SamplingPolicy(samples_per_minute=120, labels_per_minute=40)
    truth, plain, weighted, labelled = [], [], [], []
    for seed in range(12):
        _, drawn = _run(policy, seed=seed, rows=6000, per_minute=600)
        chosen = [(float(margin > 0.3), draw) for margin, draw in drawn if draw is not None]
        truth.append(sum(margin > 0.3 for margin, _ in drawn) / len(drawn))
        plain.append(sum(right for right, _ in chosen) / len(chosen))
        weighted.append(_hajek([(right, draw.probability) for right, draw in chosen]))
        labelled.append(_hajek([(right, draw.label_probability) for right, draw in chosen if draw.label_wanted]))
    assert _mean(truth) - _mean(plain) > 0.2
    assert _mean(weighted) == pytest.approx(_mean(truth), abs=0.02)
    assert _mean(labelled) == pytest.approx(_mean(truth), abs=0.03)


def test_rows_in_blocks_have_true_probabilities_and_keep_the_budget() -> None:
    """As the monitor asks at a fast pace: most rows are settled with no look at their margin."""
    rows, per_minute = 30_000, 150_000.0
    counted, right = [], []
    for seed in range(30):
        source = random.Random(seed)
        sampler = Sampler(SamplingPolicy(samples_per_minute=600), threshold=0.2, uniform=source.random)
        chosen: list[tuple[float, float]] = []
        block: list[float] = []
        lot, looks = Lot.none(), 0
        for row in range(rows):
            now = row * 60.0 / per_minute
            if len(block) == lot.room:
                sampler.settle(lot, block, now)
                block, lot = [], sampler.begin(1, now)
            margin, chance = source.random(), source.random()
            block.append(margin)
            if chance < lot.chance:
                looks += 1
                draw = sampler.decide(lot, chance, margin, now)
                if draw is not None:
                    chosen.append((float(margin > 0.3), draw.probability))
        assert looks < 0.15 * rows
        assert len(chosen) <= 600
        counted.append(sum(1 / p for _, p in chosen) / rows)
        right.append(_hajek(chosen))
    assert _mean(counted) == pytest.approx(1.0, abs=0.1)
    assert _mean(right) == pytest.approx(0.7, abs=0.04)


def test_the_number_of_rows_is_estimated_too() -> None:
    """Horvitz and Thompson: the sum of 1/p is the number of rows, which no common factor in p would leave right."""
    _, drawn = _run(SamplingPolicy(samples_per_minute=120), seed=5, rows=20_000, per_minute=2000)
    assert sum(1 / draw.probability for _, draw in drawn if draw is not None) == pytest.approx(20_000, rel=0.15)


def test_the_threshold_moves_to_the_narrowest_margins() -> None:
    sampler, drawn = _run(SamplingPolicy(samples_per_minute=60), seed=3, rows=30_000, per_minute=3000, threshold=0.5)
    assert sampler.threshold < 0.1  # 3,000 rows a minute for a margin budget of 42: some 3 % of them
    late = [margin for margin, draw in drawn[15_000:] if draw is not None and draw.reason is SampleReason.MARGIN]
    assert max(late) < 0.2


def test_only_uncertain_rows_are_chosen_for_their_margin() -> None:
    policy = SamplingPolicy(samples_per_minute=1e9, uniform_share=0.0)
    sampler = Sampler(policy, threshold=0.5, uniform=random.Random(0).random)
    assert sampler.draw(0.9, 0.0) is None
    draw = sampler.draw(0.1, 1.0)
    assert draw is not None
    assert (draw.reason, draw.probability) == (SampleReason.MARGIN, 1.0)


def test_a_budget_of_nothing_samples_nothing() -> None:
    _, drawn = _run(SamplingPolicy(samples_per_minute=0, labels_per_minute=10), seed=0, rows=100, per_minute=60)
    assert all(draw is None for _, draw in drawn)


def test_the_rate_is_right_from_the_first_minute_on() -> None:
    rate = Rate()
    readings = [rate.add(1.0, row * 0.1) for row in range(600)]
    assert all(reading == pytest.approx(600, rel=0.1) for reading in readings[150:])
    assert rate.add(1.0, 200.0) < 10


def test_the_rate_of_blocks_is_right_once_a_second_is_over() -> None:
    """Each block is counted when it ends."""
    rate = Rate()
    rate.begin(5.0)
    readings = [rate.add(1000.0, 5.0 + 0.5 * block) for block in range(1, 40)]
    assert readings[0] == pytest.approx(60_000, rel=0.05), "of a second, as no time at all would be no rate"
    assert all(reading == pytest.approx(120_000, rel=0.05) for reading in readings[1:])


def _hajek(rows: list[tuple[float, float]]) -> float:
    return sum(value / p for value, p in rows) / sum(1 / p for _, p in rows)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def test_a_block_is_drawn_with_what_it_began_with_whatever_becomes_of_the_sampler() -> None:
    """Two packages of one model share a sampler; a policy changes while rows of both wait to be decided on."""
    sampler = Sampler(SamplingPolicy(samples_per_minute=60), threshold=0.5, uniform=random.Random(0).random)
    lot = sampler.begin(4000, 0.0)
    assert 0.0 < lot.p_uniform < lot.chance < 1.0
    sampler.begin(1, 0.0)
    sampler.restart(SamplingPolicy(samples_per_minute=6, labels_per_minute=6), 0.01)
    narrow, wide = (sampler.decide(lot, 0.0, margin, 0.1) for margin in (0.4, 0.9))
    assert narrow is not None
    assert wide is not None
    assert (narrow.probability, wide.probability) == (lot.chance, lot.p_uniform)
    sampler.settle(lot, (0.4, 0.9), 0.1)
