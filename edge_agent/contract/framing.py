"""Where frames begin and end in a stream of bytes. Pure: whoever owns the socket receives into what this gives it.

A frame is a little-endian u32 length and that many bytes. Each complete frame comes out in memory of its own, which
begins at its length field and is aligned to 8 bytes; so numbers that lie at a multiple of 8 within the frame can be
used where they are.
"""

from __future__ import annotations

import numpy as np

from edge_agent.contract.errors import MalformedRequest

LENGTH_BYTES = 4
# Room for small frames, many at once; a larger frame is received straight into memory of its own size.
_ROOM_BYTES = 16 * 1024


class FrameTooLarge(MalformedRequest):
    """A frame announces more bytes than it may have; what follows it cannot be understood any more."""

    http_status = 413


class FrameBuffer:
    """Cuts one stream into frames.

    Args:
        limit_bytes: Longest frame, without its length field.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._room = bytearray(_ROOM_BYTES)
        self._view = memoryview(self._room)
        self._filled = 0
        self._wanted = 0
        self._large: memoryview | None = None
        self._large_filled = 0
        self._refusal: FrameTooLarge | None = None

    @property
    def partial(self) -> bool:
        """Whether a frame has begun to arrive and is not complete."""
        return self._filled > 0 or self._large is not None

    @property
    def wanted_bytes(self) -> int:
        """Memory that a large frame, whose first bytes have arrived, needs; 0 where none does.

        It is taken by the next :meth:`room`: whoever must find room for it first calls that later.
        """
        return self._wanted

    @property
    def refusal(self) -> FrameTooLarge | None:
        """Why nothing more can be read from this stream, once a frame was too large."""
        return self._refusal

    def room(self) -> memoryview:
        """Where to receive the next bytes; never empty."""
        if self._wanted:
            # Not a bytearray: that would be filled with zeros first.
            self._large = np.empty(self._wanted, dtype=np.uint8).data
            self._large[: self._filled] = self._view[: self._filled]
            self._large_filled, self._filled, self._wanted = self._filled, 0, 0
        if self._large is not None:
            return self._large[self._large_filled :]
        return self._view[self._filled :]

    def received(self, count: int) -> list[memoryview]:
        """Take note of ``count`` bytes received into :meth:`room`.

        Returns:
            The frames that they complete, each with its length field; nobody else writes to their memory.
        """
        if self._large is None:
            return self._cut(self._filled + count)
        self._large_filled += count
        if self._large_filled < len(self._large):
            return []
        frame, self._large = self._large, None
        return [frame]

    def _cut(self, end: int) -> list[memoryview]:
        frames: list[memoryview] = []
        view, at = self._view, 0
        while end - at >= LENGTH_BYTES:
            size = int.from_bytes(view[at : at + LENGTH_BYTES], "little")
            if size > self._limit_bytes:
                self._refusal = FrameTooLarge(
                    f"a frame of {size} bytes, the limit is {self._limit_bytes} (max_body_mib under [api] in the "
                    "agent's settings); this connection is closed"
                )
                end = at
                break
            stop = at + LENGTH_BYTES + size
            if stop > end:
                if stop - at > len(view):
                    self._wanted = stop - at
                break
            frames.append(memoryview(bytearray(view[at:stop])))
            at = stop
        if 0 < at < end:
            view[: end - at] = bytes(view[at:end])
        self._filled = end - at
        return frames
