"""Champion against challenger on rows that neither was trained on, both on the runtime that devices use.

The comparison is paired: on each row only the difference of the two counts. Its interval comes from a bootstrap over
groups (rows of one subject are not independent), with rows weighted by their inverse inclusion probability, so that
the uncertain ones, which are asked for more often, do not decide alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.runtime.backend import InferenceBackend
from trainer.data.dataset import Dataset
from trainer.data.rows import Rows
from trainer.recipe import Recipe
from trainer.recipe_file import Gates

_DRAWS = 2_000
_BATCH_ROWS = 256


@dataclass(frozen=True)
class Comparison:
    """Two models on the same rows; accuracies and differences in 0..1.

    Args:
        champion: None where there is none to compare with; then difference, interval and p-value are None too.
        low, high: Interval of the difference, challenger less champion.
        p_value: McNemar's exact test, two-sided, on the unweighted pairs.
    """

    rows: int
    challenger: float
    champion: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None

    def as_json(self) -> dict[str, Any]:
        """The same for ``evaluation.json``, to four digits."""
        found: dict[str, Any] = {"rows": self.rows, "challenger": round(self.challenger, 4)}
        if self.difference is not None and self.champion is not None and self.low is not None and self.high is not None:
            found["champion"] = round(self.champion, 4)
            found["difference"] = round(self.difference, 4)
            found["interval"] = [round(self.low, 4), round(self.high, 4)]
            found["p_value"] = self.p_value
        return found


@dataclass(frozen=True)
class Evaluation:
    """The verdict.

    Args:
        outcome: ``better``, ``worse`` or ``undecided``; ``first`` where it is good enough and had nothing to beat.
        reasons: In words, for a person.
    """

    outcome: str
    reasons: tuple[str, ...]
    current: Comparison
    base: Comparison | None
    slices: dict[str, dict[str, Comparison]]

    @property
    def released(self) -> bool:
        """Whether the challenger may be released."""
        return self.outcome in {"better", "first"}

    def as_json(self) -> dict[str, Any]:
        """What ``evaluation.json`` says."""
        return {
            "outcome": self.outcome,
            "reasons": list(self.reasons),
            "current": self.current.as_json(),
            "base": self.base.as_json() if self.base else None,
            "slices": {
                name: {value: comparison.as_json() for value, comparison in parts.items()}
                for name, parts in self.slices.items()
            },
        }


def predict(backend: InferenceBackend, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """What the model answers, by output name; axis 0 is N, N >= 1."""
    rows = len(next(iter(inputs.values())))
    parts = [
        backend.infer({name: array[at : at + _BATCH_ROWS] for name, array in inputs.items()})
        for at in range(0, rows, _BATCH_ROWS)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def evaluate(
    recipe: Recipe, dataset: Dataset, challenger: InferenceBackend, champion: InferenceBackend | None, *, seed: int
) -> Evaluation:
    """Judge the challenger by the recipe's gates.

    Args:
        champion: None for the first model.
        seed: Of the bootstrap.
    """
    gates, rows = recipe.file.gates, dataset.rows
    judge = _Judge(recipe, rows, challenger, champion, seed)
    field = dataset.holdout & dataset.current
    base = dataset.holdout & ~dataset.field
    today = field if champion is not None and field.any() else dataset.holdout
    current = judge.compare(today)
    on_base = judge.compare(base) if base.any() else None
    slices: dict[str, dict[str, Comparison]] = {name: judge.slices(name, today) for name in recipe.file.slices}
    if champion is None:
        outcome, reasons = _judge_first(current, gates)
    elif int(field.sum()) < recipe.file.dataset.current_rows:
        outcome = "undecided"
        have, need = int(field.sum()), recipe.file.dataset.current_rows
        reasons = [f"only {have} held-out rows show today's world; a comparison needs {need}: more labels are needed"]
    else:
        outcome, reasons = decide(current, on_base, slices, gates)
    return Evaluation(outcome, tuple(reasons), current, on_base, slices)


def decide(
    current: Comparison, base: Comparison | None, slices: Mapping[str, Mapping[str, Comparison]], gates: Gates
) -> tuple[str, list[str]]:
    """The outcome, ``better``, ``worse`` or ``undecided``, and its reasons in words. Pure."""
    assert current.difference is not None  # noqa: S101 - there is a champion
    assert current.low is not None  # noqa: S101
    assert current.high is not None  # noqa: S101
    facts = (
        f"on {current.rows} held-out rows of today's world the challenger is right on {current.challenger:.1%}, the "
        f"champion on {current.champion:.1%}: {_points(current.difference)} points "
        f"({gates.confidence:.0%} interval {_points(current.low)} to {_points(current.high)})"
    )
    faults = []
    if current.high < 0:
        faults.append(f"it is worse: {facts}")
    if base and base.difference is not None and base.difference < -gates.max_base_regression:
        faults.append(
            f"it forgets: on {base.rows} held-out imported rows {base.challenger:.1%} against {base.champion:.1%}, "
            f"a loss of more than {100 * gates.max_base_regression:.1f} points"
        )
    faults.extend(_lost_slices(slices, gates))
    if faults:
        return "worse", faults
    if current.low > 0 and current.difference >= gates.min_improvement:
        return "better", [facts]
    why = (
        "the interval includes no difference"
        if current.low <= 0
        else f"the gate asks for at least {_points(gates.min_improvement)} points"
    )
    return "undecided", [f"not shown to be better: {facts}; {why}"]


def _points(difference: float) -> str:
    """A difference of accuracies in percentage points."""
    return f"{100 * difference:+.1f}"


def _lost_slices(slices: Mapping[str, Mapping[str, Comparison]], gates: Gates) -> list[str]:
    """The slices that clearly got worse, in words.

    A slice is small and there are many: by the interval alone one of a dozen would look worse by chance. So each needs
    McNemar's exact test at the gate's confidence, shared out over the slices that are judged (Bonferroni).
    """
    judged = [
        (name, value, part)
        for name, parts in slices.items()
        for value, part in parts.items()
        if part.rows >= gates.slice_rows and part.difference is not None and part.p_value is not None
    ]
    return [
        f"{name} '{value}' gets worse: {part.challenger:.1%} against {part.champion:.1%} on {part.rows} rows, a loss "
        f"of more than {100 * gates.max_slice_regression:.1f} points, and not by chance (p = {part.p_value:.2g})"
        for name, value, part in judged
        if (part.difference or 0.0) < -gates.max_slice_regression
        and (part.p_value or 0.0) * len(judged) <= 1 - gates.confidence
    ]


def _judge_first(current: Comparison, gates: Gates) -> tuple[str, list[str]]:
    facts = f"the first model is right on {current.challenger:.1%} of {current.rows} held-out rows"
    if current.challenger >= gates.min_accuracy:
        return "first", [facts]
    return "worse", [f"{facts}; the gate asks for {gates.min_accuracy:.1%}"]


class _Judge:
    """Both models' answers on all rows, compared on any part of them."""

    def __init__(
        self,
        recipe: Recipe,
        rows: Rows,
        challenger: InferenceBackend,
        champion: InferenceBackend | None,
        seed: int,
    ) -> None:
        self._recipe, self._rows, self._seed = recipe, rows, seed
        self._challenger = self._correct(challenger)
        self._champion = None if champion is None else self._correct(champion)

    def compare(self, mask: NDArray[np.bool_]) -> Comparison:
        """The comparison on some rows, at least one."""
        rows = self._rows.take(mask)
        weights = rows.weights()
        challenger = self._challenger[mask]
        accuracy = float(np.average(challenger, weights=weights))
        if self._champion is None:
            return Comparison(len(rows), accuracy)
        champion = self._champion[mask]
        gained = challenger.astype(np.float64) - champion
        low, high = bootstrap_interval(
            gained, weights, rows.groups, confidence=self._recipe.file.gates.confidence, seed=self._seed
        )
        return Comparison(
            rows=len(rows),
            challenger=accuracy,
            champion=float(np.average(champion, weights=weights)),
            difference=float(np.average(gained, weights=weights)),
            low=low,
            high=high,
            p_value=mcnemar(int((gained > 0).sum()), int((gained < 0).sum())),
        )

    def slices(self, name: str, mask: NDArray[np.bool_]) -> dict[str, Comparison]:
        """The comparison by device, or by true class."""
        labels = np.array(self._recipe.file.labels, dtype=object)
        keys = self._rows.devices if name == "device" else labels[self._rows.targets]
        return {str(key): self.compare(mask & (keys == key)) for key in sorted(set(keys[mask]))}

    def _correct(self, backend: InferenceBackend) -> NDArray[np.bool_]:
        answers = predict(backend, self._rows.inputs)[self._recipe.task.output].argmax(axis=1)
        return np.asarray(answers == self._rows.targets)


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
