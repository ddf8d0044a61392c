"""The one thread in which updates happen: newest wish first, patient with a server that is away."""

from __future__ import annotations

import logging
import random
import threading
import time

from edge_agent.contract.messages import Desired
from edge_agent.update.installer import Installer

_log = logging.getLogger(__name__)


class UpdateThread:
    """Runs an installer's ``apply`` and ``watch``.

    Args:
        watch_s: Seconds between looks at probations.
        retry_s: First and longest wait before another attempt; each wait is double the one before, with jitter so that
            a fleet does not come back all at once.
    """

    def __init__(
        self, installer: Installer, *, watch_s: float = 0.5, retry_s: tuple[float, float] = (2.0, 300.0)
    ) -> None:
        self._installer, self._watch_s, self._retry_s = installer, watch_s, retry_s
        self._wake = threading.Condition()
        self._wanted: Desired | None = None
        self._fresh = False
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="update", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def submit(self, desired: Desired) -> None:
        """What the device should be from now on; returns at once. Safe from any thread."""
        self._installer.want(desired)
        with self._wake:
            self._wanted, self._fresh = desired, True
            self._wake.notify()

    def stop(self, timeout_s: float = 10.0) -> None:
        """End after the step under way (a download: at once), then close the installer."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._installer.interrupt()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        if self._thread.is_alive():  # it loads a large model, or knocks at a network that swallows everything
            self._installer.excuse()
        else:
            self._installer.close()

    def _run(self) -> None:
        wait_s, next_try = self._retry_s[0], 0.0
        pending = False
        while True:
            with self._wake:
                if not self._fresh and not self._stopping:
                    self._wake.wait(self._watch_s)
                if self._stopping:
                    return
                desired = self._wanted
                if self._fresh:
                    self._fresh, pending, wait_s, next_try = False, True, self._retry_s[0], 0.0
            try:
                self._installer.watch()
                if desired is not None and pending and time.monotonic() >= next_try:
                    pending = not self._installer.apply(desired)
                    next_try = time.monotonic() + self._pause_s(wait_s * random.uniform(0.5, 1.0))
                    wait_s = min(wait_s * 2, self._retry_s[1])
            except Exception:  # noqa: BLE001 - see below
                # What serves must go on being watched and updated, whatever went wrong with one update.
                _log.exception("an update ended in an unexpected error; it is tried again in %.0f s", wait_s)
                next_try = time.monotonic() + wait_s
                wait_s = min(wait_s * 2, self._retry_s[1])

    def _pause_s(self, wait_s: float) -> float:
        """Seconds until the next attempt: sooner where what it waits for (a window) is over before."""
        known_s = self._installer.waits_s
        return wait_s if known_s is None else min(wait_s, max(known_s, self._watch_s))
