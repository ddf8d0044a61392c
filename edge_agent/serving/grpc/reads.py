"""Whose message is received next, so that neither large messages nor silent callers are too many at once.

How long a message is, is not known before it is whole; neither is whether any of it has come; and a read that has
begun can only be ended with its call. So few begin at once, and large messages come a few at a time while the others
wait with their senders, whom flow control stops: 40 calls of 16 MB took 1.1 GB of memory, which the process kept. What
does not come gives its turn to the next and is awaited beside them; and of those too there may be only so many.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Hashable
from typing import Any

import grpc.aio

from edge_agent.contract.errors import Busy, DeadlineExceeded

Context = grpc.aio.ServicerContext[Any, Any]

_AT_ONCE = 4
# Four messages of 16 MB come within a second where the line carries 64 MB/s.
_TURN_S = 1.0
# Between two messages a stream is silent most of the time: its turn keeps other such streams waiting for nothing.
_NEXT_TURN_S = 0.1
# While others wait behind somebody silent. A small message has come before its call is looked at, and needs 1 or 2 ms.
# 256 silent calls so hold up whoever comes after them for a second or two, once.
_SHORT_TURN_S = 0.01
# What all whose turn is over may send together: they may have been silent, and then all send at once.
_LATE_BYTES = 256 << 20
# A stream whose last message was no longer is expected to send another such one, and needs no turn. It may do
# otherwise, so of such streams there may be only twice as many as of others.
_SMALL_BYTES = 1 << 20


class Reads:
    """Receives messages in the event loop's thread.

    Calls whose message is still awaited when their turn is over are late. Where they are too many one gives way: of the
    callers that have most of them the newest one, for the others' messages are nearer to their end.
    """

    def __init__(self) -> None:
        self._first, self._next = _Turns(_TURN_S), _Turns(_NEXT_TURN_S)
        # Who is late, and what it counts as: a stream with small messages 1, all others 2.
        self._late: dict[asyncio.Future[None], tuple[Hashable, int]] = {}
        self._late_at_most = 2

    def limit(self, *, max_calls: int, max_bytes: int) -> None:
        """How many may be late follows from the longest message, and is no more than half of all calls."""
        self._late_at_most = max(2, 2 * min(round(_LATE_BYTES / max_bytes), max_calls // 4))

    async def read(
        self, context: Context, caller: Hashable, within_s: float, *, last_bytes: int | None = None
    ) -> bytes | None:
        """The next message of a call; None where it sends no more.

        Args:
            caller: Whoever is to give way before others do, when it has many calls that send nothing.
            within_s: How long to wait for it, once it is this call's turn.
            last_bytes: Length of the message before it; None for the first.
        Raises:
            DeadlineExceeded: It does not come.
            Busy: It does not come, and too many others do not either.
        """
        is_small = last_bytes is not None and last_bytes <= _SMALL_BYTES
        if is_small:
            reading, left_s = _begin(context), within_s
        else:
            reading, left_s = await (self._first if last_bytes is None else self._next).begin(context, within_s)
        if not reading.done() and left_s > 0:
            await self._wait_late(reading, caller, 1 if is_small else 2, left_s)
        if not reading.done():
            raise DeadlineExceeded(f"the call's message did not arrive within {within_s:g} s")
        message = reading.result()
        return message if isinstance(message, bytes) else None

    async def _wait_late(self, reading: asyncio.Future[Any], caller: Hashable, counts: int, for_s: float) -> None:
        giving_way: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._late[giving_way] = caller, counts
        while sum(each for _, each in self._late.values()) > self._late_at_most:
            held: Counter[Hashable] = Counter()
            for its, each in self._late.values():
                held[its] += each
            most = max(held.values())
            newest = next(each for each, (its, _) in reversed(self._late.items()) if held[its] == most)
            del self._late[newest]
            newest.set_result(None)
        try:
            await asyncio.wait((reading, giving_way), timeout=for_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._late.pop(giving_way, None)
        if giving_way.done() and not reading.done():
            raise Busy(
                "too many calls send nothing, or slowly, and of those this one came last: ask again in a moment, or "
                "keep fewer open (with a smaller max_body_mib under [api] there may be more)"
            )


class _Turns:
    """A few at once begin to read, and keep others waiting no longer than a turn lasts."""

    def __init__(self, turn_s: float) -> None:
        self._free, self._turn_s = asyncio.Semaphore(_AT_ONCE), turn_s
        self._waiting, self._came_at = 0, 0.0
        # A turn passed in which nothing came from anybody, and others wait since: not each of them may take as long.
        # Where large messages come one after the other it is no haste: they would be read all at once.
        self._hurried = False

    async def begin(self, context: Context, within_s: float) -> tuple[asyncio.Future[Any], float]:
        """A read whose turn is over, done or not, and the seconds that are left of ``within_s``."""
        self._waiting += 1
        try:
            await self._free.acquire()
        finally:
            self._waiting -= 1
        turn_s = min(_SHORT_TURN_S if self._hurried else self._turn_s, within_s)
        try:
            reading = _begin(context)
            await asyncio.wait((reading,), timeout=turn_s)
        finally:
            self._free.release()
        now = asyncio.get_running_loop().time()
        if reading.done():
            self._came_at = now
        self._hurried = self._waiting > 0 and (self._hurried or now - self._came_at > self._turn_s / 2)
        return reading, within_s - turn_s


def _begin(context: Context) -> asyncio.Future[Any]:
    # Never cancelled, though nobody may wait for it any more: it ends with its call, and lets go of what has come.
    reading = asyncio.ensure_future(context.read())
    reading.add_done_callback(_look_at)
    return reading


def _look_at(reading: asyncio.Future[Any]) -> None:
    if not reading.cancelled():
        reading.exception()  # else asyncio logs that nobody did; of a call that has ended nobody wants to know
