"""A dataset version: labelled rows, and which of them teach, stop, judge and are replayed."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_agent.contract.lake import IMPORTED
from trainer.data.row_file import shapes_of
from trainer.data.row_store import RowStore, write_store
from trainer.data.rows import Rows, StoredInputs
from trainer.data.streaming import MemoryRows, RowSource, StoredRows


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A dataset version.

    Args:
        digest: Its name: the versions of the tables, the query and the split rule.
        content: SHA-256 of what the labelled rows really are and on which sides they fall. It is the same where other
            versions of the tables hold the same rows: where only another model's rows came, or files were compacted.
        samples_version, labels_version, replay_version: Delta versions of the tables; -1: there is none yet.
        rows: All labelled rows, the oldest first.
        holdout, validation: bool[N]: never trained on; used to stop training early. The rest is trained on.
        idle: bool[N]: neither judges nor is trained on: see :class:`trainer.data.split.Sides`.
        replay: By slice, bool[N]: rows that no later model may regress on; never trained on.
        labels_until_ms: Labels given later are not known to it; None: all are.
        signature: Digest of the signature that the rows were decoded by.
        current: bool[N]: field rows of today's world.
        recent: Sampled rows of today's world, labelled or not; ``unseen``: bool, those that are not trained on.
        unmatched: Labels whose sample is not in the lake.
        set_aside: Samples that break the signature, and are not used; ``complaint`` says what is wrong with the first.
        copies: Rows that are not trained on because their very inputs are held out.
    """

    digest: str
    content: str
    signature: str
    samples_version: int
    labels_version: int
    rows: Rows
    holdout: NDArray[np.bool_]
    validation: NDArray[np.bool_]
    idle: NDArray[np.bool_]
    current: NDArray[np.bool_]
    recent: Rows
    unseen: NDArray[np.bool_]
    unmatched: int
    set_aside: int = 0
    complaint: str = ""
    copies: int = 0
    labels_until_ms: int | None = None
    replay_version: int = -1
    replay: dict[str, NDArray[np.bool_]] = dataclasses.field(default_factory=dict)

    @property
    def field(self) -> NDArray[np.bool_]:
        """bool[N]: rows that devices sent, as against imported ones."""
        return np.asarray(self.rows.devices != IMPORTED)

    @property
    def train(self) -> NDArray[np.bool_]:
        """bool[N]: rows that are trained on."""
        return ~(self.holdout | self.validation | self.idle)

    def summary(self) -> dict[str, Any]:
        """What ``evaluation.json`` and the card say of it."""
        return {
            "digest": self.digest,
            "content": self.content,
            "samples_version": self.samples_version,
            "labels_version": self.labels_version,
            "rows": len(self.rows),
            "imported": int((~self.field).sum()),
            "field": int(self.field.sum()),
            "current": int(self.current.sum()),
            "train": int(self.train.sum()),
            "validation": int(self.validation.sum()),
            "holdout": int(self.holdout.sum()),
            "idle": int(self.idle.sum()),
            "copies": self.copies,
            "replay": {name: int(mask.sum()) for name, mask in self.replay.items()},
            "labels_without_sample": self.unmatched,
            "set_aside": self.set_aside,
        }

    def source(self, mask: NDArray[np.bool_], weights: NDArray[Any]) -> RowSource:
        """Some rows as batches, from where they lie: in memory or on disk.

        Args:
            mask: bool[N]: which.
            weights: What each of the N rows counts, [N].
        """
        if isinstance(self.rows.inputs, StoredInputs):
            return StoredRows(self.rows.inputs.store, chosen=mask, weights=weights)
        chosen = self.rows.take(mask)
        return MemoryRows(chosen.inputs, chosen.targets, weights[mask])

    def store(self, cache: Path) -> RowStore:
        """All rows in a folder, written once, so that other processes can train on them (:class:`StoredRows`).

        Args:
            cache: The store is a folder of its own in it; rows that lie on disk already stay where they are.
        Raises:
            DatasetError: The disk is full, or the folder cannot be written.
        """
        if isinstance(self.rows.inputs, StoredInputs):
            return self.rows.inputs.store
        inputs = self.rows.inputs
        tensors = shapes_of(inputs)
        named = hashlib.sha256(msgspec.json.encode([self.content, self.signature, tensors], order="deterministic"))
        return write_store(
            cache / named.hexdigest()[:40],
            self.rows.keys,
            self.rows.targets,
            tensors,
            lambda rows: {name: array[rows] for name, array in inputs.items()},
        )
