from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from edge_agent.contract.errors import PackageError
from edge_agent.contract.profile import Feature, FeatureCounts, Projection, count, count_batch, quantile_edges
from edge_agent.contract.projection import project_rows
from fleet_server.monitoring.drift import (
    FeatureDrift,
    Verdict,
    benjamini_hochberg,
    compare,
    homogeneity_p_value,
    judge,
    judge_fleet,
    pooled_cells,
    stability_index,
)
from fleet_server.monitoring.settings import DriftRule

RULE = DriftRule()
Rows = NDArray[np.float64]


def elements(reference: Rows) -> tuple[Feature, ...]:
    """One feature per column of the reference, float64[N, columns]."""
    return tuple(
        Feature(
            name=f"x{index}",
            tensor="x",
            side="input",
            projection=Projection.ELEMENT,
            index=index,
            edges=quantile_edges(reference[:, index]),
        )
        for index in range(reference.shape[1])
    )


def evaluate(reference: Rows, live: Rows) -> list[FeatureDrift]:
    features = elements(reference)

    def counts(rows: Rows) -> dict[str, FeatureCounts]:
        return {feature.name: count(feature, rows[:, feature.index]) for feature in features}

    return compare(counts(reference), counts(live), RULE)


def significant_and_flagged(
    draw: Callable[[int], Rows], *, reference: int, live: int, times: int
) -> tuple[float, float]:
    found = [evaluate(draw(reference), draw(live)) for _ in range(times)]
    significant = sum(any(one.q_value <= RULE.alpha for one in each) for each in found)
    return significant / times, sum(any(one.flagged for one in each) for each in found) / times


def figures_of_digits() -> Rows:
    """Eight figures of each of scikit-learn's 1,797 digits, float64[1797, 8]."""
    images = pytest.importorskip("sklearn.datasets").load_digits().images / 16
    columns = [images.mean((1, 2)), images.std((1, 2)), np.abs(np.diff(images, axis=2)).mean((1, 2))]
    columns += [images[:, row, 3] for row in range(2, 7)]
    return np.stack(columns, axis=1)


@pytest.mark.parametrize(("reference", "live"), [(300, 200), (1_000, 200), (1_000, 2_000), (5_000, 200)])
def test_without_drift_a_device_is_rarely_significant_and_almost_never_flagged(reference: int, live: int) -> None:
    rng = np.random.default_rng(7)
    significant, flagged = significant_and_flagged(
        lambda rows: rng.gamma(2.0, 1.0, (rows, 10)), reference=reference, live=live, times=100
    )
    assert significant <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 100), "5 %, and three standard errors of 100 trials"
    assert flagged <= RULE.device_false_alarms


@pytest.mark.parametrize("own", [60, 100, 150])
def test_a_small_reference_of_a_devices_own_raises_no_false_alarm(own: int) -> None:
    digits, rng = figures_of_digits(), np.random.default_rng(own)
    features = elements(digits)
    everybody = np.arange(len(digits))

    def counts(rows: int, offset: float = 0.0) -> dict[str, FeatureCounts]:
        drawn = digits[rng.choice(everybody, rows)] + offset * digits.std(axis=0)
        return {feature.name: count(feature, drawn[:, feature.index]) for feature in features}

    def drifted(*, shift: float, windows: int) -> bool:
        reference, verdict, history = counts(own, 0.5), Verdict.NONE, []
        for _ in range(windows):
            found = compare(reference, counts(200, 0.5 + shift), RULE)
            history.append(frozenset(one.feature for one in found if one.flagged))
            verdict = judge(history, before=verdict, persistence=RULE.persistence)
            if verdict is Verdict.DRIFTED:
                return True
        return False

    assert sum(drifted(shift=0.0, windows=4) for _ in range(100)) <= 100 * RULE.device_false_alarms
    assert all(drifted(shift=0.8, windows=2) for _ in range(10))


def test_without_drift_on_real_digits_no_device_is_flagged() -> None:
    digits = figures_of_digits()
    rng = np.random.default_rng(3)

    def flagged() -> bool:
        order = rng.permutation(len(digits))
        return any(one.flagged for one in evaluate(digits[order[:900]], digits[order[900:1100]]))

    assert sum(flagged() for _ in range(150)) / 150 <= 0.05


def test_a_fixed_threshold_would_have_alarmed_where_the_test_does_not() -> None:
    rng = np.random.default_rng(5)
    reference = rng.normal(size=(1_000, 6))
    feature = elements(reference)[0]
    psi = [
        stability_index(
            np.array(count(feature, reference[:, 0]).bins), np.array(count(feature, rng.normal(size=100)).bins)
        )
        for _ in range(100)
    ]
    assert np.mean(np.array(psi) > 0.1) > 0.8
    assert not any(one.flagged for one in evaluate(reference, rng.normal(size=(100, 6))))


def test_contrast_and_blur_of_real_digits_are_seen_in_one_window_and_named() -> None:
    images = pytest.importorskip("sklearn.datasets").load_digits().images.astype(np.float32) / 16
    names = {"std": Projection.STD, "gradient": Projection.GRADIENT, "maximum": Projection.MAXIMUM}
    images = images[np.random.default_rng(0).permutation(len(images))]  # they are in the order of their writers
    reference, live = images[:900, None], images[900:1100, None]
    features = []
    for name, projection in names.items():
        values = count_values(projection, reference)
        features.append(
            Feature(name=name, tensor="image", side="input", projection=projection, edges=quantile_edges(values))
        )

    def counts(rows: NDArray[np.float32]) -> dict[str, FeatureCounts]:
        return count_batch(tuple(features), {"image": rows}, {"p": np.zeros((len(rows), 1))})

    before = counts(reference)
    assert not any(one.flagged for one in compare(before, counts(live), RULE))
    pale = compare(before, counts(0.6 * live + 0.2), RULE)
    assert {one.feature for one in pale if one.flagged} == {"std", "gradient", "maximum"}
    blurred = (live + np.roll(live, 1, 3) + np.roll(live, 1, 2)) / 3
    assert "gradient" in {one.feature for one in compare(before, counts(blurred), RULE) if one.flagged}


def count_values(projection: Projection, tensor: NDArray[np.float32]) -> Rows:
    return project_rows(projection, tensor)


def test_a_trifle_is_significant_with_many_rows_but_not_flagged() -> None:
    rng = np.random.default_rng(1)
    found = evaluate(rng.normal(size=(20_000, 1)), rng.normal(0.1, size=(20_000, 1)))
    assert found[0].q_value < 1e-6
    assert not found[0].flagged


def test_the_features_with_the_largest_effect_come_first() -> None:
    rng = np.random.default_rng(1)
    shift = np.array([0.0, 2.0, 1.0])
    found = evaluate(rng.normal(size=(1_000, 3)), rng.normal(size=(300, 3)) + shift)
    assert [one.feature for one in found] == ["x1", "x2", "x0"]
    assert [one.flagged for one in found] == [True, True, False]


def test_missing_and_not_a_number_count_as_drift_where_the_reference_had_none() -> None:
    rng = np.random.default_rng(2)
    reference, live = rng.normal(size=(1_000, 1)), rng.normal(size=(300, 1))
    live[:60] = np.nan
    assert evaluate(reference, live)[0].flagged


def test_values_beyond_the_reference_are_drift_though_nearly_all_of_it_was_one_value() -> None:
    rng = np.random.default_rng(2)
    reference = np.where(rng.random((1_000, 1)) < 0.85, 16.0, rng.uniform(0, 16, (1_000, 1)))
    assert evaluate(reference, np.full((300, 1), 17.0))[0].flagged


def test_counts_of_other_bins_are_refused() -> None:
    with pytest.raises(PackageError, match="3 live bins, 2 of the reference"):
        pooled_cells(FeatureCounts(bins=(1, 2)), FeatureCounts(bins=(1, 2, 3)), 10)


def test_the_p_value_is_that_of_scipys_contingency_test() -> None:
    a, b = np.array([10, 22, 31, 4]), np.array([14, 9, 40, 11])
    expected = stats.chi2_contingency(np.stack([a, b]), correction=False).pvalue
    assert homogeneity_p_value(a, b) == pytest.approx(expected)


def test_adjusted_p_values_are_those_of_scipy() -> None:
    p = [0.01, 0.04, 0.03, 0.2, 0.9]
    assert benjamini_hochberg(p) == pytest.approx(stats.false_discovery_control(p))
    assert benjamini_hochberg([]) == []


@given(
    st.lists(st.integers(0, 50), min_size=1, max_size=20).flatmap(
        lambda bins: st.tuples(st.just(bins), st.lists(st.integers(0, 50), min_size=len(bins), max_size=len(bins)))
    ),
    st.integers(0, 20),
    st.integers(0, 20),
)
def test_pooling_loses_no_row(bins: tuple[list[int], list[int]], over: int, nan: int) -> None:
    reference, live = FeatureCounts(bins=tuple(bins[0]), over=over), FeatureCounts(bins=tuple(bins[1]), nan=nan)
    a, b = pooled_cells(reference, live, 10)
    assert (a.sum(), b.sum()) == (reference.rows, live.rows)
    assert len(a) == len(b) <= 13
    assert 0.0 <= homogeneity_p_value(a, b) <= 1.0


def flags(*names: str) -> frozenset[str]:
    return frozenset(names)


@pytest.mark.parametrize(
    ("history", "before", "verdict"),
    [
        ([], Verdict.NONE, Verdict.NONE),
        ([flags("a")], Verdict.NONE, Verdict.SUSPECT),
        ([flags("a"), flags("a", "b")], Verdict.SUSPECT, Verdict.DRIFTED),
        ([flags("a"), flags("b")], Verdict.SUSPECT, Verdict.SUSPECT),  # chance hits now here, now there
        ([flags("a"), flags()], Verdict.SUSPECT, Verdict.NONE),
        ([flags("a"), flags()], Verdict.DRIFTED, Verdict.DRIFTED),  # one quiet window is no end
        ([flags(), flags()], Verdict.DRIFTED, Verdict.NONE),
    ],
)
def test_drift_is_what_persists(history: list[frozenset[str]], before: Verdict, verdict: Verdict) -> None:
    assert judge(history, before=before, persistence=2) is verdict


def fleet(devices: int, drifted: int) -> dict[str, Verdict]:
    return {f"d{n:03}": Verdict.DRIFTED if n < drifted else Verdict.SUSPECT for n in range(devices)}


@pytest.mark.parametrize(
    ("devices", "drifted", "alert"),
    [(0, 0, False), (1, 1, True), (3, 0, False), (3, 1, False), (3, 2, True), (200, 2, False), (200, 8, True)],
)
def test_a_fleet_has_drifted_when_more_devices_have_than_chance_explains(
    devices: int, drifted: int, alert: bool
) -> None:
    verdict = judge_fleet(fleet(devices, drifted), RULE)
    assert verdict.alert is alert
    assert f"of {devices} devices drifted" in verdict.reason
    assert len(verdict.drifted) == drifted
