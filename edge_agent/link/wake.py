"""An event that a selector can wait for beside a socket, so that nobody polls."""

from __future__ import annotations

import contextlib
import socket


class Wake:
    """Set from any thread; one thread waits for it by its ``fileno``."""

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)

    def fileno(self) -> int:
        """Readable once set."""
        return self._reader.fileno()

    def set(self) -> None:
        """Wake the waiting thread, now or when it next waits."""
        # A full buffer means that it is set already; a closed one that nobody waits any more.
        with contextlib.suppress(BlockingIOError, OSError):
            self._writer.send(b"\0")

    def clear(self) -> None:
        """Take back all that was set until now."""
        with contextlib.suppress(BlockingIOError):
            while self._reader.recv(4096):
                pass

    def close(self) -> None:
        """Give both ends back."""
        self._reader.close()
        self._writer.close()
