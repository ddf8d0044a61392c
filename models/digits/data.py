"""The 1,797 handwritten digits that scikit-learn carries, in three parts that never mix.

``base`` is what the first model learns from and is compared with; ``stream`` is what cameras show, and may be sampled,
labelled and trained on; ``heldout`` is for judging alone: nothing ever trains on it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Share of each class by part: about 700, 700 and 397 rows.
_SHARES = {"base": 0.39, "stream": 0.39, "heldout": 0.22}
_SEED = 20_240_501
_CLASSES = 10


@dataclass(frozen=True, slots=True)
class Digits:
    """Some of the digits.

    Args:
        rows: Row numbers in scikit-learn's set, int64[N]: the name of the subject, and so of the split's group.
        images: float32[N, 1, 8, 8] in 0..16.
        labels: int64[N] in 0..9.
    """

    rows: NDArray[np.int64]
    images: NDArray[np.float32]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)


def group(row: int) -> str:
    """The group of a digit: all pictures of it, however shown, stay on one side of a split."""
    return f"digits-{row}"


def load(part: str) -> Digits:
    """The digits of one part, in ascending order of their row.

    Args:
        part: ``base``, ``stream`` or ``heldout``.
    Raises:
        KeyError: There is no such part.
    """
    from sklearn.datasets import load_digits

    found = load_digits()
    labels = found.target.astype(np.int64)
    rows = _parts(labels)[part]
    images = found.images[rows].astype(np.float32)[:, None]
    return Digits(rows=rows, images=images, labels=labels[rows])


def base_rows() -> tuple[list[str], dict[str, NDArray[np.float32]], list[str]]:
    """What the lake is begun with: groups, inputs by name (axis 0 is N) and labels, as the signature has them."""
    base = load("base")
    return [group(int(row)) for row in base.rows], {"image": base.images}, [str(label) for label in base.labels]


def _parts(labels: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    """Row numbers by part: each class is permuted with a fixed seed and dealt out by share."""
    rng = np.random.default_rng(_SEED)
    dealt: dict[str, list[NDArray[np.int64]]] = {part: [] for part in _SHARES}
    ends = np.cumsum(list(_SHARES.values()))
    for digit in range(_CLASSES):
        shuffled = rng.permutation(np.flatnonzero(labels == digit))
        cuts = np.round(ends[:-1] * len(shuffled)).astype(int)
        for part, rows in zip(_SHARES, np.split(shuffled, cuts), strict=True):
            dealt[part].append(rows)
    return {part: np.sort(np.concatenate(rows)) for part, rows in dealt.items()}
