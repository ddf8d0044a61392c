"""The order of versions."""

from __future__ import annotations

import re

_PARTS = re.compile(r"[0-9]+|[a-z]+")


def natural_order(version: str) -> tuple[tuple[int, int, str], ...]:
    """A key that puts versions in the order in which a person counts: 1.9 before 1.10, 2 before 10.

    Numbers are compared as numbers and rank above words, a version above each of its beginnings.
    """
    return tuple((1, int(part), "") if part.isdigit() else (0, 0, part) for part in _PARTS.findall(version))
