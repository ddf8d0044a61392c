"""Which rows go home, with what probability, within a budget. Pure but for the random numbers.

Two draws per row, both with probabilities fixed before the draw:

- *uniform*: every row, with ``p_u = uniform_share * budget / rate``;
- *margin*: rows whose margin is below a threshold, with ``p_m = (1 - uniform_share) * budget / rate of such rows``.

A row is chosen if either draw says so, hence with ``p = p_u`` or, below the threshold, ``p = 1 - (1 - p_u)(1 - p_m)``.
For a chosen row an independent draw with ``p_l = labels_per_minute / rate of chosen rows`` decides whether the
application is asked for a label: with probability ``p * p_l`` in all.

Why estimates from such rows are unbiased. Rates, threshold and budget depend on earlier rows alone, and the row's own
margin is known before the draw; so, given the past, the indicator I of being chosen has expectation p > 0 and
``E[I * x / p] = x`` for any value x of the row (Horvitz and Thompson, 1952). The sum of ``x / p`` over chosen rows is
thus unbiased for the sum over all rows, and so is the sum of ``1 / p`` for their number; their ratio, the Hajek
estimator ``sum(x / p) / sum(1 / p)``, estimates the mean over all rows: consistent, with a bias of order 1/n that a
common factor in all p does not touch. For accuracy, x is 1 where label and prediction agree and p that of being asked.

The rate is measured, so p follows it and the budget is kept on average. A token bucket bounds bursts: below a quarter
of its size it lowers p (before the draw, so p stays true); empty, it is a hard cap, and what it refuses is counted.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable

from edge_agent.contract.messages import SampleReason
from edge_agent.contract.sampling import SamplingPolicy

_RATE_WINDOW_S = 20.0
_SMALLEST_BUCKET = 4.0
# At most this share of the rows counts as uncertain: the reference's own 20 % quantile is where it starts.
_UNCERTAIN_SHARE = 0.2
_THRESHOLD_STEP = 0.05
_THRESHOLD_BOUNDS = (1e-4, 1.0)


@dataclasses.dataclass(frozen=True)
class Draw:
    """A row that was chosen.

    Args:
        probability: Of being chosen.
        label_probability: Of being chosen and asked for a label; 0 where none was wanted.
    """

    reason: SampleReason
    probability: float
    label_wanted: bool = False
    label_probability: float = 0.0


class Rate:
    """Events per minute, exponentially weighted over the last seconds; right from the first second on."""

    def __init__(self, window_s: float = _RATE_WINDOW_S) -> None:
        self._window_s = window_s
        self._sum = 0.0
        self._first: float | None = None
        self._last = 0.0

    def add(self, weight: float, now_s: float) -> float:
        """Count an event of this weight; the rate with it, per minute."""
        if self._first is None:
            self._first, self._last = now_s - 1.0, now_s  # as if one second had passed: no infinite rate at the start
        if now_s > self._last:
            self._sum *= math.exp((self._last - now_s) / self._window_s)
            self._last = now_s
        self._sum += weight
        return 60.0 * self._sum / (self._window_s * -math.expm1((self._first - self._last) / self._window_s))


class Bucket:
    """Tokens that come at a rate per minute; holds a minute's worth."""

    def __init__(self, per_minute: float) -> None:
        self._per_minute = per_minute
        self._size = max(_SMALLEST_BUCKET, per_minute)
        self._tokens = self._size / 2
        self._at: float | None = None

    def throttle(self, now_s: float) -> float:
        """Factor on the probabilities at this moment, 0 < f <= 1: under 1 where the bucket runs low."""
        if self._at is not None and now_s > self._at:
            self._tokens = min(self._size, self._tokens + (now_s - self._at) * self._per_minute / 60.0)
        self._at = now_s if self._at is None else max(now_s, self._at)
        return min(1.0, max(self._tokens, 0.01) / (self._size / 4))

    def take(self) -> bool:
        """Take a token, if there is one."""
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True


class Sampler:
    """Chooses rows of one model; not thread-safe.

    Args:
        threshold: Margin under which a row counts as uncertain, to begin with: that of the reference profile.
        uniform: Gives random numbers in [0, 1).
    """

    def __init__(
        self, policy: SamplingPolicy, *, threshold: float, uniform: Callable[[], float] = random.random
    ) -> None:
        self._uniform = uniform
        self.over_budget = 0
        self.restart(policy, threshold)

    def restart(self, policy: SamplingPolicy, threshold: float) -> None:
        """Begin anew, with another policy or another model."""
        low, high = _THRESHOLD_BOUNDS
        self.policy = policy
        self.threshold = min(max(threshold, low), high)
        self._rows, self._uncertain, self._chosen = Rate(), Rate(), Rate()
        self._samples, self._labels = Bucket(policy.samples_per_minute), Bucket(policy.labels_per_minute)

    def draw(self, margin: float, now_s: float) -> Draw | None:
        """Decide on one row.

        Args:
            margin: Largest probability of the row less the second.
            now_s: Any clock in seconds that never goes back.
        Returns:
            How it was chosen, or None where it was not.
        """
        policy = self.policy
        if policy.samples_per_minute <= 0:
            return None
        rate = self._rows.add(1.0, now_s)
        throttle = self._samples.throttle(now_s)
        by_margin = policy.samples_per_minute * (1.0 - policy.uniform_share)
        p_uniform = throttle * min(1.0, policy.samples_per_minute * policy.uniform_share / rate)
        p_margin = 0.0
        if margin < self.threshold:
            p_margin = throttle * min(1.0, by_margin / self._uncertain.add(1.0, now_s))
        probability = 1.0 - (1.0 - p_uniform) * (1.0 - p_margin)
        chosen_per_minute = self._chosen.add(probability, now_s)
        self._adapt(margin, min(_UNCERTAIN_SHARE, 2.0 * by_margin / rate))
        if self._uniform() < p_uniform:
            reason = SampleReason.UNIFORM
        elif p_margin and self._uniform() < p_margin:
            reason = SampleReason.MARGIN
        else:
            return None
        if not self._samples.take():
            self.over_budget += 1
            return None
        p_label = self._label_probability(chosen_per_minute, now_s)
        if p_label > 0.0 and self._uniform() < p_label:
            if self._labels.take():
                return Draw(reason, probability, label_wanted=True, label_probability=probability * p_label)
            self.over_budget += 1
        return Draw(reason, probability)

    def _label_probability(self, chosen_per_minute: float, now_s: float) -> float:
        wanted = self.policy.labels_per_minute
        if wanted <= 0 or chosen_per_minute <= 0:
            return 0.0
        return self._labels.throttle(now_s) * min(1.0, wanted / chosen_per_minute)

    def _adapt(self, margin: float, share: float) -> None:
        """Move the threshold towards the quantile ``share`` of the margins (Robbins and Monro, on its logarithm)."""
        low, high = _THRESHOLD_BOUNDS
        step = _THRESHOLD_STEP * (share - (margin < self.threshold))
        self.threshold = min(max(self.threshold * math.exp(step), low), high)
