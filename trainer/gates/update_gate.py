"""Whether rounded weights answer as the exact ones do, on rows that neither was trained on.

Three things are asked of them, each beside the exact weights on the same rows: no accuracy that is not noise, overall,
by slice and on replay; answers that are near; confidence that is as well calibrated. Nearness is the sharpest: a few
hundred rows show a loss of accuracy late, but that probabilities moved they show at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.runtime.backend import InferenceBackend
from trainer.data.dataset import Dataset
from trainer.errors import ParityFailed
from trainer.gates.comparison import Comparison, Judge, predict, right_rows
from trainer.gates.evaluate import judged_rows, losses
from trainer.gates.parity import check_probabilities
from trainer.gates.statistics import calibration_error
from trainer.recipe import Recipe

# Of few rows one that tips over is more than any budget: so many are noise where all else is near.
_FEW_ROWS = 2.0


@dataclass(frozen=True)
class Nearness:
    """Rounded weights beside the exact ones.

    Args:
        comparison: On the held-out rows: the rounded ones as challenger, the exact ones as champion.
        distances: By output, how far the answers are apart on average; see :func:`distance`.
        agreement: Share of the rows that get the same class.
        calibration: Expected calibration error, exact and rounded.
        faults: Why the rounded ones are not released, in words; empty where they may be.
    """

    comparison: Comparison
    distances: dict[str, float]
    agreement: float
    calibration: tuple[float, float]
    faults: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """What ``evaluation.json`` says of it."""
        exact, rounded = self.calibration
        return {
            "comparison": self.comparison.as_json(),
            "distances": {name: float(f"{value:.3g}") for name, value in self.distances.items()},
            "agreement": round(self.agreement, 4),
            "calibration_error": {"exact": round(exact, 4), "released": round(rounded, 4)},
        }


class UpdateGate:
    """Holds rounded weights against the exact ones, which are asked once.

    Args:
        exact: The model with its weights as they were trained.
        seed: Of the bootstrap.
    """

    def __init__(self, recipe: Recipe, dataset: Dataset, exact: InferenceBackend, *, seed: int) -> None:
        self._recipe, self._dataset, self._seed = recipe, dataset, seed
        self._judged = judged_rows(dataset)
        self._inputs = dict(dataset.rows.take(self._judged).inputs)
        self._answers = predict(exact, self._inputs)
        self._right = right_rows(dataset.rows, self._judged, self._answers[recipe.task.output])
        weights = dataset.rows.take(dataset.holdout).weights()
        effective = float(weights.sum() ** 2 / (weights**2).sum())  # Kish 1965
        self._budget = max(recipe.file.release.update_budget, _FEW_ROWS / effective)

    def judge(self, rounded: InferenceBackend) -> Nearness:
        """The rounded weights beside the exact ones."""
        recipe, dataset, output = self._recipe, self._dataset, self._recipe.task.output
        limits = recipe.file.release
        answers = predict(rounded, self._inputs)
        right = right_rows(dataset.rows, self._judged, answers[output])
        judge = Judge(recipe, dataset.rows, right, self._right, seed=self._seed)
        comparison, faults = losses(judge, recipe, dataset, budget=self._budget, beside="the exact weights")
        try:
            check_probabilities(output, answers[output])
        except ParityFailed as error:
            faults.append(str(error))
        distances = {
            name: distance(exact, answers[name], probabilities=name == output) for name, exact in self._answers.items()
        }
        faults += _far(distances, limits.update_distance)
        calibration = self._calibration(self._answers, self._right), self._calibration(answers, right)
        if not calibration[1] - calibration[0] <= limits.update_distance:
            faults.append(
                f"its confidence is off by {calibration[1]:.3f}, that of the exact weights by {calibration[0]:.3f}; at "
                f"most {limits.update_distance:g} may be added"
            )
        same = np.asarray(self._answers[output].argmax(axis=1) == answers[output].argmax(axis=1))
        return Nearness(comparison, distances, float(same.mean()), calibration, tuple(faults))

    def _calibration(self, answers: Mapping[str, NDArray[Any]], right: NDArray[np.bool_]) -> float:
        """Expected calibration error on the held-out rows; NaN where an answer is no number."""
        held = self._dataset.holdout[self._judged]
        sure = answers[self._recipe.task.output].max(axis=1)[held]
        return calibration_error(sure, right[self._judged][held]) if np.isfinite(sure).all() else np.nan


def distance(exact: NDArray[Any], found: NDArray[Any], *, probabilities: bool) -> float:
    """How far answers are apart on average over the rows; NaN where one of them is no number.

    Of probabilities, [N, classes], the total variation: half the sum of the differences, the share of the probability
    that went to another class. Of other numbers the difference in standard deviations of the exact ones. Of what is no
    number the share of unlike values.
    """
    if exact.dtype.kind not in "fiu":
        return float(np.asarray(exact != found).mean())
    a, b = exact.astype(np.float64), found.astype(np.float64)
    apart = np.abs(a - b)
    if probabilities:
        return float(apart.sum(axis=1).mean() / 2)
    apart[np.isnan(a) & np.isnan(b)] = 0.0
    spread = float(np.nanstd(a))
    return float(apart.mean()) / spread if spread else float(apart.any())


def _far(distances: Mapping[str, float], limit: float) -> list[str]:
    return [
        f"its answers '{name}' are {value:.3g} from the exact weights' on average; at most {limit:g} is allowed"
        for name, value in distances.items()
        if not value <= limit  # NaN is none of the two
    ]
