"""Breaks off runs of a model that is being loaded: one that hangs must not hold the thread that loads it for ever."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from edge_agent.contract.errors import ModelUnavailable
from edge_agent.runtime.backend import InferenceBackend

# A run that was broken off is followed by the next one of the same model, which most likely hangs too.
_AGAIN_S = 0.2


class RunGuard:
    """Watches models that are being loaded, each with a thread of its own while it is.

    Once it is closed, whatever runs under its eyes is broken off at once.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._closed = False

    @contextlib.contextmanager
    def within(self, backend: InferenceBackend, seconds: float) -> Iterator[None]:
        """For the length of a ``with`` block: what runs after ``seconds`` is broken off, and what comes after it.

        Raises:
            ModelUnavailable: At its end: it was closed meanwhile; what went wrong in the block says nothing then.
        """
        over = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(backend, seconds, over), name="run-guard", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            with self._changed:
                over.set()
                self._changed.notify_all()
            watcher.join()
            if self._closed:
                raise ModelUnavailable("the agent stops: no model is loaded any more")

    def close(self) -> None:
        """Let everything end soon."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _watch(self, backend: InferenceBackend, seconds: float, over: threading.Event) -> None:
        with self._changed:
            self._changed.wait_for(lambda: over.is_set() or self._closed, seconds)
        while not over.is_set():
            backend.cancel()
            over.wait(_AGAIN_S)
