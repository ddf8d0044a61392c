"""How much the local API works on at once: beyond it a request is refused, where that shows before its body is read."""

from __future__ import annotations

from types import TracebackType

from edge_agent.contract.errors import Busy

# So little counts as a request, not as bytes: it is let in though large bodies, which may arrive slowly, take all there
# is.
SMALL_BYTES = 64 * 1024


class OpenRoom:
    """Room that a request needs no promise for: small, and answered at once. One object serves all of them."""

    __slots__ = ("limit_bytes",)

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes

    def release(self) -> None:
        """Nothing was taken."""


class HeldRoom:
    """Room held for one request until :meth:`release`, or for the length of a ``with`` block."""

    __slots__ = ("_admission", "_places", "_size", "limit_bytes")

    def __init__(self, admission: Admission, size: int, limit_bytes: int) -> None:
        self._admission, self._size, self.limit_bytes = admission, size, limit_bytes
        self._places = 0

    def begin(self) -> None:
        """Take a place among the requests that are worked on, once the request is whole.

        Raises:
            Busy: There is none.
        """
        self._admission.take_place()
        self._places = 1

    def release(self) -> None:
        """Give the room back; once."""
        self._admission.give_back(self._size, self._places)

    def __enter__(self) -> None:
        """It is held since it was made."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class Admission:
    """Room for requests that leave the event loop. Used by the loop's thread alone, so it needs no lock.

    Args:
        max_requests: Requests that may wait or run at once.
        max_bytes: What their bodies, and those on their way, may take in memory together; one body alone is always let
            in, and small ones are.
    """

    def __init__(self, *, max_requests: int, max_bytes: int) -> None:
        self._max_requests, self._max_bytes = max_requests, max_bytes
        self.requests = self.bytes = self.refused = 0

    def admit(self, size: int) -> HeldRoom:
        """Hold room, and a place, for a request whose body takes ``size`` bytes and is whole.

        Raises:
            Busy: There is none.
        """
        room = self.hold(size)
        room.begin()
        return room

    def hold(self, size: int, *, limit_bytes: int | None = None) -> HeldRoom:
        """Hold room for a body on its way: it takes no place yet, for its sender may be slow.

        Args:
            limit_bytes: Longest body that may come; ``size`` where None.
        Raises:
            Busy: There is none, or no place now for the request itself.
        """
        self._find_place()
        if self.bytes and size > SMALL_BYTES and self.bytes + size > self._max_bytes:
            self.refused += 1
            raise Busy(
                f"the bodies being worked on take {self.bytes} bytes, with this one more than the limit of "
                f"{self._max_bytes} (twice max_body_mib under [api]): ask again in a moment, or send fewer at once"
            )
        self.bytes += size
        return HeldRoom(self, size, size if limit_bytes is None else limit_bytes)

    def take_place(self) -> None:
        """A request begins; called by its room.

        Raises:
            Busy: There are as many as may be.
        """
        self._find_place()
        self.requests += 1

    def give_back(self, size: int, places: int) -> None:
        """A request is over, or will never come; called by its room."""
        self.requests -= places
        self.bytes -= size

    def _find_place(self) -> None:
        if self.requests >= self._max_requests:
            self.refused += 1
            raise Busy(
                f"{self.requests} requests are being worked on, the limit (max_pending under [api] in the agent's "
                "settings): ask again in a moment, or send fewer at once"
            )
