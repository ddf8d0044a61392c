"""How a run says how far it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Report(Protocol):
    """Is told how far a run is."""

    def __call__(self, stage: str, fraction: float, message: str, metrics: Mapping[str, float] = ..., /) -> None:
        """Stage, share of the whole run done (0..1), a message, and what was measured just now, by name."""
