"""One package that has answered requests, and what becomes of its rows.

On the serving path a request is only noted down; when its block of requests is over, all of them are looked at
together: one numpy call for hundreds of rows takes a tenth of the time that it takes row by row.
"""

from __future__ import annotations

import dataclasses
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from edge_agent.contract.errors import MalformedRequest
from edge_agent.contract.manifest import Manifest
from edge_agent.contract.messages import Sample
from edge_agent.contract.profile import Feature
from edge_agent.contract.sampling import SamplingPolicy
from edge_agent.monitor.block import COUNTED_ROWS, NO_DRAWS, Block, Tensors
from edge_agent.monitor.predicted import Predicted
from edge_agent.monitor.predictions import Prediction, prediction, predictions, predictions_of
from edge_agent.monitor.remembered import AnsweredRows
from edge_agent.monitor.sampler import BLOCK_S, Draw, Rate, Sampler
from edge_agent.monitor.samples import row_of, travelling
from edge_agent.monitor.window import Window
from edge_agent.runtime.slots import LoadedModel

log = logging.getLogger(__name__)

# A block ends when its time is over or so much memory is held, whichever is first.
_BLOCK_BYTES = 512 * 1024
# Counting takes about a nanosecond per byte and feature: beyond this pace (3 images of 600 KB a second, 42 of 48 KB)
# rows are counted by chance, each with the same probability: watching large inputs must not slow down serving them.
_COUNTED_BYTES_PER_MINUTE = 60.0 * 2 * 1024 * 1024
# Of small rows all are counted up to this pace, and beyond it a block of them each second: drift is seen in thousands
# of rows as well as in millions. At 65,000 rows a second each thousand that is counted costs them 0.3 to 0.5 %.
_COUNTED_ROWS_PER_MINUTE = 60.0 * 1000
# Predictions of so many rows take as long one by one as together.
_FEW_ROWS = 8


@dataclasses.dataclass
class Watched:
    """A package under watch; not thread-safe. Holds no session: a replaced model's memory must come free.

    Args:
        task: Name of the output with the probabilities.
        inputs, outputs: Names of the tensors whose values may leave the device.
        predicted: Classes of the rows that were looked at.
        block: What was noted since the last look.
        sampler: That of the model, whose packages share it.
        keep: Takes the model's name and a sample; ``now_ms``: gives the Unix time in milliseconds.
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
    keep: Callable[[str, Sample], None]
    now_ms: Callable[[], int]
    uniform: Callable[[], float] = random.random
    window: Window = dataclasses.field(default_factory=Window)
    predicted: Predicted = dataclasses.field(default_factory=Predicted)
    _byte_rate: Rate = dataclasses.field(default_factory=Rate)
    _seen_bytes: int = 0  # of the current block's inputs, where not all are counted
    _count_share: float = 1.0
    _owed: float = COUNTED_ROWS  # rows that are still to be counted: to begin with so many, for a burst
    _last_rows: int = 0

    @classmethod
    def begin_watch(
        cls,
        loaded: LoadedModel,
        sampler: Sampler,
        policy: SamplingPolicy,
        *,
        keep: Callable[[str, Sample], None],
        now_ms: Callable[[], int],
    ) -> Watched:
        """Watch a loaded model's package from now on."""
        signature, features, task = loaded.signature, loaded.reference.features, loaded.manifest.task.output
        block = Block(signature, _tensors(features, "input"), _tensors(features, "output") or (task,), task)
        return cls(
            digest=loaded.digest,
            manifest=loaded.manifest,
            task=task,
            features=features,
            inputs=travelling(signature.inputs),
            outputs=travelling(signature.outputs),
            block=block,
            sampler=sampler,
            lifetime_ms=int(policy.label_lifetime_s * 1000),
            keep=keep,
            now_ms=now_ms,
        )

    @property
    def name(self) -> str:
        """The model's name."""
        return self.manifest.name

    @property
    def is_empty(self) -> bool:
        """Whether no request waits to be looked at."""
        return not self.block.count

    def is_over(self, rows: int, now_s: float, *, several: bool) -> bool:
        """Whether the block ends before so many rows.

        Args:
            several: Whether they are those of one request, which do not mix with copied ones.
        """
        block = self.block
        return rows > block.room or now_s >= block.ends_at or (several and block.copies and block.count > 0)

    def begin(self, rows: int, now_s: float, *, several: bool) -> None:
        """Begin a block, the first ``rows`` rows of which are here; the last one has been settled."""
        block = self.block
        copying = block.copies and not several
        self._byte_rate.begin(now_s)
        lot = self.sampler.begin(rows, now_s)
        counting = not block.copies or self._is_due(min(lot.room, block.capacity) if copying else rows, now_s)
        block.begin(lot, rows, counting=counting, copying=copying, ends_at=now_s + BLOCK_S)

    def note(
        self,
        request_id: str,
        rows: int,
        now_s: float,
        inputs: Tensors,
        outputs: Tensors,
        *,
        buckets: Mapping[int, int],
        group: str,
    ) -> Mapping[int, Draw]:
        """Note a request of several rows in the current block, and draw among them: by row, those that were chosen."""
        block = self.block
        self._hold(request_id, (rows,), now_s, inputs, outputs)
        if block.copies:  # which it does not mix with
            block.room = 0
        self.window.took(buckets)
        draws = self._draw(lambda row: f"{request_id}/{row}", rows, inputs, outputs, now_s=now_s, group=group)
        if draws:
            block.drawn(block.count - 1, draws)
        return draws

    def take(
        self,
        request_ids: Sequence[str],
        rows: int,
        now_s: float,
        inputs: Tensors,
        outputs: Tensors,
        *,
        buckets: Mapping[int, int],
        group: str,
    ) -> Mapping[int, Draw]:
        """As :meth:`note`, of requests of one row each.

        Args:
            buckets: How many took how long, by the buckets of :mod:`edge_agent.contract.latency`.
        """
        block = self.block
        self.window.took(buckets)
        try:
            if block.copies:
                block.take(request_ids, rows, now_s, inputs, outputs)
                block.room -= rows
            else:
                self._hold(request_ids if rows > 1 else request_ids[0], [1] * rows, now_s, inputs, outputs)
        except Exception:
            # A model may give anything. They were requests all the same.
            log.exception("answers of model %s %s could not be noted", self.name, self.manifest.version)
            self.window.requests += rows
            self.window.rows += rows
            return NO_DRAWS
        draws = self._draw(request_ids.__getitem__, rows, inputs, outputs, now_s=now_s, group=group)
        for row, draw in draws.items():
            block.drawn(block.count - rows + row, {0: draw})
        return draws

    def _hold(
        self, request_ids: str | Sequence[str], sizes: Sequence[int], now_s: float, inputs: Tensors, outputs: Tensors
    ) -> None:
        block = self.block
        if not block.copies:
            self._seen_bytes += sum([array.nbytes for array in inputs.values()])
        # All or none of a run are counted: each of its rows keeps the memory of all.
        block.hold(request_ids, sizes, now_s, inputs if block.counting and self._counts() else None, outputs)
        block.room = block.room - sum(sizes) if block.bytes < _BLOCK_BYTES else 0

    def _draw(
        self,
        row_id: Callable[[int], str],
        rows: int,
        inputs: Tensors,
        outputs: Tensors,
        *,
        now_s: float,
        group: str,
    ) -> Mapping[int, Draw]:
        lot = self.block.lot
        if lot.pass_by(rows):
            return NO_DRAWS
        try:
            return self._choose(row_id, inputs, outputs, lot.chances(rows), now_s=now_s, group=group)
        except Exception:
            log.exception("answers of model %s %s could not be drawn among", self.name, self.manifest.version)
            return NO_DRAWS

    def _choose(
        self,
        row_id: Callable[[int], str],
        inputs: Tensors,
        outputs: Tensors,
        chances: Sequence[tuple[int, float]],
        *,
        now_s: float,
        group: str,
    ) -> dict[int, Draw]:
        """Draw among rows by their random numbers, and keep those chosen as samples."""
        probabilities = outputs[self.task]
        together = predictions(probabilities) if len(chances) > _FEW_ROWS else None
        draws: dict[int, Draw] = {}
        for row, chance in chances:
            found = prediction(probabilities[row : row + 1]) if together is None else together.row(row)
            draw = self.sampler.decide(self.block.lot, chance, found.margin, now_s)
            if draw is None:
                continue
            draws[row] = draw
            sample = self.sample(row_id(row), found, draw, inputs=inputs, outputs=outputs, row=row, group=group)
            self.keep(self.name, sample)
        return draws

    def settle(self, now_s: float) -> AnsweredRows | None:
        """Look at the rows of the block that is over: count them, learn their rate; what is remembered of them."""
        if not self.block.count:
            self.block.clear()
            return None
        try:
            return self._counted(self.block, now_s)
        finally:  # also where a model has given what cannot be counted: the next block is another
            self.block.clear()

    def _counted(self, block: Block, now_s: float) -> AnsweredRows:
        probabilities, rows = block.probabilities(), block.rows
        self._last_rows = rows
        self.window.requests += block.count
        self.window.rows += rows
        self.window.took(dict(enumerate(block.latency)))
        if block.counting or not block.lasts:
            found = predictions_of(probabilities)
            self.sampler.settle(block.lot, found.margin, now_s)
            self.predicted.add(found.best)
        else:
            found = None
            self.sampler.passed(block.lot, rows, now_s)
        if not block.copies:
            per_minute = self._byte_rate.add(self._seen_bytes, now_s)
            self._seen_bytes = 0
            self._count_share = min(1.0, _COUNTED_BYTES_PER_MINUTE / max(per_minute, 1.0))
        self.window.count(self.features, block.batches())
        return AnsweredRows(
            package=self.digest,
            class_name=self.class_name,
            lifetime_ms=self.lifetime_ms,
            ids=block.ids,
            sizes=block.sizes,
            now=(now_s, self.now_ms()),
            rows=rows,
            found=probabilities if found is None else found,
            asked=block.asked(),
        )

    def _counts(self) -> bool:
        """Whether the next request is counted, where not all are."""
        return self._count_share >= 1.0 or self.uniform() < self._count_share

    def _is_due(self, rows: int, now_s: float) -> bool:
        """Whether a block of so many small rows is to be counted."""
        share = _COUNTED_ROWS_PER_MINUTE / self.sampler.rows_per_minute(now_s)
        if share >= 1.0:
            return True
        self._owed += share * self._last_rows
        if self._owed < rows:
            return False
        self._owed -= rows
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
    ) -> Sample:
        """A chosen row, answered just now, as it goes home."""
        return Sample(
            request_id=row_id,
            package=self.digest,
            at_ms=self.now_ms(),
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
