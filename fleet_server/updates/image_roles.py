"""The roles of the image repository: who may delegate to whom, and who may sign what. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from tuf.api.metadata import DelegatedRole, Delegations, Root, SuccinctRoles, TargetFile, Targets

from edge_agent.contract.errors import ManifestError
from edge_agent.contract.repository import parse_target
from fleet_server.updates.errors import UploadRefused

# Each bin is 140 bytes in the snapshot, of which devices read a megabyte at most.
_BIN_BITS = 12


def reached(load: Callable[[str, str], Targets]) -> dict[str, Targets]:
    """The top-level targets, each model's role, and its hash bins, by name.

    Args:
        load: Gives a role, by its name and its delegator's; it must verify what needs to be.
    Raises:
        UploadRefused: A role delegates to what it may not.
    """
    targets = load(Targets.type, Root.type)
    roles = {Targets.type: targets}
    if targets.delegations is not None and targets.delegations.succinct_roles is not None:
        raise UploadRefused("the targets role must name each model's role, not bins of its own")
    for model, rule in _delegated(targets):
        roles[model] = load(model, Targets.type)
        bins = _bins_like(model, roles[model].delegations, rule, targets.delegations)
        for name in bins.get_roles() if bins is not None else ():
            roles[name] = load(name, model)
            if roles[name].delegations is not None:
                raise UploadRefused(f"role {name!r} is a bin, and must not delegate")
    return roles


def _bins_like(
    model: str, delegations: Delegations | None, rule: DelegatedRole, known: Delegations | None
) -> SuccinctRoles | None:
    """A model's bins, which need as many signatures of the very same keys as the model itself.

    Else whoever signs one release with the publisher would hand all later ones to whom the publisher likes.
    """
    if delegations is None:
        return None
    bins = delegations.succinct_roles
    if bins is None or bins.name_prefix != f"{model}-bins" or bins.bit_length > _BIN_BITS:
        raise UploadRefused(f"role {model!r} may delegate to bins {model}-bins-... only, at most 2**{_BIN_BITS}")
    # An identifier may stand for any key (TUF, 4.2): what it stands for must be the same, too.
    others = known.keys if known is not None else {}
    same_keys = all(delegations.keys.get(keyid) == others.get(keyid) for keyid in rule.keyids)
    if set(bins.keyids) != set(rule.keyids) or bins.threshold != rule.threshold or not same_keys:
        raise UploadRefused(f"the bins of {model!r} need other keys, or another number of them, than the model does")
    return bins


def all_targets(roles: Mapping[str, Targets]) -> dict[str, TargetFile]:
    """Every target that the roles may sign, by its path.

    Raises:
        UploadRefused: One has signed what it may not, two have signed the same, or a path is none of ours.
    """
    found: dict[str, TargetFile] = {}
    for name, targets, allowed in _signing(roles):
        signed = _targets_of(name, targets, allowed)
        # Devices believe the first role that they come to: a second one would say what nobody looks at.
        if both := found.keys() & signed.keys():
            raise UploadRefused(f"role {name!r} signs {min(both)!r}, which another role signs already")
        found |= signed
    return found


def _signing(roles: Mapping[str, Targets]) -> Iterator[tuple[str, Targets, Callable[[str], bool] | None]]:
    """Each role that may sign packages, and which."""
    yield Targets.type, roles[Targets.type], None
    for model, rule in _delegated(roles[Targets.type]):
        yield model, roles[model], rule.is_delegated_path
        if (bins := bins_of(roles[model])) is not None:
            for name in bins.get_roles():
                yield name, roles[name], _in_bin(bins, name, rule)


def _in_bin(bins: SuccinctRoles, name: str, rule: DelegatedRole) -> Callable[[str], bool]:
    return lambda path: rule.is_delegated_path(path) and bins.get_role_for_target(path) == name


def bins_of(role: Targets | None) -> SuccinctRoles | None:
    """The hash bins that a model's role delegates to, if it does."""
    return role.delegations.succinct_roles if role is not None and role.delegations is not None else None


def _delegated(role: Targets) -> Iterable[tuple[str, DelegatedRole]]:
    return ((role.delegations.roles if role.delegations is not None else None) or {}).items()


def _targets_of(role: str, targets: Targets, allowed: Callable[[str], bool] | None) -> dict[str, TargetFile]:
    for path, target in targets.targets.items():
        try:
            parse_target(path)
        except ManifestError as error:
            raise UploadRefused(f"role {role!r}: {error}") from error
        if allowed is not None and not allowed(path):
            raise UploadRefused(f"role {role!r} may not sign {path!r}: another model's key is needed")
        if "sha256" not in target.hashes:
            raise UploadRefused(f"role {role!r}: target {path!r} has no SHA-256")
    return dict(targets.targets)
