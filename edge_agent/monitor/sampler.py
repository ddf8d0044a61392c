"""Which rows go home, with what probability, within a budget. Pure but for the random numbers.

Two chances per row, both with probabilities fixed before the draw:

- *uniform*: every row, with ``p_u = uniform_share * budget / rate``;
- *margin*: rows whose margin is below a threshold, with ``p_m = (1 - uniform_share) * budget / rate of such rows``.

A row is chosen if either says so, hence with ``p = p_u`` or, below the threshold, ``p = p_u + (1 - p_u) p_m``. One
random number u decides both: ``u < p_u`` is uniform, ``p_u <= u < p`` is for the margin. So a row whose u is beyond the
larger p is settled without a look at what the model said of it: at thousands of rows a second nearly all of them are.
For a chosen row an independent draw with ``p_l = labels_per_minute / rate of chosen rows`` decides whether the
application is asked for a label: with probability ``p * p_l`` in all.

Rows come in blocks: the probabilities are fixed when a block begins, rates and threshold follow when it is settled. A
block is as long as what comes in half a second, so at a slow pace every row is a block of its own. Packages of one
model share a sampler, each with a block of its own, and a policy may change in the middle of both: so what a block's
rows are drawn with is the block's (:class:`Lot`).

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

import numpy as np
from numpy.typing import ArrayLike

from edge_agent.contract.messages import SampleReason
from edge_agent.contract.sampling import SamplingPolicy

_RATE_WINDOW_S = 20.0
_SMALLEST_BUCKET = 4.0
# At most this share of the rows counts as uncertain: the reference's own 20 % quantile is where it starts.
_UNCERTAIN_SHARE = 0.2
_THRESHOLD_STEP = 0.05
_THRESHOLD_BOUNDS = (1e-4, 1.0)
_FAST_PER_MINUTE = 12_000.0
#: Seconds that a block takes, and rows that it may have.
BLOCK_S = 0.5
LARGEST_BLOCK = 4096
_NEVER = 1 << 62


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
    """Events per minute, exponentially weighted over the last seconds; right from the first second on.

    That second begins with :meth:`begin`, where events are counted only when some time of theirs is over.
    """

    def __init__(self, window_s: float = _RATE_WINDOW_S) -> None:
        self._window_s = window_s
        self._sum = 0.0
        self._first: float | None = None
        self._last = 0.0

    def begin(self, now_s: float) -> None:
        """From now on there may be events; said again it changes nothing."""
        if self._first is None:
            self._first = self._last = now_s

    def add(self, weight: float, now_s: float) -> float:
        """Count events of this weight together; the rate with them, per minute."""
        self.begin(now_s)
        if now_s > self._last:
            self._sum *= math.exp((self._last - now_s) / self._window_s)
            self._last = now_s
        self._sum += weight
        return self._per_minute(self._sum, self._last)

    def foresee(self, weight: float, now_s: float) -> float:
        """What :meth:`add` would give, without counting anything."""
        last = max(now_s, self._last)
        return self._per_minute(self._sum * math.exp((self._last - last) / self._window_s) + weight, last)

    def _per_minute(self, faded: float, at_s: float) -> float:
        seen_s = 1.0 if self._first is None else max(1.0, at_s - self._first)  # no infinite rate at the start
        return 60.0 * faded / (self._window_s * -math.expm1(-seen_s / self._window_s))


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


class Lot:
    """What the rows of one block are drawn with, fixed when it begins; not thread-safe.

    Args:
        room: Rows that the block may have.
        p_uniform: Of being chosen whatever the margin.
        chance: Of being chosen at most: a row whose random number is not below it is not chosen.
        threshold: Margin under which a row counts as uncertain.
        uniform: Gives random numbers in [0, 1).
    Attributes:
        gap: Rows to pass by before the next one that is looked at; not drawn yet where negative.
    """

    __slots__ = ("_uniform", "chance", "gap", "p_uniform", "room", "threshold")

    def __init__(
        self, *, room: int, p_uniform: float, chance: float, threshold: float, uniform: Callable[[], float]
    ) -> None:
        self.room = room
        self.p_uniform = p_uniform
        self.chance = chance
        self.threshold = threshold
        self._uniform = uniform
        self.gap = -1

    @classmethod
    def none(cls) -> Lot:
        """That of no block: it has no room."""
        return cls(room=0, p_uniform=0.0, chance=0.0, threshold=0.0, uniform=random.random)

    def pass_by(self, rows: int) -> bool:
        """Whether none of the next rows of this block is to be looked at; if so, they have passed.

        How many rows pass before one whose random number is below :attr:`chance` is geometrically distributed: one draw
        for all of them.
        """
        if self.gap < 0:
            self.gap = self._draw_gap()
        if self.gap < rows:
            return False
        self.gap -= rows
        return True

    def chances(self, rows: int) -> list[tuple[int, float]]:
        """Those of the next rows of this block that are to be looked at, each with its random number."""
        found: list[tuple[int, float]] = []
        row = -1
        while True:
            if self.gap < 0:
                self.gap = self._draw_gap()
            row += self.gap + 1
            if row >= rows:
                self.gap = row - rows
                return found
            found.append((row, self._uniform() * self.chance))
            self.gap = -1

    def _draw_gap(self) -> int:
        if self.chance >= 1.0:
            return 0
        if self.chance <= 0.0:
            return _NEVER
        return int(min(math.log1p(-self._uniform()) / math.log1p(-self.chance), _NEVER))


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
        self._share = 0.0  # of the rows that were looked at last, the uncertain ones

    def rows_per_minute(self, now_s: float) -> float:
        """How fast rows come."""
        return self._rows.foresee(1.0, now_s)

    def begin(self, rows: int, now_s: float) -> Lot:
        """Begin a block whose first ``rows`` rows are here already; it should end when :data:`BLOCK_S` are over.

        Args:
            now_s: Any clock in seconds that never goes back.
        """
        policy = self.policy
        for each in (self._rows, self._uncertain, self._chosen):
            each.begin(now_s)
        rate = self._rows.foresee(rows, now_s)
        block = min(LARGEST_BLOCK, max(rows, int(rate / 60.0 * BLOCK_S)))
        if policy.samples_per_minute <= 0:
            return self._lot(block, 0.0, 0.0)
        throttle = self._samples.throttle(now_s)
        by_margin = policy.samples_per_minute * (1.0 - policy.uniform_share)
        # Where fewer rows are uncertain than there should be, the threshold is on its way up: no need to look at all.
        uncertain = max(
            self._uncertain.foresee(max(1.0, _UNCERTAIN_SHARE * rows), now_s), rate * self._uncertain_share(rate)
        )
        p_uniform = throttle * min(1.0, policy.samples_per_minute * policy.uniform_share / rate)
        p_margin = throttle * min(1.0, by_margin / uncertain)
        return self._lot(block, p_uniform, 1.0 - (1.0 - p_uniform) * (1.0 - p_margin))

    def _lot(self, room: int, p_uniform: float, chance: float) -> Lot:
        return Lot(room=room, p_uniform=p_uniform, chance=chance, threshold=self.threshold, uniform=self._uniform)

    def decide(self, lot: Lot, chance: float, margin: float, now_s: float) -> Draw | None:
        """Decide on a row of a block whose random number ``chance`` is below that of its lot.

        Args:
            margin: Largest probability of the row less the second.
        Returns:
            How it was chosen, or None where it was not.
        """
        uncertain = margin < lot.threshold
        if chance < lot.p_uniform:
            reason = SampleReason.UNIFORM
        elif uncertain:
            reason = SampleReason.MARGIN
        else:
            return None
        probability = lot.chance if uncertain else lot.p_uniform
        if not self._samples.take():
            self.over_budget += 1
            return None
        p_label = self._label_probability(self._chosen.foresee(probability, now_s), now_s)
        if p_label > 0.0 and self._uniform() < p_label:
            if self._labels.take():
                return Draw(reason, probability, label_wanted=True, label_probability=probability * p_label)
            self.over_budget += 1
        return Draw(reason, probability)

    def settle(self, lot: Lot, margins: ArrayLike, now_s: float) -> None:
        """Learn from the rows of a block that is over: rates, and the threshold.

        The threshold moves towards the quantile of the margins that the budget can take (Robbins and Monro, 1951, on
        its logarithm).
        """
        rate = self.rows_per_minute(now_s)
        share = self._uncertain_share(rate)
        up, down = math.exp(_THRESHOLD_STEP * share), math.exp(_THRESHOLD_STEP * (share - 1.0))
        low, high = _THRESHOLD_BOUNDS
        threshold = self.threshold
        found = np.asarray(margins, dtype=np.float64)
        rows, uncertain = len(found), int(np.count_nonzero(found < threshold))
        at = 0
        # Only rows below the highest that the threshold can come to may lower it; all others raise it by one step, so
        # that from row to row the way to go is to the next one that lies below where the threshold has risen to.
        near = np.flatnonzero(found < min(threshold * up**rows, high))
        rise = math.log(up)
        with np.errstate(divide="ignore", invalid="ignore"):
            heights = np.log(found[near]) - rise * near
        begin = 0
        while begin < len(near):
            below = heights[begin:] < math.log(threshold) - rise * at
            first = int(below.argmax())
            if not below[first]:
                break
            row = int(near[begin + first])
            threshold = max(min(threshold * up ** (row - at), high) * down, low)
            at, begin = row + 1, begin + first + 1
        self.threshold = min(threshold * up ** (rows - at), high)
        self._share = uncertain / rows if rows else self._share
        self._note_rates(lot, rows, uncertain, now_s)

    def passed(self, lot: Lot, rows: int, now_s: float) -> None:
        """Learn the rates from a block that nobody looked at: as large a share of it was uncertain as of the last."""
        self._note_rates(lot, rows, rows * self._share, now_s)

    def _note_rates(self, lot: Lot, rows: int, uncertain: float, now_s: float) -> None:
        self._rows.add(rows, now_s)
        if uncertain:
            self._uncertain.add(uncertain, now_s)
        if lot.chance:
            self._chosen.add(uncertain * lot.chance + (rows - uncertain) * lot.p_uniform, now_s)

    def draw(self, margin: float, now_s: float) -> Draw | None:
        """Decide on one row that is a block by itself; see :meth:`begin` and :meth:`decide`."""
        lot = self.begin(1, now_s)
        chance = self._uniform()
        drawn = self.decide(lot, chance, margin, now_s) if chance < lot.chance else None
        self.settle(lot, (margin,), now_s)
        return drawn

    def _uncertain_share(self, per_minute: float) -> float:
        """Share of the rows that should count as uncertain: at a slow pace twice what the budget can take.

        At a fast pace more: the narrowest hundredth is narrow enough, and the fewer of them are taken, the fewer rows
        need a look.
        """
        by_margin = self.policy.samples_per_minute * (1.0 - self.policy.uniform_share)
        return min(_UNCERTAIN_SHARE, 2.0 * by_margin / min(per_minute, _FAST_PER_MINUTE))

    def _label_probability(self, chosen_per_minute: float, now_s: float) -> float:
        wanted = self.policy.labels_per_minute
        if wanted <= 0 or chosen_per_minute <= 0:
            return 0.0
        return self._labels.throttle(now_s) * min(1.0, wanted / chosen_per_minute)
