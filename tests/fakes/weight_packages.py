"""Packages with a file of many weights beside their small model: what deltas are made of."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.manifest import TENSORS_FILE
from edge_agent.contract.stored_tensors import (
    StoredFile,
    StoredTensor,
    StoredTensors,
    StoredType,
    encode_stored_tensors,
)
from edge_agent.runtime.package import Package
from tests.fakes.packages import make_package

WEIGHTS = "weights.bin"
COUNT = 100_000


def weights(*, updates: int = 0, unlike: bool = False) -> NDArray[np.float32]:
    """float32[COUNT]: a network, trained on a little ``updates`` times; or one that has nothing to do with it."""
    found = np.random.default_rng(9 if unlike else 8).normal(0, 0.05, COUNT)
    for number in range(updates):
        found = found + np.random.default_rng(100 + number).normal(0, 1e-5, COUNT)
    return np.asarray(found, dtype=np.float32)


def layout() -> dict[str, bytes]:
    """``tensors.json`` of a package of :data:`WEIGHTS`."""
    tensor = StoredTensor(name="w", dtype=StoredType.FP32, offset=0, count=COUNT)
    return {TENSORS_FILE: encode_stored_tensors(StoredTensors(files={WEIGHTS: StoredFile(tensors=(tensor,))}))}


def make_weighty(folder: Path, *, version: str, content: bytes, described: bool = True, **settings: Any) -> Package:
    """A package with ``content`` as its file of weights, and ``tensors.json`` where it is described."""
    files = {WEIGHTS: content, **(layout() if described else {})}
    return make_package(folder, version=version, seed=int(version), extra_files=files, **settings)


def sha256(content: bytes) -> str:
    """As manifests name files."""
    return hashlib.sha256(content).hexdigest()
