"""The digest of what a dataset's rows really are."""

from __future__ import annotations

import hashlib

import msgspec
import numpy as np
from numpy.typing import NDArray

from trainer.data.rows import Rows
from trainer.data.split import Sides


def content_digest(
    labels: tuple[str, ...],
    rows: Rows,
    digests: list[bytes],
    sides: Sides,
    replay: dict[str, NDArray[np.bool_]],
) -> str:
    """SHA-256 of all that training and judging see of labelled rows, in the order of their keys."""
    side = np.where(sides.holdout, "h", np.where(sides.validation, "v", np.where(sides.idle, "i", "t")))
    total = hashlib.sha256()
    for at in np.argsort(np.array(rows.keys, dtype=str), kind="stable"):
        row = [
            rows.devices[at], rows.requests[at], labels[rows.targets[at]], digests[at], str(side[at]), rows.groups[at],
            rows.packages[at], rows.predictions[at], int(rows.at_ms[at]), float(rows.probability[at]),
            sorted(name for name, mask in replay.items() if mask[at]),
        ]  # fmt: skip
        total.update(msgspec.msgpack.encode(row))
    return total.hexdigest()
