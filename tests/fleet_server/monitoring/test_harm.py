from __future__ import annotations

import numpy as np
import pytest

from fleet_server.monitoring.harm import LabelledRow, estimate_accuracy, judge, wilson
from fleet_server.monitoring.settings import HarmRule

RULE = HarmRule(min_labels=50, tolerance=0.05)


def trickle(rng: np.random.Generator, rows: int, accuracy: float, device: str = "d") -> list[LabelledRow]:
    """What a sampler asks labels for: 4 % uniformly, and most of the uncertain rows, which are wrong more often."""
    uncertain = rng.random(rows) < 0.2
    error = 1 - accuracy
    wrong = rng.random(rows) < np.where(uncertain, min(1.0, 3 * error), 0.5 * error)
    probability = np.where(uncertain, 0.5, 0.04)
    asked = rng.random(rows) < probability
    return [LabelledRow(device, not wrong[n], float(probability[n])) for n in np.nonzero(asked)[0]]


def test_weights_undo_that_uncertain_rows_are_asked_for_more_often() -> None:
    rng = np.random.default_rng(0)
    rows = trickle(rng, 60_000, 0.9)
    plain = np.mean([row.correct for row in rows])
    assert plain < 0.82
    weighted = estimate_accuracy(rows, confidence=0.95)
    assert weighted.value == pytest.approx(0.9, abs=0.01)
    assert weighted.effective < weighted.labels


@pytest.mark.parametrize("accuracy", [0.75, 0.9, 0.96])
def test_the_upper_bound_holds_as_often_as_it_says(accuracy: float) -> None:
    rng = np.random.default_rng(1)
    holds = [estimate_accuracy(trickle(rng, 1_500, accuracy), confidence=0.95).high >= accuracy for _ in range(400)]
    assert np.mean(holds) >= 0.95 - 3 * np.sqrt(0.05 * 0.95 / 400)


def test_wilsons_bounds_are_those_of_the_book() -> None:
    # 81 of 263 at 95 % two-sided: Brown, Cai, DasGupta (2001) give 0.2553 to 0.3662.
    low, high = wilson(81 / 263, 263, confidence=0.975)
    assert [low, high] == pytest.approx([0.2553, 0.3662], abs=5e-4)


def test_a_model_that_keeps_its_promise_does_no_harm_however_often_one_looks() -> None:
    rng = np.random.default_rng(2)

    def ever_harmed() -> bool:
        rows = [LabelledRow("d", bool(right), 1.0) for right in rng.random(1_000) < 0.95]
        return any(judge(rows[:seen], reference=0.95, rule=RULE).harmed for seen in range(50, 1_000, 25))

    assert sum(ever_harmed() for _ in range(60)) <= 3


def test_a_model_that_lost_fifteen_points_is_found_with_a_hundred_labels() -> None:
    rng = np.random.default_rng(3)
    found = [
        judge(
            [LabelledRow("d", bool(right), 1.0) for right in rng.random(100) < 0.80], reference=0.95, rule=RULE
        ).harmed
        for _ in range(200)
    ]
    assert np.mean(found) > 0.8


def test_too_few_labels_say_nothing_and_say_so() -> None:
    verdict = judge([LabelledRow("d", False, 1.0)] * 49, reference=0.95, rule=RULE)
    assert not verdict.harmed
    assert verdict.reason == "49 labels so far; 50 are needed to judge"


def test_volunteered_labels_count_for_nothing() -> None:
    verdict = judge([LabelledRow("d", False, 0.0)] * 500, reference=0.95, rule=RULE)
    assert not verdict.harmed
    assert verdict.fleet.labels == 0


def test_the_reason_names_estimate_bound_and_promise() -> None:
    verdict = judge([LabelledRow("d", n % 2 == 0, 1.0) for n in range(100)], reference=0.95, rule=RULE)
    assert verdict.harmed
    assert verdict.reason == (
        "accuracy 50.0%, at most 58.1% with 95% confidence, is below 95.0% promised less 5.0% tolerance "
        "(100 labels of 1 devices)"
    )


def test_without_a_promise_there_is_no_harm() -> None:
    verdict = judge([LabelledRow("d", False, 1.0)] * 100, reference=None, rule=RULE)
    assert not verdict.harmed
    assert "no reference accuracy" in verdict.reason


def test_a_few_badly_hit_devices_count_though_the_fleets_mean_hides_them() -> None:
    rows = [LabelledRow(f"d{n % 20}", True, 1.0) for n in range(2_000)]
    rows = [LabelledRow(row.device, row.device not in {"d3", "d7"}, 1.0) for row in rows]
    verdict = judge(rows, reference=0.94, rule=RULE)
    assert verdict.harmed_devices == ("d3", "d7")
    assert verdict.harmed
    assert verdict.fleet.high > 0.89
    one = judge([row for row in rows if row.device != "d7"], reference=0.94, rule=RULE)
    assert (one.harmed, one.harmed_devices) == (False, ("d3",))
