"""Gives back the memory of models that nobody asks for."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from edge_agent.contract.errors import UnknownModel
from edge_agent.runtime.loaded import LoadedModel
from edge_agent.runtime.slots import Slots

_log = logging.getLogger(__name__)


class IdleUnloader:
    """A thread that sleeps until the next model may have been idle for long enough.

    Args:
        idle_s: Seconds without a request.
        unload: Unloads a model where it was not used since the given moment (``time.monotonic``); whether it did.
    """

    def __init__(self, slots: Slots, idle_s: float, unload: Callable[[LoadedModel, float], bool]) -> None:
        self._slots, self._idle_s, self._unload = slots, idle_s, unload
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="idle-unloader", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self, timeout_s: float = 10.0) -> None:
        """End; a model that is being unloaded is unloaded first."""
        self._closing.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        wait_s = self._idle_s
        while not self._closing.wait(wait_s):
            wait_s = self._look()

    def _look(self) -> float:
        """Unload what is idle; gives the seconds until the next model may be."""
        now = time.monotonic()
        wait_s = self._idle_s  # a model that is loaded from now on is not idle before
        for loaded in self._slots.models():
            left_s = loaded.last_used + self._idle_s - now
            if left_s > 0:
                wait_s = min(wait_s, left_s)
            elif self._goes(loaded, now - self._idle_s):
                _log.info("model %s %s unloaded: idle for %.0f s", loaded.name, loaded.version, self._idle_s)
        return wait_s

    def _goes(self, loaded: LoadedModel, idle_since: float) -> bool:
        """Whether a model was unloaded; whatever is wrong with one, the others' memory must come back."""
        try:
            return self._unload(loaded, idle_since)
        except UnknownModel:  # another version has taken its place this very moment
            return False
        except Exception:  # noqa: BLE001 - it is told, and tried again
            _log.exception("model %s %s could not be unloaded", loaded.name, loaded.version)
            return False
