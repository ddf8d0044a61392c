from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_agent.runtime.onnx import OnnxBackend
from edge_agent.runtime.package import Package
from tests.trainer.conftest import field_rows
from trainer.data.dataset import Dataset, read_dataset
from trainer.gates.comparison import Comparison
from trainer.gates.evaluate import compare_forms, decide, evaluate
from trainer.gates.statistics import bootstrap_interval, mcnemar, median_interval, wilson_interval
from trainer.recipe import Recipe
from trainer.recipe_file import Gates
from trainer.release.reference import calibrate


class Clouded:
    """The model behind a dirty lens: some of its pictures are blank, or those of one class are."""

    platform = "onnx_onnxv1"

    def __init__(self, inner: OnnxBackend, *, every: int) -> None:
        self.signature = inner.signature
        self._inner, self._every = inner, every

    def infer(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        images = inputs["image"].copy()
        images[:: self._every] = 0.0
        return self._inner.infer({"image": images})

    def cancel(self) -> None:
        self._inner.cancel()

    def close(self) -> None:
        self._inner.close()


@pytest.fixture
def dataset(recipe: Recipe, champion: Package, lake_with: Callable[..., Path]) -> Dataset:
    lake = lake_with(*field_rows(recipe, champion, per_device=120, drifted=False))
    return read_dataset(recipe, str(lake), champion=champion.digest)


def compared(difference: float, *, low: float, high: float, rows: int = 100, p_value: float = 0.001) -> Comparison:
    return Comparison(rows, 0.8 + difference, 0.8, difference, low, high, p_value)


def test_a_challenger_that_is_worse_is_refused_and_the_reason_says_how(
    recipe: Recipe, champion: Package, dataset: Dataset
) -> None:
    backend = OnnxBackend(champion)
    found = evaluate(recipe, dataset, Clouded(backend, every=3), backend, seed=0)
    assert found.outcome == "worse"
    assert not found.released
    assert found.reasons[0].startswith("it is worse: on ")
    assert any(reason.startswith("it forgets: on ") for reason in found.reasons)
    assert found.as_json()["current"]["interval"][1] < 0


def test_a_challenger_no_different_from_the_champion_is_undecided(
    recipe: Recipe, champion: Package, dataset: Dataset
) -> None:
    backend = OnnxBackend(champion)
    found = evaluate(recipe, dataset, backend, backend, seed=0)
    assert found.outcome == "undecided"
    assert "the interval includes no difference" in found.reasons[0]


def test_a_challenger_that_is_better_is_released(recipe: Recipe, champion: Package, dataset: Dataset) -> None:
    backend = OnnxBackend(champion)
    found = evaluate(recipe, dataset, backend, Clouded(backend, every=3), seed=0)
    assert found.outcome == "better", found.reasons
    assert set(found.slices) == {"device", "class"}
    assert set(found.slices["device"]) == {"cam-a", "cam-b", "cam-c"}


def test_too_few_rows_of_today_decide_nothing(
    recipe: Recipe, champion: Package, lake_with: Callable[..., Path]
) -> None:
    lake = lake_with(*field_rows(recipe, champion, per_device=10, drifted=False))
    dataset = read_dataset(recipe, str(lake), champion=champion.digest)
    backend = OnnxBackend(champion)
    found = evaluate(recipe, dataset, backend, Clouded(backend, every=2), seed=0)
    assert found.outcome == "undecided"
    assert "more labels are needed" in found.reasons[0]


def test_a_replay_slice_that_is_lost_refuses_what_is_better_elsewhere_and_chance_is_no_excuse(
    recipe: Recipe, champion: Package, dataset: Dataset
) -> None:
    backend = OnnxBackend(champion)
    foggy = Clouded(backend, every=3)
    incident = np.zeros(len(dataset.rows), dtype=bool)
    # Five rows that the champion reads rightly; the challenger sees every third picture of all that are judged blank.
    incident[np.flatnonzero(dataset.holdout)[:5]] = True
    replayed = dataclasses.replace(dataset, replay={"fog": incident, "kept": dataset.holdout & ~incident})
    found = evaluate(recipe, replayed, foggy, backend, seed=0)
    assert found.outcome == "worse"
    fog = next(reason for reason in found.reasons if reason.startswith("replay 'fog'"))
    assert fog.endswith("of its 5 rows; at most 0.0 points may be lost there")
    assert set(found.as_json()["replay"]) == {"fog", "kept"}
    same = evaluate(recipe, replayed, backend, backend, seed=0)
    assert same.outcome == "undecided"
    better = evaluate(recipe, replayed, backend, foggy, seed=0)
    assert better.outcome == "better"


def test_a_smaller_form_may_lose_its_budget_and_no_more(recipe: Recipe, champion: Package, dataset: Dataset) -> None:
    backend = OnnxBackend(champion)
    comparison, faults = compare_forms(recipe, dataset, backend, backend, seed=0)
    assert (comparison.difference, faults) == (0.0, [])
    _, faults = compare_forms(recipe, dataset, Clouded(backend, every=5), backend, seed=0)
    assert "at most 1.0 points may be lost" in faults[0]


def test_a_single_accuracy_has_an_interval_of_its_own() -> None:
    assert wilson_interval(0.5, 100, confidence=0.95) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    low, high = wilson_interval(1.0, 10, confidence=0.9)
    assert 0.75 < low < 0.8
    assert high == 1.0


def test_what_forgets_the_base_is_refused_though_it_wins_in_the_field() -> None:
    better, worse = compared(0.2, low=0.1, high=0.3), compared(-0.05, low=-0.08, high=-0.02)
    outcome, reasons = decide(better, worse, {}, Gates())
    assert outcome == "worse"
    assert reasons[0].startswith("it forgets")
    assert decide(better, compared(-0.01, low=-0.02, high=0.0), {}, Gates())[0] == "better"


def test_a_slice_that_clearly_loses_refuses_and_one_by_chance_does_not() -> None:
    better, lost = compared(0.2, low=0.1, high=0.3), compared(-0.2, low=-0.3, high=-0.1, p_value=0.002)
    outcome, reasons = decide(better, None, {"device": {"cam-a": lost}}, Gates())
    assert outcome == "worse"
    assert reasons[0].startswith("device 'cam-a' gets worse")
    # The same evidence among a hundred slices is what chance gives.
    others = {f"cam-{at}": compared(0.1, low=0.0, high=0.2, p_value=0.5) for at in range(99)}
    assert decide(better, None, {"device": {"cam-a": lost, **others}}, Gates())[0] == "better"
    few = compared(-0.2, low=-0.3, high=-0.1, rows=5, p_value=0.002)
    assert decide(better, None, {"device": {"cam-a": few}}, Gates())[0] == "better"


def test_an_improvement_below_the_gate_is_not_enough() -> None:
    outcome, reasons = decide(compared(0.005, low=0.001, high=0.009), None, {}, Gates(min_improvement=0.01))
    assert outcome == "undecided"
    assert "asks for at least +1.0 points" in reasons[0]


def test_rows_of_one_group_count_as_one_piece_of_evidence() -> None:
    gained, weights = np.tile([1.0, 0.0, 0.0, 0.0], 50), np.ones(200)
    alone = np.arange(200).astype(str).astype(object)
    together = np.repeat(np.arange(10), 20).astype(str).astype(object)
    gained_together = np.repeat(np.arange(10) % 4 == 0, 20).astype(float)
    low, high = bootstrap_interval(gained, weights, alone, confidence=0.9, seed=0)
    wide_low, wide_high = bootstrap_interval(gained_together, weights, together, confidence=0.9, seed=0)
    assert 0.19 < low < 0.25 < high < 0.31
    assert wide_high - wide_low > 3 * (high - low)


def test_very_few_groups_show_nothing_though_all_of_them_agree() -> None:
    def interval(groups: int, *, confidence: float = 0.9) -> tuple[float, float]:
        names = np.repeat(np.arange(groups), 50).astype(str).astype(object)
        return bootstrap_interval(np.ones(50 * groups), np.ones(50 * groups), names, confidence=confidence, seed=0)

    assert interval(1) == interval(4) == (-1.0, 1.0)
    assert interval(5) == (1.0, 1.0)
    assert interval(5, confidence=0.99) == (-1.0, 1.0)


def test_of_few_groups_an_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    names = np.arange(8).astype(str).astype(object)
    hits = 0
    for _ in range(400):
        low, high = bootstrap_interval(rng.normal(0.2, 0.3, 8), np.ones(8), names, confidence=0.9, seed=0)
        hits += low <= 0.2 <= high
    assert 0.86 < hits / 400 < 0.94  # plain percentiles hold it in 82 %


def test_the_interval_of_a_median_is_that_of_the_sign_test() -> None:
    assert median_interval([3.0, 1.0, 2.0], confidence=0.9) == (1.0, 3.0)
    # Of 50 values the 19th and the 32nd (Conover, Practical Nonparametric Statistics, section 3.2).
    assert median_interval([float(at) for at in range(1, 51)], confidence=0.9) == (19.0, 32.0)


def test_mcnemar_is_the_exact_sign_test() -> None:
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(8, 0) == pytest.approx(2 * 0.5**8)
    assert mcnemar(5, 5) == pytest.approx(1.0)


def test_calibration_rises_and_tells_a_boaster() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.5, 1.0, 2000)
    correct = (rng.random(2000) < confidence - 0.3).astype(float)
    x, y = np.array(calibrate(confidence, correct, np.ones(2000))).T
    assert (np.diff(x) > 0).all()
    assert (np.diff(y) >= 0).all()
    assert float(np.interp(0.9, x, y)) == pytest.approx(0.6, abs=0.08)
