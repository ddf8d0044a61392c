"""The connections of one event loop: how many there may be, who is too slow, who is still there at the end."""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from edge_agent.serving.busy_poll import BusyPoll

_log = logging.getLogger(__name__)

# Who comes beyond the limit is told so and may read it; beyond this many of those nobody is told anything.
_MAX_REFUSED = 32
# A request with a body up to about this comes in one piece; of a larger one no more than this is copied once more than
# needed, which costs a few us. An image of 64 x 64 pixels in single precision has 48 KiB.
_RECEIVED_AT_ONCE = 64 * 1024


class Connection(Protocol):
    """One application's connection, of any protocol; called in the event loop's thread."""

    def sweep(self, now: float) -> None:
        """Look at the clock (the loop's time, in seconds) and close the connection where its peer is too slow."""

    def drain(self) -> None:
        """Close once what is in flight has been answered; at once where nothing is."""

    def abort(self) -> None:
        """Close now, whatever is in flight."""


class Connections:
    """All connections on all sockets of one server. Used by its loop's thread alone.

    Timeouts are found by one sweep over all connections: a timer per request would cost every request 1-2 us.

    Args:
        limit: Most connections at once.
        sweep_s: Seconds between two sweeps, and so how late a timeout may be found.
        busy_poll: Told of every answer, and of each request, or of the first in a turn of the loop; may keep the loop
            awake for the next one.
    """

    def __init__(self, limit: int, *, sweep_s: float = 0.5, busy_poll: BusyPoll | None = None) -> None:
        self.limit, self.sweep_s = limit, sweep_s
        poll = busy_poll or BusyPoll()
        self.heard, self.answered = poll.heard, poll.answered
        # Received into by one connection after the other: each takes out what it needs before its callback returns.
        self.received_bytes = bytearray(_RECEIVED_AT_ONCE)
        self.received = memoryview(self.received_bytes)
        self._members: set[Connection] = set()
        self._refused: set[Connection] = set()
        self._draining = False
        self._empty: asyncio.Future[None] | None = None

    def __len__(self) -> int:
        return len(self._members)

    @property
    def several(self) -> bool:
        """Whether there is more than one, so that requests of different connections may meet."""
        return len(self._members) > 1

    def add(self, connection: Connection) -> bool:
        """Take a connection in; False where there is no room for it, or the server stops."""
        if self._draining or len(self._members) >= self.limit:
            return False
        self._members.add(connection)
        return True

    def add_refused(self, connection: Connection) -> bool:
        """Let one that :meth:`add` refused read why; False where there are too many of those: close it at once."""
        if len(self._refused) >= _MAX_REFUSED:
            return False
        self._refused.add(connection)
        return True

    def remove(self, connection: Connection) -> None:
        """A connection is closed; harmless where it was never taken in."""
        self._members.discard(connection)
        self._refused.discard(connection)
        self._tell_if_empty()

    def sweep(self, now: float) -> None:
        """Have every connection look at the clock; the server calls it every ``sweep_s``."""
        for connection in [*self._members, *self._refused]:
            _sweep(connection, now)

    def drain(self) -> None:
        """Take no more connections, and close each one once it has its answer."""
        self._draining = True
        for connection in [*self._members, *self._refused]:
            connection.drain()

    def abort(self) -> None:
        """Close every connection now."""
        for connection in [*self._members, *self._refused]:
            connection.abort()

    async def emptied(self, timeout_s: float) -> bool:
        """Wait until every connection is closed; False where some are left after ``timeout_s``."""
        self._empty = asyncio.get_running_loop().create_future()
        self._tell_if_empty()
        done, _ = await asyncio.wait([self._empty], timeout=timeout_s)
        return bool(done)

    def _tell_if_empty(self) -> None:
        if self._empty is not None and not self._empty.done() and not self._members and not self._refused:
            self._empty.set_result(None)


def _sweep(connection: Connection, now: float) -> None:
    try:
        connection.sweep(now)
    except Exception:  # noqa: BLE001 - logged; else nobody would ever look at any connection again
        _log.exception("a connection could not be looked at, and is closed")
        connection.abort()
