"""Which key is in which role, read from the metadata in force: what can be rotated and revoked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from tuf.api.metadata import Role, Root, Snapshot, Targets, Timestamp

from trainer.publish.errors import SigningKeyError
from trainer.publish.keys import DIRECTOR, DIRECTOR_ROOT, IMAGE_ROOT, IMAGE_TARGETS, SNAPSHOT, TIMESTAMP, model_key
from trainer.publish.metadata_folder import DIRECTOR_REPOSITORY, IMAGE, MetadataFolder, name_of

_DEFAULTS = {
    (IMAGE, Root.type): IMAGE_ROOT,
    (IMAGE, Targets.type): IMAGE_TARGETS,
    (IMAGE, Snapshot.type): SNAPSHOT,
    (IMAGE, Timestamp.type): TIMESTAMP,
    (DIRECTOR_REPOSITORY, Root.type): DIRECTOR_ROOT,
}
# What people call a role, and where it is.
_PLACES = {
    "root": (IMAGE, Root.type),
    "targets": (IMAGE, Targets.type),
    "snapshot": (IMAGE, Snapshot.type),
    "timestamp": (IMAGE, Timestamp.type),
    "director-root": (DIRECTOR_REPOSITORY, Root.type),
    "director": (DIRECTOR_REPOSITORY, Targets.type),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeyUse:
    """A key in a role.

    Args:
        name: ``offline/anna/image-root``.
        repository, role: Where: ``image`` and ``root``; a model's role is in ``image``.
        threshold, keys: Of the role: how many signatures it needs, how many keys it has.
    """

    name: str
    keyid: str
    repository: str
    role: str
    threshold: int
    keys: int

    @property
    def called(self) -> str:
        """The role as people call it."""
        place = (self.repository, self.role)
        return next((name for name, known in _PLACES.items() if known == place), self.role)


def uses(store: MetadataFolder) -> list[KeyUse]:
    """Every key in every role: the director's, which is in three roles of its repository, is there three times."""
    roots = {repository: store.root(repository) for repository in (IMAGE, DIRECTOR_REPOSITORY)}
    return uses_in(roots, store.roles()["targets"])


def uses_in(roots: Mapping[str, Root], targets: Targets) -> list[KeyUse]:
    """As :func:`uses`, of metadata that may not be in force yet.

    Args:
        roots: By repository.
    """
    found: list[KeyUse] = []
    for repository, root in roots.items():
        for role, rule in root.roles.items():
            for keyid in rule.keyids:
                name = name_of(root.keys[keyid], _DEFAULTS.get((repository, role), DIRECTOR))
                found.append(_use(name, keyid, (repository, role), rule))
    delegations = targets.delegations
    if delegations is None or delegations.roles is None:
        return found
    for model, delegated in delegations.roles.items():
        for keyid in delegated.keyids:
            name = name_of(delegations.keys[keyid], model_key(model))
            found.append(_use(name, keyid, (IMAGE, model), delegated))
    return found


def in_role(store: MetadataFolder, role: str, key: str | None) -> list[KeyUse]:
    """The keys of a role, or the one of them that ``key`` names.

    Raises:
        SigningKeyError: There is no such role, or no such key in it.
    """
    repository, name = _PLACES.get(role, (IMAGE, role))
    everywhere = uses(store)
    found = [use for use in everywhere if (use.repository, use.role) == (repository, name)]
    if not found:
        models = (use.role for use in everywhere if use.called == use.role)
        known = ", ".join(dict.fromkeys([*_PLACES, *models]))
        raise SigningKeyError(f"there is no role {role!r}; known: {known}")
    if key is None and name not in {Root.type, Targets.type}:
        # Of a model it is the publisher's key that is meant: approvers' keys are theirs.
        own = [use for use in found if not use.name.startswith("approvers/")]
        found = own or found
    wanted = {use.keyid for use in (found if key is None else _matching(found, key))}
    # A key has one file: where it is in other roles too, as the director's is, it is replaced there with it.
    return [use for use in everywhere if use.keyid in wanted]


def named_key(store: MetadataFolder, name: str) -> list[KeyUse]:
    """All uses of the key or keys that a name means: ``publisher/snapshot``, ``snapshot``, or ``anna`` for all of hers.

    Raises:
        SigningKeyError: There is none, or the name means keys of several persons.
    """
    return _matching(uses(store), name)


def _matching(among: list[KeyUse], name: str) -> list[KeyUse]:
    found = [use for use in among if name in (use.name, f"{use.name}.pem")] or [
        use for use in among if name in use.name.split("/")
    ]
    names = sorted({use.name for use in found})
    if not names:
        known = ", ".join(sorted({use.name for use in among}))
        raise SigningKeyError(f"there is no key {name!r} in force; known: {known}")
    if len({one.rpartition("/")[0] for one in names}) > 1:
        raise SigningKeyError(f"{name!r} may be any of {', '.join(names)}; say which")
    return found


def _use(name: str, keyid: str, place: tuple[str, str], rule: Role) -> KeyUse:
    return KeyUse(
        name=name, keyid=keyid, repository=place[0], role=place[1], threshold=rule.threshold, keys=len(rule.keyids)
    )
