"""What a process writes, in a file that does not grow without end: its newest part, and the part before it."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path
from typing import IO

log = logging.getLogger(__name__)

# Of each of the two files.
MOST_BYTES = 32 << 20
BEFORE_SUFFIX = ".before"
_READ_BYTES = 64 << 10


class BoundedLog:
    """Copies a pipe into a file until all who may write into the pipe have ended.

    Args:
        source: The reading end; closed by :meth:`close`.
        path: Written anew. When it is full it is renamed to ``NAME.before``, in place of the one that was full last.
    Raises:
        OSError: The file cannot be written.
    """

    def __init__(self, source: IO[bytes], path: Path, *, most_bytes: int = MOST_BYTES) -> None:
        self._source, self._path, self._most_bytes = source, path, most_bytes
        self._before = path.with_name(path.name + BEFORE_SUFFIX)
        try:
            self._before.unlink(missing_ok=True)
            self._file = path.open("wb", buffering=0)
        except OSError:
            source.close()
            raise
        self._size = 0
        self._thread = threading.Thread(target=self._copy, name="run-log", daemon=True)
        self._thread.start()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for the pipe's end; False where it was not reached in time."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def close(self) -> None:
        """Close both ends, once the pipe has ended."""
        self._source.close()
        self._file.close()

    def _copy(self) -> None:
        refused = False
        while data := os.read(self._source.fileno(), _READ_BYTES):
            try:
                self._write(data)
                refused = False
            except OSError as error:
                # Read on all the same: a run does not stand still because nobody keeps what it says.
                if not refused:
                    log.warning("%s: cannot be written: %s", self._path, error)
                refused = True

    def _write(self, data: bytes) -> None:
        if self._size + len(data) > self._most_bytes:
            self._file.close()
            self._path.replace(self._before)
            self._file = self._path.open("wb", buffering=0)
            self._size = 0
        self._file.write(data)
        self._size += len(data)
