"""Text that others wrote, for a terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text with ``?`` for whatever would move the cursor over what was shown before, or hide what comes."""
    return "".join(one if one.isprintable() else "?" for one in text)
