"""What people are told of a release that waits: who has signed, who is still needed, and what they type. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

_APPROVERS = "approvers/"
# What follows the last signature.
PUBLISHER = "the worker makes it visible within the hour, `shoal keys publish KEYS` at once"


def persons(names: Sequence[str]) -> str:
    """Whose keys these are: an approver's is called by the person's name, any other by its own."""
    return ", ".join(_person(name) or name for name in names)


def still_needed(missing: int, unsigned: Sequence[str]) -> str:
    """Who has yet to sign: ``dora``, or ``1 of ben, dora``; empty where nobody has."""
    if not missing:
        return ""
    return persons(unsigned) if missing == len(unsigned) else f"{missing} of {persons(unsigned)}"


def commands(model: str, version: str, missing: int, unsigned: Sequence[str], *, server: str = "") -> list[str]:
    """What each approver who may still sign types, where the folder with their key lies.

    Args:
        server: Address of the server; empty leaves it to ``SHOAL_SERVER``.
    """
    found = (_person(name) for name in unsigned if missing)
    where = ["--server", server] if server else []
    return [
        shlex.join(["shoal", "models", "approve", model, version, "--key", f"{person}/approver.pem", *where])
        for person in found
        if person
    ]


def _person(name: str) -> str:
    """``dora`` of ``approvers/dora/approver``; empty where it is no approver's key."""
    return name.split("/")[1] if name.startswith(_APPROVERS) else ""
