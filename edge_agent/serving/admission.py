"""How much the local API works on at once: beyond it a request is refused before its body is read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from edge_agent.contract.errors import Busy

RETRY_AFTER_S = 1


class Admission:
    """Room for requests that leave the event loop. Used by the loop's thread alone, so it needs no lock.

    Args:
        max_requests: Requests that may be read, wait or run at once.
        max_bytes: What their bodies may take in memory together; one body alone is always let in.
    """

    def __init__(self, *, max_requests: int, max_bytes: int) -> None:
        self._max_requests, self._max_bytes = max_requests, max_bytes
        self._requests = self._bytes = 0

    @contextlib.contextmanager
    def admit(self, size: int) -> Iterator[None]:
        """Hold room for a request whose body takes ``size`` bytes, for the length of a ``with`` block.

        Raises:
            Busy: There is none.
        """
        if self._requests >= self._max_requests:
            raise Busy(
                f"{self._requests} requests are being worked on, the limit (max_pending under [api] in the agent's "
                "settings): ask again in a moment, or send fewer at once"
            )
        if self._requests and self._bytes + size > self._max_bytes:
            raise Busy(
                f"the bodies being worked on take {self._bytes} bytes, with this one more than the limit of "
                f"{self._max_bytes} (twice max_body_mib under [api]): ask again in a moment, or send fewer at once"
            )
        self._requests += 1
        self._bytes += size
        try:
            yield
        finally:
            self._requests -= 1
            self._bytes -= size
