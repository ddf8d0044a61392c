"""Where frames begin and end in a stream of bytes. Pure: whoever owns the socket receives into what this gives it.

A frame is a little-endian u32 length and that many bytes. Each complete frame comes out in memory of its own, which
begins at its length field and is aligned to 8 bytes; so numbers that lie at a multiple of 8 within the frame can be
used where they are.
"""

from __future__ import annotations

import numpy as np

from edge_agent.contract.errors import MalformedRequest

LENGTH_BYTES = 4
# Up to so much of a frame waits for its rest in memory of the stream; a larger one has memory of its own size. Where
# streams share no memory to receive into, so much is received at once.
_ROOM_BYTES = 16 * 1024
#: What is large is received with so much room to spare: where a read fills what it was given, an event loop reads the
#: same connection again at once, in vain for most, and past all others for who sends again fast enough.
ROOM_LEFT = 1

_NO_ROOM = memoryview(b"")
# How a stream of HTTP begins, an answer, a request of HTTP/1 or 2: who took the wrong socket sends, or is sent, this.
_HTTP = (b"HTTP", b"GET ", b"POST", b"PUT ", b"HEAD", b"DELE", b"OPTI", b"PATC", b"PRI ")


class FrameTooLarge(MalformedRequest):
    """A frame announces more bytes than it may have; what follows it cannot be understood any more."""

    http_status = 413


class FrameBuffer:
    """Cuts one stream into frames.

    Args:
        limit_bytes: Longest frame, without its length field.
        shared: What several streams receive into, each of which calls :meth:`received` before the next one receives;
            memory of its own where None.
    """

    def __init__(self, limit_bytes: int, shared: memoryview | None = None) -> None:
        self._limit_bytes = limit_bytes
        self._shared = shared or memoryview(bytearray(_ROOM_BYTES))
        self._room = _NO_ROOM  # what has arrived of a small frame
        self._filled = 0
        self._begun = b""  # what has arrived of a large one that has no memory yet
        self._wanted = 0
        self._large: memoryview | None = None
        self._large_filled = 0
        self._refusal: FrameTooLarge | None = None

    @property
    def partial(self) -> bool:
        """Whether a frame has begun to arrive and is not complete."""
        return self._filled > 0 or self._wanted > 0 or self._large is not None

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
            self._large = np.empty(self._wanted + ROOM_LEFT, dtype=np.uint8).data
            self._large_filled = len(self._begun)
            self._large[: self._large_filled] = self._begun
            self._begun, self._wanted = b"", 0
        if self._large is not None:
            return self._large[self._large_filled :]
        return self._room[self._filled :] if self._filled else self._shared

    def received(self, count: int) -> list[memoryview]:
        """Take note of ``count`` bytes received into :meth:`room`.

        Returns:
            The frames that they complete, each with its length field; nobody else writes to their memory.
        """
        if self._large is None:
            return self._cut(self._room if self._filled else self._shared, self._filled + count)
        self._large_filled += count
        size = len(self._large) - ROOM_LEFT
        if self._large_filled < size:
            return []
        frame, rest = self._large[:size], self._large[size : self._large_filled]
        self._large = None
        self._keep(rest)
        return [frame]

    def _cut(self, view: memoryview, end: int) -> list[memoryview]:
        frames: list[memoryview] = []
        at = 0
        while end - at >= LENGTH_BYTES:
            size = int.from_bytes(view[at : at + LENGTH_BYTES], "little")
            if size > self._limit_bytes:
                self._refusal = FrameTooLarge(_why_not(bytes(view[at : at + LENGTH_BYTES]), size, self._limit_bytes))
                end = at
                break
            stop = at + LENGTH_BYTES + size
            if stop > end:
                if stop - at > _ROOM_BYTES:
                    self._wanted = stop - at
                break
            frames.append(memoryview(bytearray(view[at:stop])))
            at = stop
        self._keep(view[at:end])
        return frames

    def _keep(self, begun: memoryview) -> None:
        """Keep what has arrived of the next frame."""
        if self._wanted:
            self._begun, self._filled = bytes(begun), 0
            return
        if begun and not self._room:
            self._room = memoryview(bytearray(_ROOM_BYTES))
        self._filled = len(begun)
        if begun:
            self._room[: self._filled] = bytes(begun)  # it may lie there already, further on


def _why_not(begin: bytes, size: int, limit_bytes: int) -> str:
    if begin in _HTTP:
        return (
            f"this is HTTP, no frame (it begins with {begin.decode()!r}): frames are for the socket that frames_socket "
            "under [api] in the agent's settings names, HTTP is for its unix_socket and port; this connection is closed"
        )
    # Either end may be the one that reads here.
    return (
        f"a frame of {size} bytes, the limit is {limit_bytes} (of requests max_body_mib under [api] in the agent's "
        "settings, of answers the client's answer_limit_bytes); this connection is closed"
    )
