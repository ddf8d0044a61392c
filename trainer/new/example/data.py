"""The rows to begin with. Read your own files here; these are drawn by chance."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Temperature, pressure, flow and current of a pump in each state.
_USUAL = {
    "normal": (60.0, 4.0, 30.0, 8.0),
    "blocked": (75.0, 6.5, 12.0, 10.0),
    "leaking": (57.0, 2.8, 34.0, 7.5),
}
_SPREAD = (6.0, 0.6, 4.0, 0.6)
_PUMPS, _EACH = 40, 5


def base_rows() -> tuple[list[str], dict[str, NDArray[np.float32]], list[str]]:
    """Groups, inputs by name (axis 0 is the rows) and labels.

    Rows of one group (here: of one pump) fall on the same side of every split, so that a model is never judged on a
    subject that it has learnt.
    """
    rng = np.random.default_rng(0)
    groups, readings, labels = [], [], []
    for state, usual in _USUAL.items():
        for pump in range(_PUMPS):
            own = rng.normal(0.0, 0.5, size=4)
            for _ in range(_EACH):
                groups.append(f"{state}-{pump}")
                readings.append(np.array(usual) + np.array(_SPREAD) * (own + rng.normal(0.0, 0.6, size=4)))
                labels.append(state)
    return groups, {"readings": np.array(readings, dtype=np.float32)}, labels
