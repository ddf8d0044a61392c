"""A time that never goes back: a device with an empty clock battery wakes up in 1970 or 2000."""

from __future__ import annotations

import datetime as dt
import logging
import zlib
from collections.abc import Callable
from pathlib import Path

from edge_agent.durable import write_durably

_log = logging.getLogger(__name__)
# Metadata lives for days: an hour is near enough, and spares the flash a write with every look.
_STEP = dt.timedelta(hours=1)


class ClockFloor:
    """A lower bound of the time, kept on disk.

    The floor rises only to a time at which fresh metadata was verified. A clock that runs ahead would have found that
    metadata expired, so it cannot push the floor further ahead than the shortest metadata lifetime.

    Args:
        path: Holds the time and a checksum of it: one bit turned in the year, believed, would end all updates.
    """

    def __init__(self, path: Path, clock: Callable[[], dt.datetime]) -> None:
        self._path, self._clock = path, clock

    def now(self) -> dt.datetime:
        """The clock's time, or the floor where the clock is behind it."""
        clock, floor = self._clock(), self._floor()
        return clock if floor is None else max(clock, floor)

    def rise(self, verified_at: dt.datetime) -> None:
        """Never again believe in a time much before ``verified_at``.

        Raises:
            OSError: It cannot be written down.
        """
        floor = self._floor()
        if floor is not None and verified_at < floor + _STEP:
            return
        text = verified_at.isoformat()
        write_durably(self._path, f"{text} {_checksum(text)}\n".encode())

    def _floor(self) -> dt.datetime | None:
        try:
            text, _, checksum = self._path.read_bytes().decode().strip().partition(" ")
            floor = dt.datetime.fromisoformat(text)
        except FileNotFoundError:
            return None
        except (ValueError, OSError) as error:
            _log.warning("%s cannot be read, and is written anew: %s", self._path, error)
            return None
        # Files of earlier versions have no checksum.
        if floor.tzinfo is None or (checksum and checksum != _checksum(text)):
            _log.warning("%s is damaged, and is written anew", self._path)
            return None
        return floor


def _checksum(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"
