"""Which waiting requests of one model run next, and together. Pure: time comes in as a number, nothing runs here.

The most urgent goes first, and within one priority who came first. The batch of that request is filled, in the same
order, with those that can be concatenated with it. It goes

- at once where it is full, or can be cut at one of the preferred sizes (the largest that there is);
- else when one of its requests has waited for the maximum delay, or could not wait so long before its deadline;
- but not while another batch of the model runs: those that wait grow into a larger batch meanwhile, which costs less
  than two small ones side by side on the same processors. A full batch has nothing to gain and may run beside it.
"""

from __future__ import annotations

import bisect
import collections
import dataclasses
import heapq
import itertools
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

from edge_agent.contract.errors import Busy
from edge_agent.contract.manifest import Batching, Overflow

T = TypeVar("T")

# Of requests that say nothing of their urgency: behind all that do.
_LEAST_URGENT = 1 << 64
# So many requests that have left may stay among the deadlines, however few wait.
_FEW = 32


@dataclasses.dataclass(slots=True, eq=False)
class Waiting(Generic[T]):
    """A request in the queue.

    Args:
        work: What the caller wants back when its turn comes.
        rows: Axis 0 of its inputs.
        key: Only requests of equal keys make a batch: their tensors agree in all but axis 0.
        priority: 1 is the most urgent; 0 ranks below all others.
        arrived_ns: On the caller's clock; ``deadline_ns`` likewise, 0 for none.
        queued: Whether it still waits.
    """

    work: T
    rows: int
    key: Hashable
    priority: int
    arrived_ns: int
    deadline_ns: int = 0
    queued: bool = False

    @property
    def rank(self) -> int:
        """Where its priority stands: less is sooner."""
        return self.priority or _LEAST_URGENT


class Batcher(Generic[T]):
    """The queue of one model; for one thread.

    Args:
        policy: Of the model's manifest.
        model: For errors.
    """

    def __init__(self, policy: Batching, model: str) -> None:
        self._policy, self._model = policy, model
        self._delay_ns = policy.max_delay_us * 1000
        self._preferred = frozenset(policy.preferred_rows)
        self._ranks: list[int] = []  # ascending
        self._queues: dict[int, collections.deque[Waiting[T]]] = {}
        self._deadlines: list[tuple[int, int, Waiting[T]]] = []  # a heap; entries that left stay a while
        self._numbers = itertools.count()
        self._size = 0

    def __len__(self) -> int:
        """Requests that wait."""
        return self._size

    def add(self, entry: Waiting[T]) -> Waiting[T] | None:
        """Let a request wait.

        Returns:
            The one that had to leave for it, if any.
        Raises:
            Busy: There is no room.
        """
        dropped = self._make_room(entry) if self._size >= self._policy.max_queue else None
        queue = self._queues.get(entry.rank)
        if queue is None:
            queue = self._queues[entry.rank] = collections.deque()
            bisect.insort(self._ranks, entry.rank)
        queue.append(entry)
        entry.queued = True
        self._size += 1
        if entry.deadline_ns:
            if len(self._deadlines) >= 2 * self._size + _FEW:  # else those that left would keep their tensors alive
                self._deadlines = [each for each in self._deadlines if each[2].queued]
                heapq.heapify(self._deadlines)
            heapq.heappush(self._deadlines, (entry.deadline_ns, next(self._numbers), entry))
        return dropped

    def remove(self, entry: Waiting[T]) -> bool:
        """Take out a request that nobody waits for any more; whether it was still there."""
        if not entry.queued:
            return False
        queue = self._queues[entry.rank]
        queue.remove(entry)
        if not queue:
            del self._queues[entry.rank]
            self._ranks.remove(entry.rank)
        entry.queued = False
        self._size -= 1
        return True

    def expired(self, now_ns: int) -> list[Waiting[T]]:
        """Take out the requests whose deadline has come; they are not to be run."""
        late: list[Waiting[T]] = []
        while self._deadlines and (self._deadlines[0][0] <= now_ns or not self._deadlines[0][2].queued):
            entry = heapq.heappop(self._deadlines)[2]
            if self.remove(entry):
                late.append(entry)
        return late

    def take(self, now_ns: int, *, running: bool) -> list[Waiting[T]]:
        """Take out what is to run together now; empty where nothing is.

        Args:
            running: Whether a batch of this model runs.
        """
        batch: list[Waiting[T]] = []
        for group in self._groups():
            if group.settled or (not running and group.due_ns <= now_ns):
                batch = group.entries[: group.cut] if group.cut else group.entries
                break
        for entry in batch:
            self.remove(entry)
        return batch

    def wake_at(self, *, running: bool) -> int | None:
        """When to ask again though nothing arrives and no batch ends, on the clock of the entries; None for never."""
        times = [self._deadlines[0][0]] if self._deadlines else []
        if not running:
            times += [group.due_ns for group in self._groups()]
        return min(times, default=None)

    def drain(self) -> list[Waiting[T]]:
        """Take out all that wait, in order."""
        left = list(self._in_order())
        for entry in left:
            self.remove(entry)
        return left

    def _make_room(self, entry: Waiting[T]) -> Waiting[T]:
        """The oldest of the least urgent leaves, unless the newcomer is less urgent still, or nobody is to leave."""
        last = self._ranks[-1]
        if self._policy.overflow is Overflow.DROP_OLDEST and entry.rank <= last:
            oldest = self._queues[last][0]
            self.remove(oldest)
            return oldest
        raise Busy(f"model '{self._model}': {self._size} requests wait already, which is all its queue holds")

    def _in_order(self) -> Iterator[Waiting[T]]:
        for rank in self._ranks:
            yield from self._queues[rank]

    def _groups(self) -> Iterator[_Group[T]]:
        """What could run together, by the most urgent of each; alone the first wherever it is full."""
        groups: dict[Hashable, _Group[T]] = {}
        first: _Group[T] | None = None
        for entry in self._in_order():
            group = groups.get(entry.key)
            if group is None:
                group = groups[entry.key] = _Group()
                first = first or group
            group.offer(entry, self._policy.max_rows, self._preferred, self._delay_ns)
            if first is not None and first.full:
                break
        yield from groups.values()


class _Group(Generic[T]):
    """Requests that fit together, as many as one batch holds.

    Args:
        cut: So many of them make the largest preferred size that they can; 0 for none.
        full: Whether the next one would not fit.
        due_ns: When they go even though they are few.
    """

    __slots__ = ("cut", "due_ns", "entries", "full", "rows")

    def __init__(self) -> None:
        self.entries: list[Waiting[T]] = []
        self.rows = self.cut = self.due_ns = 0
        self.full = False

    @property
    def settled(self) -> bool:
        """Whether it is as large as it should be."""
        return self.full or self.cut > 0

    def offer(self, entry: Waiting[T], max_rows: int, preferred: frozenset[int], delay_ns: int) -> None:
        """Put an entry in if it fits; after one that does not, none does: nobody is overtaken."""
        if self.full:
            return
        if self.entries and self.rows + entry.rows > max_rows:
            self.full = True
            return
        due_ns = entry.arrived_ns + delay_ns
        if entry.deadline_ns and entry.deadline_ns <= due_ns:
            due_ns = entry.arrived_ns  # if it waited for company it would not run at all
        self.due_ns = min(self.due_ns, due_ns) if self.entries else due_ns
        self.entries.append(entry)
        self.rows += entry.rows
        self.full = self.rows >= max_rows
        if self.rows in preferred:
            self.cut = len(self.entries)
