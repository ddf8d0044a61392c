"""How sure one can be of accuracies and of their differences. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_DRAWS = 2_000
CALIBRATION_BINS = 10


def bootstrap_interval(
    gained: NDArray[np.float64], weights: NDArray[np.float64], groups: NDArray[Any], *, confidence: float, seed: int
) -> tuple[float, float]:
    """Interval of the weighted mean of ``gained``, float64[N] in -1..1, drawn by whole groups (cluster bootstrap).

    The percentiles are those of Hesterberg's expanded percentile interval (The American Statistician 69, 2015, section
    4.2): of few groups plain ones are too narrow. Of very few there is none: when all of k groups agree that is chance
    once in 2^k, so that nothing can be shown with the confidence that is asked for.
    """
    from scipy.stats import norm, t

    _, at = np.unique(groups.astype(str), return_inverse=True)
    sums = np.bincount(at, weights=gained * weights)
    totals = np.bincount(at, weights=weights)
    count, tail = len(sums), (1 - confidence) / 2
    if 0.5**count > tail:
        return -1.0, 1.0
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=_DRAWS)
    means = (draws @ sums) / (draws @ totals)
    wider = float(norm.cdf(math.sqrt(count / (count - 1)) * t.ppf(tail, count - 1)))
    low, high = np.quantile(means, [wider, 1 - wider])
    return float(low), float(high)


def median_interval(values: Sequence[float], *, confidence: float) -> tuple[float, float]:
    """Interval of the median from the order of the values alone (sign test); all of their range where they are few."""
    from scipy.stats import binom

    ordered = sorted(values)
    outer = max(int(binom.ppf((1 - confidence) / 2, len(ordered), 0.5)), 1)
    return ordered[outer - 1], ordered[-outer]


def mcnemar(gained: int, lost: int) -> float:
    """P-value of McNemar's exact test, two-sided: rows that only one of the two models answers rightly."""
    from scipy.stats import binomtest

    return float(binomtest(gained, gained + lost, 0.5).pvalue) if gained + lost else 1.0


def calibration_error(confidence: NDArray[Any], correct: NDArray[np.bool_]) -> float:
    """Expected calibration error over ten bins of equal width (Guo et al., ICML 2017)."""
    at = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    rows = np.bincount(at, minlength=CALIBRATION_BINS)
    sure = np.bincount(at, weights=confidence, minlength=CALIBRATION_BINS)
    gap = sure - np.bincount(at, weights=correct, minlength=CALIBRATION_BINS)
    return float(np.abs(gap).sum() / max(1, rows.sum()))


def wilson_interval(share: float, rows: float, *, confidence: float) -> tuple[float, float]:
    """Score interval of a share of ``rows`` (Wilson, JASA 22, 1927); good for few rows and for shares near 1 too."""
    from scipy.stats import norm

    z = float(norm.ppf(0.5 + confidence / 2))
    centre = share + z * z / (2 * rows)
    reach = z * math.sqrt(share * (1 - share) / rows + z * z / (4 * rows * rows))
    scale = 1 + z * z / rows
    return max(0.0, (centre - reach) / scale), min(1.0, (centre + reach) / scale)
