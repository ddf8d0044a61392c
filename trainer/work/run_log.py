"""What a run writes, read piece by piece while it is being written, for the heartbeats to carry."""

from __future__ import annotations

import collections
import datetime as dt
import threading
from pathlib import Path

MOST_BYTES = 16 << 10  # of one piece
_MOST_BEHIND = 16 * MOST_BYTES
_MOST_NOTES = 500


class RunLog:
    """The end of a file that grows, and notes of ours between. Safe to use from several threads.

    Args:
        path: The file; until :meth:`begin` what lies there is an earlier attempt's, and is not read.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._at = path, 0
        self._notes: collections.deque[str] = collections.deque(maxlen=_MOST_NOTES)
        self._unsent, self._begun = "", False
        self._lock = threading.Lock()

    def begin(self) -> None:
        """What an earlier attempt has written is gone: from now on the file is this one's."""
        with self._lock:
            self._begun = True

    def note(self, text: str) -> None:
        """Add a line of ours, with the time."""
        with self._lock:
            self._notes.append(f"{dt.datetime.now(dt.UTC):%H:%M:%S} {text}\n")

    def piece(self) -> str:
        """What is new since the last piece that was :meth:`sent`; the same again until then."""
        with self._lock:
            if not self._unsent:
                notes = "".join(self._notes)
                self._notes.clear()
                self._unsent = self._written() + notes
            return self._unsent

    def sent(self, piece: str) -> None:
        """A piece has arrived: go on behind it."""
        with self._lock:
            if piece == self._unsent:
                self._unsent = ""

    def _written(self) -> str:
        if not self._begun:
            return ""
        try:
            with self._path.open("rb") as file:
                size = file.seek(0, 2)
                skipped = 0
                if size < self._at:  # it was full, and another has begun
                    self._at = 0
                if size - self._at > _MOST_BEHIND:  # it writes faster than anyone reads: the newest counts
                    skipped = size - self._at - MOST_BYTES
                    self._at += skipped
                file.seek(self._at)
                data = file.read(MOST_BYTES)
        except FileNotFoundError:
            return ""
        if len(data) == MOST_BYTES:  # cut behind a line, where there is one
            data = data[: data.rfind(b"\n") + 1] or data
        self._at += len(data)
        text = data.decode(errors="replace").replace("\r\n", "\n")
        # Of a line that was written over again and again (a progress bar), what stands there in the end.
        lines = [line.rsplit("\r", 1)[-1] for line in text.split("\n")]
        return (f"[{skipped} bytes are left out here]\n" if skipped else "") + "\n".join(lines)
