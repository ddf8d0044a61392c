"""The thread that reports: what the monitor has counted, at the fleet's pace, and the twin whenever it changes."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

import msgspec

from edge_agent.contract.errors import DeviceError
from edge_agent.contract.messages import Reported, ReportedRuntime
from edge_agent.figures import without_figures

_log = logging.getLogger(__name__)
_LOOK_S = 0.5
# Counters alone, of requests or in a reason, change all the time: they are worth a message at this pace, a changed step
# at once.
_COUNTERS_S = 2.0

# Without a fleet nobody reads the reports that gather on the disk: they are for the fleet that it may join.
ALONE_INTERVAL_S = 600.0


def pace_s(interval_s: float, *, has_fleet: bool) -> float:
    """Seconds between reports, until the server asks for another pace.

    Args:
        interval_s: The setting.
    """
    return interval_s if has_fleet else max(interval_s, ALONE_INTERVAL_S)


class Reporter:
    """Calls ``flush`` at an interval and publishes the twin when it has changed.

    Args:
        flush: Hands what was counted to the outbox.
        relieve: Hands over what should not wait for that; called often.
        twin: What the device is now.
        publish: Sends a twin.
        interval_s: Seconds between flushes, until :meth:`set_interval`.
    """

    def __init__(
        self,
        *,
        flush: Callable[[], None],
        relieve: Callable[[], None],
        twin: Callable[[], Reported],
        publish: Callable[[Reported], None],
        interval_s: float,
    ) -> None:
        self._flush, self._relieve = flush, relieve
        self._twin, self._publish, self._interval_s = twin, publish, interval_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reporter", daemon=True)
        self._published: Reported | None = None
        self._published_at = 0.0
        self._trouble = ""

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def set_interval(self, interval_s: float) -> None:
        """Report at another pace from now on."""
        self._interval_s = interval_s

    def stop(self) -> None:
        """Flush a last time, and end."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join()
        self._safely(self._flush)

    def _run(self) -> None:
        flushed_at = time.monotonic()
        while not self._stopping.wait(_LOOK_S):
            now = time.monotonic()
            if now - flushed_at >= self._interval_s:
                self._safely(self._flush)
                flushed_at = now
            elif not self._trouble:  # else the next flush finds out whether it is over
                self._safely(self._relieve)
            try:
                self._publish_if_changed(now)
            except Exception as error:  # noqa: BLE001 - a fault in one look must not end all reports
                self._complain(error)

    def _safely(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001 - the disk is full, say: the next flush may succeed
            self._complain(error)
        else:
            self._trouble = ""

    def _complain(self, error: Exception) -> None:
        """Log a trouble once, not at every attempt; one that nobody foresaw with where it came from."""
        if str(error) != self._trouble:
            self._trouble = str(error)
            foreseen = isinstance(error, DeviceError)
            _log.warning("nothing is reported: %s", error, exc_info=None if foreseen else error)

    def _publish_if_changed(self, now: float) -> None:
        twin = self._twin()
        if twin == self._published:
            return
        soon = now - self._published_at < _COUNTERS_S
        if soon and self._published is not None and _without_counters(twin) == _without_counters(self._published):
            return
        self._publish(twin)
        self._published, self._published_at = twin, now


def _without_counters(twin: Reported) -> Reported:
    still = {
        name: msgspec.structs.replace(
            model, requests=0, failed=0, reason=without_figures(model.reason), runtime=_without_percent(model.runtime)
        )
        for name, model in twin.models.items()
    }
    return msgspec.structs.replace(twin, models=still)


def _without_percent(runtime: ReportedRuntime | None) -> ReportedRuntime | None:
    return None if runtime is None else msgspec.structs.replace(runtime, building_percent=None)
