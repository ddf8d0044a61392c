"""What the console shows of a device's board, its GPUs and the runtimes of its models, as plain values."""

from __future__ import annotations

import dataclasses

from fleet_server.console.badges import Badge, Tone


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeView:
    """What a model runs on.

    Args:
        text: ``tensorrt fp16``; ``why``: in words, with the figures measured.
        building: What is being made ready meanwhile, empty for nothing; ``percent``: how far that is, 0..100.
    """

    text: str
    why: str = ""
    building: str = ""
    percent: float | None = None

    @property
    def badge(self) -> Badge | None:
        """What is being made ready, in a word."""
        if not self.building:
            return None
        text = "building" if self.percent is None else f"building {self.percent:.0f}\N{NO-BREAK SPACE}%"
        return Badge(text=text, tone=Tone.BUSY, why=self.building)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BoardView:
    """A board in a few words, each empty where it does not tell.

    Args:
        temperature: Of the board, or else of its hottest GPU; ``mode``: its power mode.
        energy: Of one inference; ``energy_why``: what that is made of.
        throttled: None where nothing holds it back; ``reasons``: what does.
        throttled_often: How much of the last reports something did.
    """

    power: str = ""
    mode: str = ""
    temperature: str = ""
    energy: str = ""
    energy_why: str = ""
    throttled: Badge | None = None
    reasons: tuple[str, ...] = ()
    throttled_often: str = ""

    @property
    def tells(self) -> bool:
        """Whether there is anything to show."""
        return bool(self.power or self.mode or self.energy or self.throttled or self.throttled_often)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GpuView:
    """One GPU; each text is empty where it does not tell."""

    name: str
    busy: float | None
    memory_percent: float | None
    memory: str
    temperature: str
    power: str
    clock: str
    throttled: Badge | None
    reasons: tuple[str, ...]
