"""When fleet updates may happen: a daily window in local time, and a wait that chance draws."""

from __future__ import annotations

import dataclasses
import datetime as dt
import random
from collections.abc import Callable, Iterator, Mapping

from edge_agent.config import UpdateSettings
from edge_agent.update.outcome import NotYet

_DAY, _QUARTER_S = dt.timedelta(days=1), 15 * 60


@dataclasses.dataclass(frozen=True)
class Window:
    """A part of each day: open while the clock on the wall stands in it, and never while it does not.

    So where clocks are put forward over its beginning or end, it opens or closes at that moment, and a window that lies
    in the hour left out is not that day; where they are put back over it, it opens twice.

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
        if self._is_open(now):
            return 0.0
        return min((at - now).total_seconds() for at in self._may_open(now) if at > now and self._is_open(at))

    def _is_open(self, at: dt.datetime) -> bool:
        time = at.astimezone(self.zone).time()
        if self.begin < self.end:
            return self.begin <= time < self.end
        return time >= self.begin or time < self.end

    def _may_open(self, now: dt.datetime) -> Iterator[dt.datetime]:
        """When it begins in the next days, and when clocks may be changed: at a quarter of an hour of UTC."""
        today = now.astimezone(self.zone).date()
        for days in range(4):
            for fold in (0, 1):
                naive = dt.datetime.combine(today + days * _DAY, self.begin).replace(fold=fold)
                local = naive.astimezone() if self.zone is None else naive.replace(tzinfo=self.zone)
                yield local.astimezone(dt.timezone.utc)
        quarter = now.timestamp() // _QUARTER_S * _QUARTER_S
        for number in range(1, 3 * 24 * 4):
            yield dt.datetime.fromtimestamp(quarter + number * _QUARTER_S, dt.timezone.utc)


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
