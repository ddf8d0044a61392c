"""Which messages of a stream are under way, and when to send them again. Pure: it is told the time.

A broker's PUBACK proves nothing: brokers drop beyond their queue limits. Only the server's acknowledgement counts, so
each stream is a sliding window with go-back-N: no progress for a while, or an acknowledgement that repeats what was
known while messages are under way (the server saw a gap), and all beyond the watermark is sent again.
"""

from __future__ import annotations

import collections


class Window:
    """The window of one stream.

    Args:
        messages, size_bytes: At most this much is under way (but always one message).
        timeout_s: Without progress for so long, send again; doubles with each repetition up to ``longest_timeout_s``,
            so that a server that is down is not flooded.
        gap_delay_s: How long after a repeated acknowledgement; more than a round trip, for the acknowledgement of what
            is on its way may follow, and then nothing is missing.
    """

    def __init__(
        self,
        *,
        messages: int = 16,
        size_bytes: int = 256 * 1024,
        timeout_s: float = 10.0,
        longest_timeout_s: float = 120.0,
        gap_delay_s: float = 1.0,
    ) -> None:
        self._messages, self._size_bytes = messages, size_bytes
        self._timeout_s, self._longest_timeout_s, self._gap_delay_s = timeout_s, longest_timeout_s, gap_delay_s
        self._under_way: collections.deque[tuple[int, int]] = collections.deque()  # (sequence, bytes)
        self._bytes_under_way = 0
        self._watermark = 0
        self._current_timeout_s = timeout_s
        self._due_at: float | None = None

    @property
    def sent(self) -> int:
        """The sequence beyond which to read on from the outbox."""
        return self._under_way[-1][0] if self._under_way else self._watermark

    @property
    def room(self) -> int:
        """How many further messages may be sent now."""
        if self._bytes_under_way >= self._size_bytes:
            return 0
        return self._messages - len(self._under_way)

    @property
    def room_bytes(self) -> int:
        """How many further bytes may be sent now."""
        return max(0, self._size_bytes - self._bytes_under_way)

    @property
    def due_at(self) -> float | None:
        """When :meth:`rewind_if_due` has something to do; None while nothing is under way."""
        return self._due_at

    def send(self, sequence: int, size_bytes: int, now: float) -> None:
        """A message goes out."""
        self._under_way.append((sequence, size_bytes))
        self._bytes_under_way += size_bytes
        if self._due_at is None:
            self._due_at = now + self._current_timeout_s

    def acknowledge(self, watermark: int, now: float) -> None:
        """The server has committed up to ``watermark``."""
        if watermark > self._watermark:
            self._watermark = watermark
            while self._under_way and self._under_way[0][0] <= watermark:
                self._bytes_under_way -= self._under_way.popleft()[1]
            self._current_timeout_s = self._timeout_s
            self._due_at = now + self._current_timeout_s if self._under_way else None
        elif self._due_at is not None:
            self._due_at = min(self._due_at, now + self._gap_delay_s)

    def rewind_if_due(self, now: float) -> bool:
        """Whether all that is under way is given up for lost, to be sent again from the watermark."""
        if self._due_at is None or now < self._due_at:
            return False
        self._current_timeout_s = min(self._longest_timeout_s, self._current_timeout_s * 2)
        self._clear()
        return True

    def restart(self, *, forget: bool = False, hasten: bool = True) -> None:
        """A new connection: nothing is under way.

        Args:
            forget: The watermark too, for a new epoch began.
            hasten: Begin with the shortest timeout again, for it was the line that hindered, and not the server.
        """
        if hasten:
            self._current_timeout_s = self._timeout_s
        if forget:
            self._watermark = 0
        self._clear()

    def _clear(self) -> None:
        self._under_way.clear()
        self._bytes_under_way = 0
        self._due_at = None
