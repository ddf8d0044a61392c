"""How sure one can be of accuracies and of their differences. Pure."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

_DRAWS = 2_000


def bootstrap_interval(
    gained: NDArray[np.float64], weights: NDArray[np.float64], groups: NDArray[Any], *, confidence: float, seed: int
) -> tuple[float, float]:
    """Percentile interval of the weighted mean of ``gained``, float64[N], drawn by whole groups (cluster bootstrap)."""
    _, at = np.unique(groups.astype(str), return_inverse=True)
    sums = np.bincount(at, weights=gained * weights)
    totals = np.bincount(at, weights=weights)
    draws = np.random.default_rng(seed).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=_DRAWS)
    means = (draws @ sums) / (draws @ totals)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def mcnemar(gained: int, lost: int) -> float:
    """P-value of McNemar's exact test, two-sided: rows that only one of the two models answers rightly."""
    from scipy.stats import binomtest

    return float(binomtest(gained, gained + lost, 0.5).pvalue) if gained + lost else 1.0


def wilson_interval(share: float, rows: float, *, confidence: float) -> tuple[float, float]:
    """Score interval of a share of ``rows`` (Wilson, JASA 22, 1927); good for few rows and for shares near 1 too."""
    from scipy.stats import norm

    z = float(norm.ppf(0.5 + confidence / 2))
    centre = share + z * z / (2 * rows)
    reach = z * math.sqrt(share * (1 - share) / rows + z * z / (4 * rows * rows))
    scale = 1 + z * z / rows
    return max(0.0, (centre - reach) / scale), min(1.0, (centre + reach) / scale)
