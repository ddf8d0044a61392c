"""What people are told of a release that waits: who has signed, who is still needed, and what they type. Pure."""

from __future__ import annotations

import datetime as dt
import shlex
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fleet_server.updates.approvals import Approval  # commands say these words without what it needs

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


def reject_command(model: str, version: str, *, server: str = "") -> str:
    """What somebody types who refuses a release."""
    where = ["--server", server] if server else []
    return shlex.join(["shoal", "models", "reject", model, version, "--reason", "WHY", *where])


def unreleased(found: Iterable[Approval], model: str, version: str) -> str:
    """That a version (or package digest) of a model is not released, and why; empty where none of these is it."""
    for one in found:
        same = one.package.startswith(version) if len(version) >= 8 else False
        if one.model != model or not (one.version == version or same):
            continue
        if one.state == "refused":
            return refusal(one.model, one.version, one.reason, one.refused_at_ms, one.refused_by)
        what = "waits for approval" if one.missing or one.reason else f"is approved, and not visible yet: {PUBLISHER}"
        return f"{model} {one.version} {what}; `shoal models show {model} {one.version}` says more"
    return ""


def refusal(model: str, version: str, reason: str, at_ms: int | None, by: str) -> str:
    """That a release was refused, when, with which token and why, in words."""
    at = f" at {dt.datetime.fromtimestamp(at_ms / 1000, dt.UTC):%Y-%m-%d %H:%M:%SZ}" if at_ms is not None else ""
    return f"{model} {version} was refused{at}{f' with the token {by!r}' if by else ''}: {reason}"


def _person(name: str) -> str:
    """``dora`` of ``approvers/dora/approver``; empty where it is no approver's key."""
    return name.split("/")[1] if name.startswith(_APPROVERS) else ""
