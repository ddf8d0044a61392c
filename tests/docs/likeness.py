"""Whether what an example printed is what the page shows."""

from __future__ import annotations

import json
from typing import Any


def answers(printed: str) -> list[Any]:
    """The JSON values that stand one after the other in what an example printed."""
    found, at = [], 0
    while printed[at:].strip():
        at += len(printed[at:]) - len(printed[at:].lstrip())
        value, at = json.JSONDecoder().raw_decode(printed, at)
        found.append(value)
    return found


def difference(shown: Any, found: Any, where: str = "the answer") -> str:
    """In what a JSON value differs from the one that the page shows; empty where in nothing.

    Fractions are the model's own and whole numbers above 1000 the machine's: only their kind counts. A text that ends
    with ``...`` is a digest or the like, of which only counts that it is there.
    """
    if isinstance(shown, float) or (isinstance(shown, int) and not isinstance(shown, bool) and shown > 1000):
        same = isinstance(found, int | float) and not isinstance(found, bool)
        return "" if same else f"{where} is {found!r}, no number"
    if isinstance(shown, dict) and isinstance(found, dict):
        if list(shown) != list(found):
            return f"{where} has the members {list(found)}, shown are {list(shown)}"
        each = [difference(shown[name], found[name], f"{where}.{name}") for name in shown]
        return "; ".join(filter(None, each))
    if isinstance(shown, list) and isinstance(found, list):
        if len(shown) != len(found):
            return f"{where} has {len(found)} elements, shown are {len(shown)}"
        each = [difference(*pair, f"{where}[{index}]") for index, pair in enumerate(zip(shown, found, strict=True))]
        return "; ".join(filter(None, each))
    if isinstance(shown, str) and shown.endswith("...") and isinstance(found, str):
        return "" if found else f"{where} is empty"
    return "" if shown == found and type(shown) is type(found) else f"{where} is {found!r}, shown is {shown!r}"
