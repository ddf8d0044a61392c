"""Where a model's packages are signed: in its role, or, past a thousand of them, in hash bins below it (TAP 15).

A device then fetches the bin of the one package it looks for. How many bins there are is a number in the model's role,
which devices read; so they follow from old metadata to new by themselves. The number only grows, in steps of whole
hexadecimal digits: bins of different numbers never share a name, as a role may not vanish from snapshots (TUF, 5.5.5).
"""

from __future__ import annotations

import re

from tuf.api.metadata import Delegations, SuccinctRoles, TargetFile, Targets

from edge_agent.contract.errors import ManifestError
from edge_agent.contract.repository import parse_target

TARGETS_PER_ROLE = 1_000
# 4,096 bins are half a megabyte of snapshot, which devices read up to one megabyte of.
_BITS = (4, 8, 12)
_BIN = re.compile(r"(.+)-bins-[0-9a-f]+")


def model_of(role: str) -> str:
    """The model that a role belongs to, its own or one of its bins."""
    match = _BIN.fullmatch(role)
    return match[1] if match else role


def bins_of(role: Targets) -> SuccinctRoles | None:
    """A model's bins; None where its role signs its packages itself."""
    return role.delegations.succinct_roles if role.delegations is not None else None


def role_names(model: str, roles: dict[str, Targets]) -> list[str]:
    """The roles that sign a model's packages now: its own, then its bins; not those of an earlier number."""
    bins = bins_of(roles[model])
    return [model, *(bins.get_roles() if bins is not None else ())]


def targets_of(model: str, roles: dict[str, Targets]) -> dict[str, TargetFile]:
    """All signed packages of a model by their path."""
    return {path: target for name in role_names(model, roles) for path, target in roles[name].targets.items()}


def bits_for(count: int) -> int:
    """Of how many bits of a path's SHA-256 the bins are made: 0 for none, then so many that a bin has about 1,000."""
    if count <= TARGETS_PER_ROLE:
        return 0
    return next((bits for bits in _BITS if count <= TARGETS_PER_ROLE << bits), _BITS[-1])


def place(model: str, roles: dict[str, Targets], path: str, target: TargetFile) -> list[str]:
    """Put a package where it belongs; gives the roles to sign anew. ``roles`` is changed in place."""
    bins = bins_of(roles[model])
    bits = bins.bit_length if bins is not None else 0
    # Counting all bins would be a pass over everything; an average bin tells as well.
    known = (
        len(roles[bins.get_role_for_target(path)].targets) << bits if bins is not None else len(roles[model].targets)
    )
    if bits_for(known + 1) > bits:
        return replace_all(model, roles, {**targets_of(model, roles), path: target})
    name = bins.get_role_for_target(path) if bins is not None else model
    roles[name].targets[path] = target
    return [name]


def replace_all(model: str, roles: dict[str, Targets], targets: dict[str, TargetFile]) -> list[str]:
    """Let a model have these packages and no others, in bins where they are many; gives the roles to sign anew.

    Bins take their keys and threshold from what the targets role says of the model. ``roles`` is changed in place.
    """
    role, before = roles[model], bins_of(roles[model])
    bits = max(bits_for(len(targets)), before.bit_length if before is not None else 0)
    if bits == 0:
        role.targets = targets
        return [model]
    top = roles["targets"].delegations
    if top is None or not top.roles or model not in top.roles:
        raise KeyError(f"the targets role does not name {model!r}")
    rule = top.roles[model]
    bins = SuccinctRoles(list(rule.keyids), rule.threshold, bits, f"{model}-bins")
    role.targets = {}
    role.delegations = Delegations({keyid: top.keys[keyid] for keyid in rule.keyids}, succinct_roles=bins)
    for name in bins.get_roles():
        if name not in roles:
            roles[name] = Targets(version=1, expires=role.expires)
            roles[name].version = 0  # signing raises it
        roles[name].targets = {}
    for path, target in targets.items():
        roles[bins.get_role_for_target(path)].targets[path] = target
    return role_names(model, roles)


def version_of(path: str) -> str:
    """The version that a package's path names; the path itself where it names none."""
    try:
        return parse_target(path)[1]
    except ManifestError:
        return path
