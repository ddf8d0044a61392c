"""One package that has answered requests, and what becomes of its rows.

On the serving path a request is only noted down; when its block of requests is over, all of them are looked at
together: one numpy call for hundreds of rows takes a tenth of the time that it takes row by row.
"""

from __future__ import annotations

import dataclasses
import functools
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
from edge_agent.monitor.block import COUNTED_ROWS, NO_DRAWS, Block, Held, Noted, Tensors
from edge_agent.monitor.predicted import Predicted
from edge_agent.monitor.predictions import Prediction, prediction, predictions, predictions_of
from edge_agent.monitor.remembered import AnsweredRows
from edge_agent.monitor.sampler import BLOCK_S, Draw, Lot, Rate, Sampler
from edge_agent.monitor.samples import row_of, travelling
from edge_agent.monitor.window import Window
from edge_agent.runtime.slots import LoadedModel

log = logging.getLogger(__name__)

# A block ends when its time is over or so much memory is held, whichever is first.
_BLOCK_BYTES = 512 * 1024
# Counting takes about a nanosecond per byte and feature: beyond this pace (3 images of 600 KB a second, 42 of 48 KB)
# rows are counted by chance, each with the same probability: watching large inputs must not slow down serving them.
_COUNTED_BYTES_PER_MINUTE = 60.0 * 2 * 1024 * 1024
# Of small rows all are counted up to this pace, and beyond it a block of them now and then: drift is seen in thousands
# of rows as well as in millions, and two blocks a second are no moment's view.
_COUNTED_ROWS_PER_MINUTE = 60.0 * 2000
# Hand-overs that wait to be copied together: done one by one, between requests, each finds the processor's caches full
# of other things and takes five times as long. So few hold no memory to speak of.
_PENDING = 16
# Makes one of all its members, in their order, in half the time that Held takes.
_as_held: Callable[[tuple[object, ...]], Held] = functools.partial(tuple.__new__, Held)
_NOBODY_LOOKS: Tensors = {}
# Predictions of so many rows take as long one by one as together.
_FEW_ROWS = 8


@dataclasses.dataclass
class Watched:
    """A package under watch; not thread-safe. Holds no session: a replaced model's memory must come free.

    Args:
        task: Name of the output with the probabilities.
        inputs, outputs: Names of the tensors whose values may leave the device.
        predicted: Classes of the rows that were looked at.
        sampler: That of the model, whose packages share it; ``lot``: what the current block's rows are drawn with.
        room: Rows that the current block still takes; ``ends_at``: when it ends at the latest.
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
    lot: Lot
    lifetime_ms: int
    keep: Callable[[str, Sample], None]
    now_ms: Callable[[], int]
    uniform: Callable[[], float] = random.random
    window: Window = dataclasses.field(default_factory=Window)
    predicted: Predicted = dataclasses.field(default_factory=Predicted)
    room: int = 0
    ends_at: float = 0.0
    _asks: bool = True
    _holding: bool = False  # whether the current block takes requests of one row by :meth:`hold`
    _passes: bool = False
    _drawing: bool = False  # whether there are chances among what is pending
    _most_pending: int = 1
    _pending: list[Held] = dataclasses.field(default_factory=list)
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
            lot=Lot.none(),
            lifetime_ms=int(policy.label_lifetime_s * 1000),
            keep=keep,
            now_ms=now_ms,
            # Where a request brings much that its block does not keep, none is held.
            _most_pending=_PENDING if block.is_all or not block.copies else 1,
            _passes=block.is_all and block.copies,
        )

    @property
    def name(self) -> str:
        """The model's name."""
        return self.manifest.name

    @property
    def is_empty(self) -> bool:
        """Whether no request waits to be looked at."""
        return not (self.block.ids or self._pending)

    def begin(self, rows: int, now_s: float) -> None:
        """Begin a block, the first ``rows`` rows of which are here; the last one has been settled."""
        block = self.block
        self.lot = self.sampler.begin(rows, now_s)
        room = self.lot.room
        block.counting = self._is_due(min(room, block.capacity), now_s)
        self._asks = self.sampler.policy.labels_per_minute > 0
        self.room = min(room, max(rows, block.capacity if block.counting else block.uncounted_capacity))
        self._holding = True
        self.ends_at = now_s + BLOCK_S

    def note(self, noted: Noted, inputs: Tensors, outputs: Tensors) -> None:
        """Note an answered request of the current block."""
        self._absorb(noted.at_s)
        block = self.block
        self._see(inputs)
        block.add(noted, inputs if self._counts() else None, outputs)
        self.room = self.room - noted.rows if block.bytes < _BLOCK_BYTES else 0
        self._holding = block.takes

    def note_passing(
        self,
        request_ids: Sequence[str],
        rows: int,
        now_s: float,
        inputs: Tensors,
        outputs: Tensors,
        *,
        took: float | Mapping[int, int],
    ) -> bool:
        """Note requests of one row each where nothing but that is to be done; False where there is more to do.

        At a fast pace nearly every request comes this way: the fewest steps, as the models that run in between leave
        nothing of them in the processor's caches.
        """
        lot = self.lot
        if not (self._holding and self._passes) or rows > self.room or rows > lot.gap or now_s >= self.ends_at:
            return False
        lot.gap -= rows
        self.room -= rows
        pending = self._pending
        if not self.block.counting:
            inputs = _NOBODY_LOOKS
        pending.append(_as_held((request_ids, rows, now_s, inputs, outputs, took, True, NO_DRAWS, ())))
        if len(pending) >= _PENDING:
            self._absorb(now_s)
        return True

    def may_hold(self, rows: int, now_s: float) -> bool:
        """Whether the current block has room for requests of one row each, so many of them, in :meth:`hold`."""
        return self._holding and rows <= self.room and now_s < self.ends_at

    def may_wait(self, rows: int) -> bool:
        """Whether nothing of the next rows of this block is to be known before their requests are answered.

        Without a budget for labels nobody is asked for one, and what is chosen shows when the rows are looked at.
        """
        return not self._asks or self.lot.pass_by(rows)

    def hold(
        self,
        request_ids: Sequence[str],
        rows: int,
        now_s: float,
        inputs: Tensors,
        outputs: Tensors,
        *,
        took: float | Mapping[int, int],
        draws: Mapping[int, Draw] = NO_DRAWS,
    ) -> None:
        """Note requests of one row each, which :meth:`may_hold` has allowed; see :class:`Held`.

        Args:
            draws: Where the application may be asked for labels, those made already.
        """
        pending, block = self._pending, self.block
        chances: Sequence[tuple[int, float]] = ()
        if not self._asks and not self.lot.pass_by(rows):
            chances = self.lot.chances(rows)
            self._drawing = True
        self._see(inputs)
        # All or none of a run are counted: each of its rows keeps the memory of all.
        counted = block.counting and self._counts()
        if not chances and not counted:
            inputs = _NOBODY_LOOKS  # their memory serves the next request at once, still in the processor's cache
        pending.append(Held(request_ids, rows, now_s, inputs, outputs, took, counted, draws, chances))
        self.room -= rows
        if len(pending) >= self._most_pending or (inputs and not block.copies):
            self._absorb(now_s)
            if block.bytes >= _BLOCK_BYTES:
                self.room = 0

    def choose(
        self,
        row_id: Callable[[int], str],
        inputs: Tensors,
        outputs: Tensors,
        chances: Sequence[tuple[int, float]],
        *,
        at_s: float,
        now_s: float,
        group: str,
    ) -> dict[int, Draw]:
        """Draw among rows by their random numbers, and keep those chosen as samples.

        Args:
            at_s: When they were answered, on the steady clock; ``now_s``: the time now.
        """
        probabilities = outputs[self.task]
        together = predictions(probabilities) if len(chances) > _FEW_ROWS else None
        draws: dict[int, Draw] = {}
        for row, chance in chances:
            found = prediction(probabilities[row : row + 1]) if together is None else together.row(row)
            draw = self.sampler.decide(self.lot, chance, found.margin, now_s)
            if draw is None:
                continue
            draws[row] = draw
            at_ms = self.now_ms() - int((now_s - at_s) * 1000)
            sample = self.sample(
                row_id(row), found, draw, inputs=inputs, outputs=outputs, row=row, group=group, at_ms=at_ms
            )
            self.keep(self.name, sample)
        return draws

    def is_over(self, rows: int, now_s: float) -> bool:
        """Whether the block ends before a request of so many rows."""
        if self._pending and rows > 1 and self.block.copies:  # they will be copied, which does not mix with it
            return True
        return self.room < rows or now_s >= self.ends_at or not self.block.fits(rows)

    def settle(self, now_s: float) -> AnsweredRows | None:
        """Look at the rows of the block that is over: count them, learn their rate; what is remembered of them."""
        self._absorb(now_s)
        self.room, self.ends_at, self._holding = 0, 0.0, False
        if not self.block.ids:
            return None
        try:
            return self._counted(self.block, now_s)
        finally:  # also where a model has given what cannot be counted: the next block is another
            self.block.clear()

    def _absorb(self, now_s: float) -> None:
        """Draw among what is held, and copy it, so that its memory comes free."""
        held, self._pending = self._pending, []
        if not held:
            return
        drawing, self._drawing = self._drawing, False
        block = self.block
        first = len(block.ids)
        try:
            block.take(held)
        except Exception:
            # A model may give anything. They were requests all the same, and others come with them.
            if len(held) > 1:
                for one in held:
                    self._pending, self._drawing = [one], drawing
                    self._absorb(now_s)
                return
            log.exception("answers of model %s %s could not be noted", self.name, self.manifest.version)
            self.window.answered(held[0].rows, 0, ())
        else:
            if drawing:
                self._look(held, first, now_s)
        latency = self.window.latency
        for one in held:
            took = one.took
            if isinstance(took, float):
                block.latencies_us.append(took)
            else:
                for bucket, requests in took.items():
                    latency[bucket] += requests

    def _look(self, held: Sequence[Held], first: int, now_s: float) -> None:
        """Draw among rows that were held.

        Args:
            first: Which request of the block the first one is.
        """
        for one in held:
            if one.chances:
                name = one.request_ids.__getitem__
                draws = self.choose(name, one.inputs, one.outputs, one.chances, at_s=one.at_s, now_s=now_s, group="")
                self.block.drawn(first, draws)
            first += one.rows

    def _counted(self, block: Block, now_s: float) -> AnsweredRows:
        probabilities, rows = block.probabilities(), block.rows
        self._last_rows = rows
        if block.counting or not block.lasts:
            found = predictions_of(probabilities)
            self.sampler.settle(self.lot, found.margin, now_s)
            self.predicted.add(found.best)
        else:
            found = None
            self.sampler.passed(self.lot, rows, now_s)
        if not block.copies:
            per_minute = self._byte_rate.add(self._seen_bytes, now_s)
            self._seen_bytes = 0
            self._count_share = min(1.0, _COUNTED_BYTES_PER_MINUTE / max(per_minute, 1.0))
        self.window.answered(len(block.ids), rows, block.latencies_us)
        self.window.count(self.features, block.batches())
        return AnsweredRows(
            package=self.digest,
            class_name=self.class_name,
            lifetime_ms=self.lifetime_ms,
            ids=block.ids,
            sizes=block.sizes,
            at_s=block.at_s,
            now=(now_s, self.now_ms()),
            rows=rows,
            found=probabilities if found is None else found,
            asked=block.asked(),
        )

    def _see(self, inputs: Tensors) -> None:
        if not self.block.copies:
            self._seen_bytes += sum([array.nbytes for array in inputs.values()])

    def _counts(self) -> bool:
        """Whether the next request is counted, where not all are."""
        return self._count_share >= 1.0 or self.uniform() < self._count_share

    def _is_due(self, rows: int, now_s: float) -> bool:
        """Whether a block of so many rows is to be counted; large ones are drawn by lot, one by one."""
        if not self.block.copies:
            return True
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
        at_ms: int,
    ) -> Sample:
        """A chosen row as it goes home."""
        return Sample(
            request_id=row_id,
            package=self.digest,
            at_ms=at_ms,
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
