"""Two models on the same rows, both on the runtime that devices use; the interval of their difference.

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
from trainer.data.rows import Rows
from trainer.gates.statistics import bootstrap_interval, mcnemar, wilson_interval
from trainer.recipe import Recipe

_BATCH_ROWS = 256


@dataclass(frozen=True)
class Comparison:
    """Two models on the same rows; accuracies and differences in 0..1.

    Args:
        sure: Interval of the challenger's own accuracy, as if its rows had not been drawn with unlike probabilities.
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
    sure: tuple[float, float] | None = None

    def as_json(self) -> dict[str, Any]:
        """The same for ``evaluation.json``, to four digits."""
        found: dict[str, Any] = {"rows": self.rows, "challenger": round(self.challenger, 4)}
        if self.sure is not None:
            found["challenger_interval"] = [round(each, 4) for each in self.sure]
        if self.difference is not None and self.champion is not None and self.low is not None and self.high is not None:
            found["champion"] = round(self.champion, 4)
            found["difference"] = round(self.difference, 4)
            found["interval"] = [round(self.low, 4), round(self.high, 4)]
            found["p_value"] = self.p_value
        return found


def predict(backend: InferenceBackend, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """What the model answers, by output name; axis 0 is N, N >= 1."""
    tensors = dict(inputs)  # of rows on disk: read once
    rows = len(next(iter(tensors.values())))
    parts = [
        backend.infer({name: array[at : at + _BATCH_ROWS] for name, array in tensors.items()})
        for at in range(0, rows, _BATCH_ROWS)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def right_rows(rows: Rows, judged: NDArray[np.bool_], probabilities: NDArray[Any]) -> NDArray[np.bool_]:
    """Which rows are answered rightly, bool[N]; False where they were not asked.

    Args:
        judged: Which were asked, bool[N].
        probabilities: Of these, [rows of judged, classes].
    """
    right = np.zeros(len(rows), dtype=bool)
    right[judged] = probabilities.argmax(axis=1) == rows.targets[judged]
    return right


class Judge:
    """Which rows two models answer rightly, compared on any part of the rows that judge.

    Args:
        challenger, champion: Whether each row is answered rightly, bool[N]; without a champion nothing is compared.
        seed: Of the bootstrap.
    """

    def __init__(
        self,
        recipe: Recipe,
        rows: Rows,
        challenger: NDArray[np.bool_],
        champion: NDArray[np.bool_] | None,
        *,
        seed: int,
    ) -> None:
        self._recipe, self._rows, self._seed = recipe, rows, seed
        self._challenger, self._champion = challenger, champion

    @classmethod
    def of_models(
        cls,
        recipe: Recipe,
        rows: Rows,
        challenger: InferenceBackend,
        champion: InferenceBackend | None,
        *,
        judged: NDArray[np.bool_],
        seed: int,
    ) -> Judge:
        """Both models asked about the rows of ``judged``, bool[N]; no others may be compared."""
        inputs = rows.take(judged).inputs

        def right(backend: InferenceBackend) -> NDArray[np.bool_]:
            return right_rows(rows, judged, predict(backend, inputs)[recipe.task.output])

        return cls(recipe, rows, right(challenger), None if champion is None else right(champion), seed=seed)

    def compare(self, mask: NDArray[np.bool_]) -> Comparison:
        """The comparison on some rows, at least one."""
        rows = self._rows.take(mask)
        weights = rows.weights()
        challenger = self._challenger[mask]
        accuracy = float(np.average(challenger, weights=weights))
        # Rows of unlike weights tell as much as fewer of like weights (Kish 1965).
        effective = float(weights.sum() ** 2 / (weights**2).sum())
        sure = wilson_interval(accuracy, effective, confidence=self._recipe.file.gates.confidence)
        if self._champion is None:
            return Comparison(len(rows), accuracy, sure=sure)
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
            sure=sure,
        )

    def slices(self, name: str, mask: NDArray[np.bool_]) -> dict[str, Comparison]:
        """The comparison by device, or by true class."""
        labels = np.array(self._recipe.file.labels, dtype=object)
        keys = self._rows.devices if name == "device" else labels[self._rows.targets]
        return {str(key): self.compare(mask & (keys == key)) for key in sorted(set(keys[mask]))}
