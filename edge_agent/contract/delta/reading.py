"""Reads a delta's bytes, none of which is trusted: so many as belong there, or one error."""

from __future__ import annotations

from typing import BinaryIO

import zstandard

from edge_agent.contract.errors import DeltaUnusable

# zstd's own memory follows the window: a dictionary and a chunk fit into it.
WINDOW_BYTES = 2 << 20


class DeltaReader:
    """A delta that is read from its beginning to its end, once."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        # To make one takes six times as long as to unpack a small frame (measured: 19 and 3 us).
        self._plain = zstandard.ZstdDecompressor(max_window_size=WINDOW_BYTES)

    def exactly(self, size: int) -> bytes:
        """The next ``size`` bytes.

        Raises:
            DeltaUnusable: The delta ends before.
        """
        data = self._stream.read(size)
        if len(data) != size:
            raise DeltaUnusable(f"ends {size - len(data)} bytes too early")
        return data

    def frame(self, length: int, size: int, dictionary: bytes = b"") -> bytes:
        """The next ``length`` bytes, a zstd frame of exactly ``size`` bytes.

        Raises:
            DeltaUnusable: It is none, of another size, or wants a larger window than is given to it.
        """
        data = self.exactly(length)
        try:
            told = zstandard.get_frame_parameters(data)
            if told.content_size not in (zstandard.CONTENTSIZE_UNKNOWN, size) or told.window_size > WINDOW_BYTES:
                raise DeltaUnusable(f"a frame of {told.content_size} bytes where {size} belong")
            # A frame of nothing has no size of its own to be told by.
            made = self._decompressor(dictionary).decompress(data, max_output_size=max(size, 1), allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise DeltaUnusable(f"a frame does not unpack: {error}") from error
        if len(made) != size:
            raise DeltaUnusable(f"a frame unpacks to {len(made)} bytes where {size} belong")
        return made

    def end(self) -> None:
        """See that nothing follows.

        Raises:
            DeltaUnusable: Something does.
        """
        if self._stream.read(1):
            raise DeltaUnusable("goes on where its file is complete")

    def _decompressor(self, dictionary: bytes) -> zstandard.ZstdDecompressor:
        if not dictionary:
            return self._plain
        raw = zstandard.ZstdCompressionDict(dictionary, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
        return zstandard.ZstdDecompressor(dict_data=raw, max_window_size=WINDOW_BYTES)
