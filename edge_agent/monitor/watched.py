"""One package that has answered requests, and what becomes of its rows.

On the serving path a request is only noted down; when its block of requests is over, all of them are looked at
together: one numpy call for hundreds of rows takes a tenth of the time that it takes row by row.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Mapping
from typing import Any

from numpy.typing import NDArray

from edge_agent.contract.errors import MalformedRequest
from edge_agent.contract.manifest import Manifest
from edge_agent.contract.messages import Sample
from edge_agent.contract.profile import Feature
from edge_agent.contract.sampling import SamplingPolicy
from edge_agent.monitor.block import Block, Noted, Tensors
from edge_agent.monitor.predictions import Prediction, predictions_of
from edge_agent.monitor.remembered import AnsweredRows
from edge_agent.monitor.sampler import BLOCK_S, Draw, Rate, Sampler
from edge_agent.monitor.samples import row_of, travelling
from edge_agent.monitor.window import Window
from edge_agent.runtime.slots import LoadedModel

# A block ends when its time is over or so much memory is held, whichever is first.
_BLOCK_BYTES = 1024 * 1024
# Counting takes about a nanosecond per byte and feature: beyond this pace (14 images of 600 KB a second, 170 of 48 KB)
# rows are counted by chance, each with the same probability: watching large inputs must not slow down serving them.
_COUNTED_BYTES_PER_MINUTE = 60.0 * 8 * 1024 * 1024
# Of small rows all are counted up to this pace, and beyond it every second, third ... block of them: drift is seen in
# thousands of rows as well as in millions, and two blocks a second are no moment's view.
_COUNTED_ROWS_PER_MINUTE = 60.0 * 2000


@dataclasses.dataclass
class Watched:
    """A package under watch; not thread-safe. Holds no session: a replaced model's memory must come free.

    Args:
        task: Name of the output with the probabilities.
        inputs, outputs: Names of the tensors whose values may leave the device.
        room: Rows that the current block still takes; ``ends_at``: when it ends at the latest.
        copies: Of that room, what requests of one row may take with :meth:`copy`.
    """

    digest: str
    manifest: Manifest
    task: str
    features: tuple[Feature, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    block: Block
    sampler: Sampler
    lifetime_ms: int
    uniform: Callable[[], float] = random.random
    window: Window = dataclasses.field(default_factory=Window)
    room: int = 0
    copies: int = 0
    ends_at: float = 0.0
    _byte_rate: Rate = dataclasses.field(default_factory=Rate)
    _count_share: float = 1.0
    _due: float = dataclasses.field(default_factory=random.random)

    @classmethod
    def begin_watch(cls, loaded: LoadedModel, sampler: Sampler, policy: SamplingPolicy) -> Watched:
        """Watch a loaded model's package from now on."""
        signature, features, task = loaded.signature, loaded.reference.features, loaded.manifest.task.output
        return cls(
            digest=loaded.digest,
            manifest=loaded.manifest,
            task=task,
            features=features,
            inputs=travelling(signature.inputs),
            outputs=travelling(signature.outputs),
            block=Block(signature, _tensors(features, "input"), _tensors(features, "output") or (task,), task),
            sampler=sampler,
            lifetime_ms=int(policy.label_lifetime_s * 1000),
        )

    @property
    def name(self) -> str:
        """The model's name."""
        return self.manifest.name

    def begin(self, rows: int, now_s: float) -> None:
        """Begin a block, the first ``rows`` rows of which are here; the last one has been settled."""
        room = self.sampler.begin(rows, now_s)
        self.block.counting = self._is_due(now_s)
        self.room = min(room, max(rows, self.block.capacity))
        self.ends_at = now_s + BLOCK_S

    def note(self, noted: Noted, inputs: Tensors, outputs: Tensors) -> None:
        """Note an answered request of the current block."""
        block = self.block
        counts = self._count_share >= 1.0 or self.uniform() < self._count_share
        block.add(noted, inputs if counts else None, outputs)
        self.room = self.room - noted.rows if block.bytes < _BLOCK_BYTES else 0
        self.copies = self.room if block.copies_on else 0

    def is_over(self, rows: int, now_s: float) -> bool:
        """Whether the block ends before a request of so many rows."""
        return self.room < rows or now_s >= self.ends_at or not self.block.fits(rows)

    def settle(self, now_s: float, now_ms: int) -> AnsweredRows | None:
        """Look at the rows of the block that is over: count them, learn their rate; what is remembered of them."""
        self.room, self.copies, self.ends_at = 0, 0, 0.0
        if not self.block.ids:
            return None
        try:
            return self._counted(self.block, now_s, now_ms)
        finally:  # also where a model has given what cannot be counted: the next block is another
            self.block.clear()

    def _counted(self, block: Block, now_s: float, now_ms: int) -> AnsweredRows:
        found = predictions_of(block.probabilities())
        self.sampler.settle(found.margin, now_s)
        if not block.copies:
            per_minute = self._byte_rate.add(block.bytes * len(block.ids) / max(1, block.counted), now_s)
            self._count_share = min(1.0, _COUNTED_BYTES_PER_MINUTE / max(per_minute, 1.0))
        self.window.answered(len(block.ids), len(found.best), block.latencies_us)
        for inputs, outputs in block.batches():
            self.window.count(self.features, inputs, outputs)
        return AnsweredRows(
            package=self.digest,
            class_name=self.class_name,
            lifetime_ms=self.lifetime_ms,
            ids=block.ids,
            sizes=block.sizes,
            at_s=block.at_s,
            now=(now_s, now_ms),
            best=found.best,
            confidence=found.confidence,
            asked=block.asked(),
        )

    def _is_due(self, now_s: float) -> bool:
        """Whether the rows of this block are counted; large ones are drawn by lot, one by one."""
        if self.block.copies:
            self._due += min(1.0, _COUNTED_ROWS_PER_MINUTE / self.sampler.rows_per_minute(now_s))
            if self._due < 1.0:
                return False
            self._due -= 1.0
        return True

    def class_name(self, index: int) -> str:
        """The class with this index; the index itself where the model gives more classes than the task names."""
        labels = self.manifest.task.labels
        return labels[index] if index < len(labels) else str(index)

    def sample(
        self,
        row_id: str,
        prediction: Prediction,
        draw: Draw,
        *,
        inputs: Mapping[str, NDArray[Any]],
        outputs: Mapping[str, NDArray[Any]],
        row: int,
        group: str,
        now_ms: int,
    ) -> Sample:
        """A chosen row as it goes home."""
        return Sample(
            request_id=row_id,
            package=self.digest,
            at_ms=now_ms,
            reason=draw.reason,
            inclusion_probability=draw.probability,
            prediction=self.class_name(prediction.best),
            confidence=prediction.confidence,
            margin=prediction.margin,
            inputs=row_of(inputs, self.inputs, row),
            outputs=row_of(outputs, self.outputs, row),
            group=group,
            label_wanted=draw.label_wanted,
        )


def class_called(label: str | int, manifest: Manifest) -> str:
    """The class that the application means: by its name first, else by its index.

    Raises:
        MalformedRequest: The model has no such class.
    """
    labels = manifest.task.labels
    if str(label) in labels:
        return str(label)
    if isinstance(label, int) and 0 <= label < len(labels):
        return labels[label]
    known = ", ".join(labels[:20]) + (", ..." if len(labels) > 20 else "")
    raise MalformedRequest(f"label {str(label)[:80]!r}: the model has no such class; it has: {known}")


def _tensors(features: tuple[Feature, ...], side: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(feature.tensor for feature in features if feature.side == side))
