"""What a person must know and do when keys change: what is signed, by whom, what goes where, what devices do."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from trainer.publish.pending import PendingChange, Requirement
from trainer.publish.rotation import Replaced

_DEVICES = {
    "root": "fetch the new root with their next update, signed by the old keys and the new; nobody enrols anew.",
    "targets": "fetch the new root with their next update, and from then on believe the new targets keys alone.",
    "snapshot": "forget snapshots that the old key has signed, however high their versions (TUF 5.3.11); take yours.",
    "timestamp": "forget timestamps that the old key has signed, however high their versions (TUF 5.3.11); take yours.",
    "director": "forget all that the old key has signed, and follow what the server signs with the new one.",
    "director-root": "fetch the new director's root with their next update; nobody enrols anew.",
}
_MODEL = "believe packages of {role} only as they are signed now; what they run already, they go on running."


def plan(replaced: Sequence[Replaced], change: PendingChange, needed: Sequence[Requirement], folder: Path) -> list[str]:
    """A change in lines: which keys, which files, whose signatures are there and missing, what devices will do."""
    lines = []
    for one in replaced:
        roles = ", ".join(dict.fromkeys(use.called for use in one.uses if _is_said(one, use.called)))
        threshold = max(use.threshold for use in one.uses)
        after = f"a new key of the same name{' (made elsewhere)' if one.brought else ''}" if one.successor else "nobody"
        lines.append(f"key       {one.name} of {roles} (threshold {threshold}): replaced by {after}")
    lines += [f"signs     {folder / file}" for file in sorted(change.files)]
    return [*lines, *needs(needed), *devices(replaced)]


def needs(needed: Iterable[Requirement]) -> list[str]:
    """Whose signatures are there and missing, a line each; once where the root before and the new one ask the same."""
    found = {dataclasses.replace(one, whose=one.whose.removesuffix(" until now")): one for one in needed}
    said = [short if short in found.values() else one for short, one in found.items()]
    return [f"{'needs ' if one.missing else 'signed'}    {one.text()}" for one in said]


def devices(replaced: Iterable[Replaced]) -> list[str]:
    """What the change means for devices."""
    roles = dict.fromkeys(use.called for one in replaced for use in one.uses if _is_said(one, use.called))
    return [f"devices   {_DEVICES.get(role, _MODEL.format(role=role))}" for role in roles]


def after(replaced: Sequence[Replaced], folder: Path, *, in_force: bool, stolen: bool) -> list[str]:
    """What is to be done now, in lines."""
    steps = []
    if not in_force:
        steps.append(
            f"Let the others sign: give them a copy of {folder} without its private keys (image/, director/, "
            "pending.json); each runs `shoal keys sign DIR --key THEIR_KEY`. Take pending.json back, or signatures: "
            f"`shoal keys sign {folder} --from COPY`. `shoal keys status {folder}` says who is missing. Until then "
            "nothing changes."
        )
    for one in replaced:
        if one.successor and not one.brought and one.name.startswith(("offline/", "approvers/")):
            path = folder / (f"{one.name}.pem" if in_force else f"pending-keys/{one.name}.pem")
            steps.append(f"Give {path} to whom it belongs, and remove it here.")
    repositories = {use.repository for one in replaced for use in one.uses}
    steps += publishing(repositories, folder)
    if stolen:
        # An approver's key alone releases nothing, and lies elsewhere than the publisher's.
        steps += _stolen({use.called for one in replaced for use in one.uses if _is_publishers(one)}, folder)
    steps.append(f"Destroy the old private keys in {folder / 'retired'}, and every copy of them.")
    return steps


def in_force(change: PendingChange, coming: Iterable[str], folder: Path) -> list[str]:
    """What is left to do once a change has all its signatures, in lines.

    Args:
        coming: Names of the keys that it brought.
    """
    paths = [folder / f"{name}.pem" for name in sorted(coming) if name.startswith(("offline/", "approvers/"))]
    steps = [f"Give {path} to whom it belongs, and remove it here." for path in paths if path.exists()]
    steps += publishing({file.partition("/")[0] for file in change.files}, folder)
    if any((folder / "retired").rglob("*.pem")):
        steps.append(f"Destroy the old private keys in {folder / 'retired'}, and every copy of them.")
    return steps


def publishing(repositories: Collection[str], folder: Path) -> list[str]:
    """How what was signed comes to the server, in lines.

    Args:
        repositories: Whose metadata is new: ``image``, ``director``.
    """
    steps = []
    if "image" in repositories:
        steps.append(
            f"Once it is in force, publish it: `shoal keys publish {folder}`, or the worker does so within the hour."
        )
    if "director" in repositories:
        steps.append(
            f"Give the director's new metadata to the server: `shoal server init --data DATA --keys {folder}`, then "
            "start the server anew."
        )
    return steps


def _stolen(roles: set[str], folder: Path) -> list[str]:
    models = sorted(roles - _DEVICES.keys())
    steps = []
    if models and not {"snapshot", "timestamp"} <= roles:
        steps.append(
            "A thief of the publisher's folder has its other keys too: "
            f"`shoal keys revoke {folder} {' '.join(f'publisher/{one}' for one in models)} snapshot timestamp`."
        )
    elif ("snapshot" in roles and "timestamp" not in roles) or ("timestamp" in roles and "snapshot" not in roles):
        steps.append(
            "Snapshot and timestamp keys lie side by side: revoke both, or a version that the thief has pushed high "
            f"with the other one stays: `shoal keys revoke {folder} snapshot timestamp`."
        )
    steps += [
        f"See whether the versions of {model} that stay signed are all yours (`shoal keys show {folder}`); withdraw "
        f"the others: `shoal models withdraw {model} VERSION --reason ...`."
        for model in models
    ]
    return steps


def _is_publishers(one: Replaced) -> bool:
    return one.name.startswith("publisher/")


def _is_said(one: Replaced, role: str) -> bool:
    """The director's one key is in three roles of its repository, which people know as one."""
    return not (one.uses[0].repository == "director" and role in {"snapshot", "timestamp"})
