"""The first keys of a fleet, both roots, and an image repository without models."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence

from tuf.api.metadata import Root, Signed, Snapshot, Targets, Timestamp

from trainer.publish.change import sign_snapshot, signed_bytes
from trainer.publish.errors import SigningKeyError
from trainer.publish.keys import (
    DIRECTOR,
    DIRECTOR_ROOT,
    IMAGE_ROOT,
    IMAGE_TARGETS,
    SNAPSHOT,
    TIMESTAMP,
    KeyFolder,
    offline_key,
)
from trainer.publish.metadata_folder import DIRECTOR_REPOSITORY, IMAGE, Lifetimes, MetadataFolder, named, until

_ONLINE = {Snapshot.type: SNAPSHOT, Timestamp.type: TIMESTAMP}


def make_keys(
    keys: KeyFolder,
    store: MetadataFolder,
    lifetimes: Lifetimes,
    now: dt.datetime,
    *,
    kind: str,
    persons: Sequence[str],
    threshold: int,
) -> None:
    """Make all keys but those of models, and sign what they begin with.

    Args:
        persons: Who shares the power of the offline keys; one without a name holds them alone.
        threshold: So many of them must sign roots and targets.
    Raises:
        SigningKeyError: There are keys already, or the threshold cannot be met.
    """
    if keys.names():
        raise SigningKeyError(f"{keys.folder}: there are keys already; choose an empty folder")
    if not 1 <= threshold <= len(persons) or len(set(persons)) != len(persons):
        raise SigningKeyError(f"a threshold of {threshold} cannot be met by {len(persons)} different persons")
    shared = {
        name: [offline_key(name, person) for person in persons] for name in (IMAGE_ROOT, IMAGE_TARGETS, DIRECTOR_ROOT)
    }
    for name in (*(one for names in shared.values() for one in names), SNAPSHOT, TIMESTAMP, DIRECTOR):
        keys.make(name, kind=kind)
    store.keep_lifetimes(lifetimes)
    expires = until(now, lifetimes.root)
    of_director = dict.fromkeys((Targets.type, *_ONLINE), DIRECTOR)
    director = {Root.type: shared[DIRECTOR_ROOT], **{role: [name] for role, name in of_director.items()}}
    image = {Root.type: shared[IMAGE_ROOT], Targets.type: shared[IMAGE_TARGETS]}
    image |= {role: [name] for role, name in _ONLINE.items()}
    for repository, roles in ((DIRECTOR_REPOSITORY, director), (IMAGE, image)):
        root = _root(keys, roles, threshold, expires)
        _write(keys, store, f"{repository}/1.root.json", root, roles[Root.type])
    targets = Targets(version=1, expires=until(now, lifetimes.targets))
    _write(keys, store, f"{IMAGE}/1.targets.json", targets, shared[IMAGE_TARGETS])
    sign_snapshot(keys, store, {Targets.type: 1}, lifetimes, now)


def _root(keys: KeyFolder, roles: Mapping[str, Sequence[str]], threshold: int, expires: dt.datetime) -> Root:
    root = Root(version=1, expires=expires, consistent_snapshot=True)
    for role, names in roles.items():
        for name in names:
            root.add_key(named(keys.signer(name).public_key, name), role)
        root.roles[role].threshold = threshold if len(names) > 1 else 1
    return root


def _write(keys: KeyFolder, store: MetadataFolder, file: str, signed: Signed, names: Sequence[str]) -> None:
    store.write(file, signed_bytes(signed, [keys.signer(name) for name in names]))
