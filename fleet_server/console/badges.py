"""States as the console draws them."""

from __future__ import annotations

import dataclasses
import enum


class Tone(enum.StrEnum):
    """How a state is drawn; each has a sign of its own, so that colour is never the only difference."""

    GOOD = "good"
    BUSY = "busy"
    WARN = "warn"
    BAD = "bad"
    QUIET = "quiet"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Badge:
    """A state in a word, ``why`` in a sentence (shown as a title)."""

    text: str
    tone: Tone
    why: str = ""
