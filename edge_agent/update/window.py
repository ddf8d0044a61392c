"""When fleet updates may happen: a daily window in local time, and a wait that chance draws."""

from __future__ import annotations

import dataclasses
import datetime as dt
import random
from collections.abc import Callable, Mapping

from edge_agent.config import UpdateSettings
from edge_agent.update.outcome import NotYet

_DAY = dt.timedelta(days=1)


@dataclasses.dataclass(frozen=True)
class Window:
    """A part of each day, by the clock on the wall.

    Where clocks are put forward over its beginning or end, that counts as so much later; where they are put back, the
    first of the two hours counts: once a day it is always open.

    Args:
        begin, end: Local time; a window that ends before it begins goes over midnight, one of no length is all day.
        zone: None for that of the machine.
    """

    begin: dt.time
    end: dt.time
    zone: dt.tzinfo | None = None

    @classmethod
    def parse(cls, text: str, zone: dt.tzinfo | None = None) -> Window | None:
        """The window of a setting such as ``22:00-05:00``; None where it is empty."""
        if not text:
            return None
        begin, end = (dt.time.fromisoformat(part) for part in text.split("-"))
        return cls(begin, end, zone)

    def __str__(self) -> str:
        return f"{self.begin:%H:%M}-{self.end:%H:%M}"

    def opens_in_s(self, now: dt.datetime) -> float:
        """Seconds until it opens; 0 while it is open.

        Args:
            now: With its time zone.
        """
        if self.begin == self.end:
            return 0.0
        today = now.astimezone(self.zone).date()
        waits = []
        for day in (today - _DAY, today, today + _DAY, today + 2 * _DAY):
            begin = self._instant(day, self.begin)
            end = self._instant(day + _DAY if self.end < self.begin else day, self.end)
            if begin <= now < end:
                return 0.0
            if begin > now:
                waits.append((begin - now).total_seconds())
        return min(waits)

    def _instant(self, day: dt.date, time: dt.time) -> dt.datetime:
        naive = dt.datetime.combine(day, time)  # fold=0: PEP 495 has the first of two, and carries a gap forward
        local = naive.astimezone() if self.zone is None else naive.replace(tzinfo=self.zone)
        return local.astimezone(dt.timezone.utc)


class Waits:
    """Whether an update of the fleet may go on now. Rollbacks and probations never ask.

    Args:
        utc_now: For the window; ``monotonic``: for the wait that chance draws, by ``draw`` in 0..1.
        zone: Of the window; None for that of the machine.
    """

    def __init__(
        self,
        settings: UpdateSettings,
        *,
        utc_now: Callable[[], dt.datetime],
        monotonic: Callable[[], float],
        draw: Callable[[], float] = random.random,
        zone: dt.tzinfo | None = None,
    ) -> None:
        self._window = Window.parse(settings.window, zone)
        self._jitter_s, self._draw = settings.jitter_s, draw
        self._utc_now, self._monotonic = utc_now, monotonic
        self._known: dict[str, int] = {}
        #: When models may go on that wait, Unix milliseconds; replaced whole, for any thread to read.
        self.until_ms: Mapping[str, int] = {}
        self._not_before = float("-inf")

    def announce(self, releases: Mapping[str, int]) -> None:
        """These releases are wanted; for those that are new, chance draws one wait for all together."""
        new = {model: release for model, release in releases.items() if self._known.get(model, -1) < release}
        if new and self._jitter_s:
            self._not_before = max(self._not_before, self._monotonic() + self._draw() * self._jitter_s)
        self._known |= new

    def begin(self) -> None:
        """A new attempt: who still waits will say so."""
        self.until_ms = {}

    def note(self, model: str, error: NotYet) -> None:
        """A model waits."""
        if error.seconds is not None:
            until_ms = round((self._utc_now().timestamp() + error.seconds) * 1000)
            self.until_ms = {**self.until_ms, model: max(0, until_ms)}

    def check(self) -> None:
        """Return where an update may begin now.

        Raises:
            NotYet: It says why not, and for how long.
        """
        self.check_window()
        left_s = self._not_before - self._monotonic()
        if left_s > 0:
            text = f"waits {left_s:.0f} s of the {self._jitter_s:g} s (updates.jitter_s) that keep a fleet apart"
            raise NotYet(text, seconds=left_s)

    def check_window(self) -> None:
        """Return while the window is open.

        Raises:
            NotYet: It is closed.
        """
        if self._window is None:
            return
        left_s = self._window.opens_in_s(self._utc_now())
        if left_s > 0:
            hours, minutes = divmod(round(left_s / 60), 60)
            text = f"waits for the window {self._window} (updates.window, local time), which opens in "
            raise NotYet(f"{text}{hours} h {minutes} min", seconds=left_s)
