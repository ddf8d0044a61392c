"""How much counts prove: what is said for sure of the shares, medians and distributions behind them. Pure.

Rows and requests are taken to be independent of each other. Frames of one camera are not: limits for such a model, and
the numbers of rows that its manifest asks for, are better generous.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from edge_agent.contract.latency import BOUNDS_US, bucket_of, quantile_us

#: Level of what is looked at again and again: each look may err, so that one alone must hardly ever.
RARELY = 0.001
#: Level of what is looked at once.
SELDOM = 0.05
#: Requests, or rows, below which neither medians nor distributions are compared.
FEWEST_REQUESTS = 30
# Ranks between which a median lies but once in a thousand times on either side (standard normal quantile of 0.999).
_Z = 3.09
# Runs of one size below which no mean is compared.
_FEWEST_RUNS = 5
# Sizes of runs that are kept, the most frequent ones.
_SIZES = 32


def tail(successes: int, trials: int, probability: float) -> float:
    """The probability of so many successes or more: the p-value of the exact one-sided binomial test.

    Clopper and Pearson, "The use of confidence or fiducial limits illustrated in the case of the binomial",
    Biometrika 26 (1934): a limit is outside of the one-sided interval of level ``1 - p`` where this is below ``p``.

    Returns:
        1.0 where there are no more than expected: nothing is asked about them.
    """
    if successes <= trials * probability or successes == 0:
        return 1.0
    if probability == 0.0:
        return 0.0
    log_first = (
        math.lgamma(trials + 1) - math.lgamma(successes + 1) - math.lgamma(trials - successes + 1)
        + successes * math.log(probability) + (trials - successes) * math.log1p(-probability)
    )  # fmt: skip
    odds = probability / (1.0 - probability)
    total = term = 1.0
    # Beyond the mode each term is smaller than the one before by a factor that shrinks too.
    for count in range(successes, trials):
        term *= (trials - count) / (count + 1) * odds
        total += term
        if term < total * 1e-12:
            break
    return min(1.0, math.exp(log_first) * total)


def shift(now: Mapping[str, int], before: Mapping[str, int]) -> tuple[float, float]:
    """How far two distributions of classes are apart, and how far they are so for sure.

    The distance is the total variation distance of the shares, half the sum of their differences. That of two samples
    is larger than that of what they were drawn from: on average by at most ``sum(sqrt(p (1 - p) / n)) / 2`` for each
    of them (Jensen's inequality), and beyond its average by more than ``sqrt(ln(1 / a) / 2 * (1 / n + 1 / m))`` with
    a probability of at most ``a`` (McDiarmid, "On the method of bounded differences", 1989: one row changes the
    distance by at most 1/n). Both are taken off.

    Args:
        now, before: Rows by class; taken to be independent of each other.
    Returns:
        The distance, 0..1, and its lower bound at one in a thousand, which is 0 where little is known.
    """
    n, m = sum(now.values()), sum(before.values())
    if not n or not m:
        return 0.0, 0.0
    distance = excess = 0.0
    for name in sorted(now.keys() | before.keys()):
        p, q = now.get(name, 0) / n, before.get(name, 0) / m
        distance += abs(p - q) / 2
        excess += (math.sqrt(p * (1 - p) / n) + math.sqrt(q * (1 - q) / m)) / 2
    luck = math.sqrt(-math.log(RARELY) / 2 * (1 / n + 1 / m))
    return min(1.0, distance), max(0.0, distance - excess - luck)


def most_frequent(runs: Mapping[int, tuple[int, int]]) -> dict[int, tuple[int, int]]:
    """Of the sizes of runs those that are worth keeping, as :attr:`Seen.runs` has them."""
    kept = sorted(runs.items(), key=lambda item: (-item[1][0], item[0]))[:_SIZES]
    return dict(sorted(kept))


def like_for_like(now: Mapping[int, tuple[int, int]], before: Mapping[int, tuple[int, int]]) -> float | None:
    """What a run takes, in times of one of the version before it of the same rows; None where too few are alike.

    An application that sends larger requests than before is no fault of the model.
    """
    runs, taken, expected = 0, 0.0, 0.0
    for rows, (count, ns) in now.items():
        count_before, ns_before = before.get(rows, (0, 0))
        if min(count, count_before) < _FEWEST_RUNS:
            continue
        runs += count
        taken += ns
        expected += count * ns_before / count_before
    return taken / expected if runs >= FEWEST_REQUESTS and expected > 0 else None


def lowest_median(counts: Sequence[int]) -> float:
    """What the median is at least, by the ranks between which it lies (binomial with 1/2, normal approximation)."""
    return quantile_us(counts, max(0.0, 0.5 - _Z / 2 / math.sqrt(sum(counts)))) or 0.0


def highest_median(counts: Sequence[int]) -> float:
    """What the median is at most; see :func:`lowest_median`."""
    return quantile_us(counts, min(1.0, 0.5 + _Z / 2 / math.sqrt(sum(counts)))) or 0.0


def least_median(counts: Sequence[int]) -> float:
    """As the lowest median, but the bound of its bucket: wherever within it the requests were."""
    return _edges(lowest_median(counts))[0]


def most_median(counts: Sequence[int]) -> float:
    """As the highest median, but the bound of its bucket."""
    return _edges(highest_median(counts))[1]


def _edges(latency_us: float) -> tuple[float, float]:
    index = bucket_of(latency_us)
    return BOUNDS_US[index - 1] if index else 0.0, BOUNDS_US[index] if index < len(BOUNDS_US) else math.inf
