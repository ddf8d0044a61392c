"""Rows of live requests that wait to be tried on a candidate: few, of bounded size, and put there without waiting."""

from __future__ import annotations

import collections
import threading
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

Tensors = Mapping[str, NDArray[Any]]

# Rows of one request are much alike: a few of them tell what all would.
ROWS_PER_REQUEST = 8
# So much is copied (1 us), and lets the request's own memory go; of more the request's memory is kept alive instead.
_COPIED_BYTES = 16 * 1024
# Text is counted element by element.
_TEXT_ELEMENTS = 256


class RowQueue:
    """A bounded queue; :meth:`offer` may be called from any thread.

    Args:
        most_requests: Requests that may wait.
        most_bytes: What they may hold in memory together. A single request may be larger, while no other waits: its
            memory was there to serve it.
    Attributes:
        dropped: Requests that found no room; two threads may count one between them.
    """

    def __init__(self, *, most_requests: int = 64, most_bytes: int = 8 << 20) -> None:
        self._most_requests, self._most_bytes = most_requests, most_bytes
        self._waiting: collections.deque[tuple[Tensors, int]] = collections.deque()
        self._bytes = 0
        self._lock = threading.Lock()
        self.dropped = 0

    def offer(self, inputs: Tensors) -> bool:
        """Keep some rows of a request where there is room; whether they were kept. Never waits.

        Args:
            inputs: As an application sent them; nobody may write to them any more.
        """
        if len(self._waiting) >= self._most_requests or not self._lock.acquire(blocking=False):
            self.dropped += 1
            return False
        try:
            kept = _some_rows(inputs)
            if kept is None or (self._waiting and self._bytes + kept[1] > self._most_bytes):
                self.dropped += 1
                return False
            self._waiting.append(kept)
            self._bytes += kept[1]
            return True
        finally:
            self._lock.release()

    def take(self) -> Tensors | None:
        """The rows that have waited longest; None where none do."""
        with self._lock:
            if not self._waiting:
                return None
            inputs, size = self._waiting.popleft()
            self._bytes -= size
            return inputs

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def bytes(self) -> int:
        """What they hold in memory."""
        return self._bytes


def _some_rows(inputs: Tensors) -> tuple[Tensors, int] | None:
    """A few rows from all over a request, and the bytes that they keep in memory; None where that is hard to tell."""
    rows = min([len(array) for array in inputs.values()], default=0)
    if not rows:
        return None
    step = -(-rows // ROWS_PER_REQUEST)
    some = {name: array[::step] for name, array in inputs.items()}
    size = sum([array.nbytes for array in some.values()])
    for array in some.values():
        if array.dtype.kind == "O":
            if array.size > _TEXT_ELEMENTS:
                return None
            try:
                size += sum(map(len, array.ravel()))
            except TypeError:  # neither text nor bytes
                return None
    if size <= _COPIED_BYTES:
        return {name: array.copy() for name, array in some.items()}, size
    return some, sum([array.nbytes for array in inputs.values()])
