"""The local engine: threads over the parts, as many as there are processors.

Reading Parquet, running the model and writing let go of Python's lock, so that threads share the model's weights and
the memory's bound. Where fewer parts are left than threads, several answer chunks of one.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence

from trainer.batch.chunks import Chunks
from trainer.batch.model import BatchModel
from trainer.batch.parts import OpenPart, Stage
from trainer.batch.plan import Part, PartDone, Plan

# Input bytes that one thread holds at a time; and rows, where they are tiny.
_CHUNK_BYTES = 4 << 20
_CHUNK_ROWS = 16_384


def chunk_rows(model: BatchModel) -> int:
    """Rows read at once: whole inferences, about 4 MiB."""
    return max(
        model.batch_rows, min(_CHUNK_ROWS, _CHUNK_BYTES // model.row_bytes) // model.batch_rows * model.batch_rows
    )


class LocalEngine:
    """Answers parts by threads of this process.

    Args:
        chunks: What answers a chunk.
        workers: Threads.
        chunk_rows: Rows read at once.
    """

    def __init__(self, chunks: Chunks, *, workers: int, chunk_rows: int) -> None:
        self._chunks, self._workers, self._chunk_rows = chunks, workers, chunk_rows

    def answer(
        self,
        plan: Plan,
        parts: Sequence[Part],
        stage: Stage,
        *,
        on_rows: Callable[[int], None],
        on_done: Callable[[PartDone], None],
    ) -> None:
        """Answer parts; returns when all are done.

        Args:
            on_rows: Told how many rows more were answered, from any thread.
            on_done: Told each part that is done, from any thread, one at a time.
        Raises:
            ShoalError: The first thing that went wrong; what was done until then is marked.
        """
        crew = _Crew(lambda part: self.open(plan, part, stage), parts, on_rows, on_done)
        count = max(1, self._workers)
        threads = [threading.Thread(target=crew.work, name=f"batch-{at}", daemon=True) for at in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        crew.end()

    def open(self, plan: Plan, part: Part, stage: Stage) -> OpenPart:
        """Begin a part."""
        return OpenPart(plan, part, stage, self._chunks, chunk_rows=self._chunk_rows)


class _Crew:
    """Threads that share what there is to do."""

    def __init__(
        self,
        begin: Callable[[Part], OpenPart],
        parts: Sequence[Part],
        on_rows: Callable[[int], None],
        on_done: Callable[[PartDone], None],
    ) -> None:
        self._begin, self._on_rows, self._on_done = begin, on_rows, on_done
        self._waiting = deque(parts)
        self._open: dict[OpenPart, int] = {}  # and how many threads are at it
        self._exhausted: set[OpenPart] = set()
        self._changed, self._telling = threading.Condition(), threading.Lock()
        self._error: BaseException | None = None

    def work(self) -> None:
        """What each thread does."""
        try:
            while (part := self._join()) is not None:
                while self._error is None and (chunk := part.next()) is not None:
                    self._on_rows(part.answer(chunk))
                self._leave(part)
        except BaseException as error:  # noqa: BLE001 - told to whoever waits for the threads
            with self._changed:
                self._error = self._error or error

    def end(self) -> None:
        """Close what was left open, and raise what went wrong."""
        if self._error is None:
            return
        for part in self._open:
            part.abandon()
        raise self._error

    def _join(self) -> OpenPart | None:
        """A part of one's own while there are some; else the one with the fewest threads."""
        with self._changed:
            if self._error is not None:
                return None
            part: OpenPart | None = None
            if self._waiting:
                part = self._begin(self._waiting.popleft())
            elif left := [one for one in self._open if one not in self._exhausted]:
                part = min(left, key=lambda one: self._open[one])
            if part is not None:
                self._open[part] = self._open.get(part, 0) + 1
            return part

    def _leave(self, part: OpenPart) -> None:
        """There is nothing more to read of it; the last thread to leave closes it."""
        with self._changed:
            self._exhausted.add(part)
            self._open[part] -= 1
            last = not self._open[part] and self._error is None
            if last:
                del self._open[part]
                self._exhausted.remove(part)
        if last:
            done = part.finish()
            with self._telling:
                self._on_done(done)
