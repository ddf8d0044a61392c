"""Quantities in the unit that a person reads them in; for the console and the commands alike."""

from __future__ import annotations

_GIB = 1 << 30


def joules(value: float) -> str:
    """An energy: ``2.4 J``, ``3.1 mJ``, ``870 µJ``."""
    for size, unit in ((1.0, "J"), (1e-3, "mJ")):
        if value >= size:
            return f"{_digits(value / size)} {unit}"
    return f"{_digits(value / 1e-6)} µJ"


def watts(value: float) -> str:
    """A power: ``12.4 W``, ``0.31 W``."""
    return f"{_digits(value)} W"


def gibibytes(value: float) -> str:
    """A memory's size: ``7.4 GiB``."""
    return f"{value / _GIB:.1f} GiB"


def minutes(seconds: float) -> str:
    """A stretch of time: ``10 min``, ``45 s``."""
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def _digits(value: float) -> str:
    """Two digits that count, whole numbers in full: 0.031, 0.31, 3.1, 12.4, 1,240."""
    if value >= 100:
        return f"{value:,.0f}"
    if value >= 1:
        return f"{value:.1f}"
    return f"{value:.2g}"
