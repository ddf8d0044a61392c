from __future__ import annotations

import random
import statistics

from edge_agent.contract.sampling import SamplingPolicy
from edge_agent.monitor.sampler import Sampler
from fleet_server.console.recent_labels import ENOUGH, LEAST, MOST, LabelPoint, RecentLabels, measured, recent


def drawn_labels(seed: int, *, seconds: float = 60.0, per_second: float = 25.0) -> tuple[list[LabelPoint], float]:
    """Labels of a device that is about half right, as the device's own sampler asks for them; and the truth."""
    chance, at_s = random.Random(seed), 0.0
    policy = SamplingPolicy(samples_per_minute=240, labels_per_minute=240)
    sampler = Sampler(policy, threshold=0.5, uniform=chance.random)
    found, right = [], []
    while at_s < seconds:
        at_s += 1 / per_second
        margin = chance.betavariate(1.2, 1.2)
        correct = chance.random() < 0.15 + 0.8 * margin  # the narrower the margin, the more often wrong
        right.append(correct)
        draw = sampler.draw(margin, at_s)
        if draw is not None and draw.label_wanted:
            found.append(LabelPoint("a", "p", round(at_s * 1000), correct, draw.label_probability))
    return found, statistics.mean(right)


def test_labels_that_the_sampler_asks_for_give_the_true_accuracy_within_the_stated_spread() -> None:
    errors, within, effective = [], [], []
    for seed in range(60):
        labels, truth = drawn_labels(seed)
        window = recent(labels)
        found = measured([window])
        assert found is not None
        errors.append(found.value - truth)
        within.append(found.low <= truth <= found.high)
        effective.append(window.weight**2 / window.squares)
    assert abs(statistics.mean(errors)) < 0.03  # unbiased: three standard errors
    assert statistics.stdev(errors) < 0.11  # 40 labels, whatever they are worth: 0.13
    assert statistics.mean(within) > 0.75  # of a 90 % interval
    assert min(effective) >= ENOUGH * 0.9


def test_equally_likely_labels_are_as_many_as_they_are_worth() -> None:
    window = recent(LabelPoint("a", "p", at * 1000, True, 0.1) for at in range(500))
    assert window.count == ENOUGH


def test_a_single_heavy_label_does_not_make_the_window_grow_without_bounds() -> None:
    window = RecentLabels()
    window.add(LabelPoint("a", "p", at, True, 1e-6 if at == 0 or at % 300 == 0 else 1.0) for at in range(5_000))
    assert window.count <= MOST


def test_too_few_labels_say_nothing() -> None:
    points = [LabelPoint("a", "p", at * 1000, True, 0.5) for at in range(LEAST)]
    assert measured([recent(points[1:])]) is None
    assert measured([recent(points)]) is not None
    assert measured([]) is None
