"""The verdict: champion against challenger on rows that neither was trained on, overall, by slice and on replay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.runtime.backend import InferenceBackend
from trainer.data.dataset import Dataset
from trainer.gates.comparison import Comparison, Judge
from trainer.recipe import Recipe
from trainer.recipe_file import Gates

# Weighted means of the same rows differ in the last bits.
_ROUNDING = 1e-9
UNDECIDED = "undecided"


@dataclass(frozen=True)
class Evaluation:
    """The verdict.

    Args:
        outcome: ``better``, ``worse`` or ``undecided``; ``first`` where it is good enough and had nothing to beat.
        reasons: In words, for a person.
        replay: By slice, of those that no later model may regress on.
    """

    outcome: str
    reasons: tuple[str, ...]
    current: Comparison
    base: Comparison | None
    slices: dict[str, dict[str, Comparison]]
    replay: dict[str, Comparison] = field(default_factory=dict)

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
            "replay": {name: comparison.as_json() for name, comparison in self.replay.items()},
        }

    def refused(self, faults: Sequence[str]) -> Evaluation:
        """The same, but that the challenger is refused for these reasons; the same where there are none."""
        if not faults:
            return self
        return replace(self, outcome="worse", reasons=(*faults, *self.reasons))


def evaluate(
    recipe: Recipe, dataset: Dataset, challenger: InferenceBackend, champion: InferenceBackend | None, *, seed: int
) -> Evaluation:
    """Judge the challenger by the recipe's gates.

    Args:
        champion: None for the first model.
        seed: Of the bootstrap.
    """
    gates, rows = recipe.file.gates, dataset.rows
    replayed = {name: mask for name, mask in dataset.replay.items() if mask.any()}
    judge = Judge.of_models(recipe, rows, challenger, champion, judged=judged_rows(dataset), seed=seed)
    recent = dataset.holdout & dataset.current
    base = dataset.holdout & ~dataset.field
    today = recent if champion is not None and recent.any() else dataset.holdout
    current = judge.compare(today)
    on_base = judge.compare(base) if base.any() else None
    slices: dict[str, dict[str, Comparison]] = {name: judge.slices(name, today) for name in recipe.file.slices}
    replay = {name: judge.compare(mask) for name, mask in replayed.items()}
    if champion is None:
        outcome, reasons = _judge_first(current, gates)
    elif lacking := too_few(recipe, dataset):
        outcome, reasons = UNDECIDED, [lacking]
    else:
        outcome, reasons = decide(current, on_base, slices, gates)
    found = Evaluation(outcome, tuple(reasons), current, on_base, slices, replay)
    return found.refused(_lost_replays(replay, gates))


def too_few(recipe: Recipe, dataset: Dataset) -> str:
    """Why no challenger can be compared with the champion on these rows, whatever it learns; empty where one can."""
    have, need = int((dataset.holdout & dataset.current).sum()), recipe.file.dataset.current_rows
    if have >= need:
        return ""
    return f"only {have} held-out rows show today's world; a comparison needs {need}: more labels are needed"


def compare_forms(
    recipe: Recipe, dataset: Dataset, small: InferenceBackend, full: InferenceBackend, *, seed: int
) -> tuple[Comparison, list[str]]:
    """A smaller form of a model against the model itself on all held-out and replayed rows.

    Returns:
        The comparison on the held-out rows, and in words why the smaller form loses too much; empty where it does not.
    """
    judged = judged_rows(dataset)
    judge = Judge.of_models(recipe, dataset.rows, small, full, judged=judged, seed=seed)
    return losses(judge, recipe, dataset, budget=recipe.file.gates.int8_budget, beside="full precision")


def judged_rows(dataset: Dataset) -> NDArray[np.bool_]:
    """The held-out and the replayed rows, bool[N]."""
    return np.asarray(np.any([dataset.holdout, *dataset.replay.values()], axis=0))


def losses(
    judge: Judge, recipe: Recipe, dataset: Dataset, *, budget: float, beside: str
) -> tuple[Comparison, list[str]]:
    """What a form of a model loses against the model itself.

    Args:
        judge: The form as the challenger, the model as the champion.
        budget: What it may lose on the held-out rows.
        beside: What the model itself is called.
    Returns:
        The comparison on the held-out rows, and in words why it loses too much; empty where it does not.
    """
    gates = recipe.file.gates
    overall = judge.compare(dataset.holdout)
    assert overall.difference is not None  # noqa: S101 - there are two
    assert overall.high is not None  # noqa: S101
    faults = []
    if overall.difference < -budget:
        faults.append(
            f"it is right on {overall.challenger:.1%} of {overall.rows} held-out rows, {beside} on "
            f"{overall.champion:.1%}; at most {100 * budget:.1f} points may be lost"
        )
    elif overall.high < 0:
        faults.append(f"it loses {-100 * overall.difference:.1f} points against {beside}, and not by chance")
    faults += _lost_slices({name: judge.slices(name, dataset.holdout) for name in recipe.file.slices}, gates)
    replayed = {name: mask for name, mask in dataset.replay.items() if mask.any()}
    faults += _lost_replays({name: judge.compare(mask) for name, mask in replayed.items()}, gates)
    return overall, faults


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
    return UNDECIDED, [f"not shown to be better: {facts}; {why}"]


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


def _lost_replays(replay: Mapping[str, Comparison], gates: Gates) -> list[str]:
    """The replay slices on which the challenger is right more rarely than the champion, in words.

    They stand for what must not come back: that a loss may be chance does not help it.
    """
    return [
        f"replay '{name}': {part.challenger:.1%} against {part.champion:.1%} of its {part.rows} rows; at most "
        f"{100 * gates.max_replay_regression:.1f} points may be lost there"
        for name, part in replay.items()
        if part.difference is not None and part.difference < -gates.max_replay_regression - _ROUNDING
    ]


def _judge_first(current: Comparison, gates: Gates) -> tuple[str, list[str]]:
    facts = f"the first model is right on {current.challenger:.1%} of {current.rows} held-out rows"
    if current.challenger >= gates.min_accuracy:
        return "first", [facts]
    return "worse", [f"{facts}; the gate asks for {gates.min_accuracy:.1%}"]
