"""One thread at a time: what python-tuf's client keeps, in memory and on disk, is not made for two."""

from __future__ import annotations

import threading


class WrongThread(RuntimeError):
    """Another thread's object was called: a fault of the program, which no retry mends."""


class OwnerThread:
    """The thread that called first; when it has ended, whoever calls next.

    Args:
        what: What is owned, for the error.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._owner: threading.Thread | None = None
        self._taking = threading.Lock()

    def check(self) -> None:
        """Go on only in the owner.

        Raises:
            WrongThread: The owner is another thread, which still runs.
        """
        caller = threading.current_thread()
        with self._taking:
            if self._owner is None or not self._owner.is_alive():
                self._owner = caller
            owner = self._owner
        if owner is not caller:
            raise WrongThread(
                f"{self._what} belongs to thread {owner.name!r}, and thread {caller.name!r} called it: "
                "updates are worked on by one thread; give the work to that one"
            )
