"""Work that is due again and again, in a thread of its own that no error can end."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

_log = logging.getLogger(__name__)


class Ticker:
    """Calls ``work`` every ``interval_s`` seconds until it is stopped.

    Args:
        on_error: Told the ticker's name after each call that raised; the error itself is logged with its traceback.
    """

    def __init__(
        self, name: str, interval_s: float, work: Callable[[], object], on_error: Callable[[str], None]
    ) -> None:
        self._name, self._interval_s, self._work, self._on_error = name, interval_s, work, on_error
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"tick-{name}", daemon=True)

    def start(self) -> None:
        """Begin; the first call comes at once."""
        self._thread.start()

    def stop(self, timeout_s: float = 15.0) -> None:
        """Call no more, and wait for the call under way."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._work()
            except Exception:  # noqa: BLE001  whatever it was, the next tick may succeed; it is logged and counted
                _log.exception("%s failed; it is tried again in %g s", self._name, self._interval_s)
                self._on_error(self._name)
            self._stopping.wait(self._interval_s)
