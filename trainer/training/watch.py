"""A batch that does not end: somebody must say so, for the code that hangs cannot."""

from __future__ import annotations

import contextlib
import faulthandler
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from trainer.errors import RecipeHung

# Sent to the main thread: it breaks a sleep or a wait off, too.
_SIGNAL = signal.SIGUSR2
_LOOKS_PER_TIMEOUT = 20


class StallWatch:
    """Raises :class:`RecipeHung` in the main thread where nothing was heard for too long.

    Args:
        limit_s: Seconds of silence; 0 watches nothing.
        hung: Called, on a thread of its own, where raising is not possible or has not helped within as long again.
    """

    def __init__(self, limit_s: float, *, hung: Callable[[str], None] | None = None) -> None:
        self._limit_s, self._hung = limit_s, hung
        self._heard = time.monotonic()
        self._where = "before the first batch"
        self._ended = threading.Event()

    def beat(self, where: str) -> None:
        """Something went on; ``where`` says what comes now."""
        self._heard, self._where = time.monotonic(), where

    @property
    def complaint(self) -> str:
        """What hangs, for a person."""
        return (
            f"nothing went on for {self._limit_s:g} s {self._where}: Model hangs, or a batch takes longer than "
            "step_timeout_s in [training] of model.toml (the log shows where it stood)"
        )

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Watch while the block runs.

        Raises:
            RecipeHung: Inside the block, wherever it stands.
        """
        if not self._limit_s:
            yield
            return
        main = threading.current_thread() is threading.main_thread()
        before: Any = signal.signal(_SIGNAL, self._raise) if main else None
        self.beat(self._where)
        thread = threading.Thread(target=self._watch, args=(main,), name="stall-watch", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()
            if main:
                signal.signal(_SIGNAL, before)

    def _watch(self, main: bool) -> None:
        told = False
        while not self._ended.wait(self._limit_s / _LOOKS_PER_TIMEOUT):
            silent_s = time.monotonic() - self._heard
            if silent_s < self._limit_s:
                told = False
            elif not told and main:
                told = True
                _show_stacks()
                signal.pthread_kill(threading.main_thread().ident or 0, _SIGNAL)
            elif self._hung is not None and silent_s > (2 if main else 1) * self._limit_s:
                self._hung(self.complaint)
                return

    def _raise(self, _signal: int, _frame: FrameType | None) -> None:
        raise RecipeHung(self.complaint)


def _show_stacks() -> None:
    with contextlib.suppress(AttributeError, ValueError, OSError):
        # Where standard error is no file, nobody can be shown them.
        faulthandler.dump_traceback(sys.stderr, all_threads=True)
