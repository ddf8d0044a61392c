"""Keys of one person become keys of several, and models get approvers, while devices go on as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from securesystemslib.signer import Key
from tuf.api.metadata import Delegations, Root, Targets

from trainer.publish.change import KeyChange
from trainer.publish.errors import SigningKeyError
from trainer.publish.keys import DIRECTOR_ROOT, IMAGE_ROOT, IMAGE_TARGETS, approver_key, model_key, offline_key
from trainer.publish.metadata_folder import DIRECTOR_REPOSITORY, IMAGE, name_of, named
from trainer.publish.rotation import sign_model_anew

_OFFLINE = (
    (IMAGE, Root.type, IMAGE_ROOT),
    (IMAGE, Targets.type, IMAGE_TARGETS),
    (DIRECTOR_REPOSITORY, Root.type, DIRECTOR_ROOT),
)


def share(change: KeyChange, persons: Sequence[str], *, threshold: int, kind: str) -> None:
    """Let these persons, and nobody else, hold the offline keys; who holds them already keeps theirs.

    Args:
        threshold: So many of them must sign from then on.
    Raises:
        SigningKeyError: The threshold cannot be met.
    """
    if not 1 <= threshold <= len(persons) or len(set(persons)) != len(persons):
        raise SigningKeyError(f"a threshold of {threshold} cannot be met by {len(persons)} different persons")
    for repository, role, base in _OFFLINE:
        root = change.root(repository)
        wanted = [offline_key(base, person) for person in persons]
        held = {name_of(root.keys[keyid], base): keyid for keyid in root.roles[role].keyids}
        for name in wanted:
            if name not in held:
                root.add_key(change.new_key(name, kind).public_key, role)
        for name, keyid in held.items():
            if name not in wanted:
                root.revoke_key(keyid, role)
        root.roles[role].threshold = threshold
    change.role(Targets.type)  # the new keys sign it


def set_approvers(
    change: KeyChange, model: str, approvers: Mapping[str, Key | None], *, threshold: int | None, kind: str
) -> None:
    """Let these persons, and nobody else, approve the releases of a model.

    Args:
        approvers: With the public key of each who made one; nobody: the publisher signs alone again.
        threshold: Signatures of a release, the publisher's among them; None: 2, without approvers 1.
    Raises:
        SigningKeyError: The model is not known, or the threshold cannot be met.
    """
    wanted = threshold if threshold is not None else 2 if approvers else 1
    if not 1 <= wanted <= 1 + len(approvers):
        raise SigningKeyError(f"{model}: {wanted} signatures of {1 + len(approvers)} keys cannot be had")
    targets = change.role(Targets.type)
    delegations = targets.delegations
    if delegations is None or not delegations.roles or model not in delegations.roles:
        raise SigningKeyError(f"the model {model!r} is not known here; `shoal keys add-model` makes its key")
    rule = delegations.roles[model]
    held = {name_of(delegations.keys[keyid], model_key(model)): keyid for keyid in rule.keyids}
    names = {approver_key(person): key for person, key in approvers.items()}
    for name, key in names.items():
        if name not in held or key is not None:
            targets.add_key(_key(change, delegations, name, key, kind), model)
    for name, keyid in held.items():
        given = names.get(name)
        replaced = given is not None and given.keyid != keyid
        if name.startswith("approvers/") and (name not in names or replaced):
            targets.revoke_key(keyid, model)
    rule.threshold = wanted
    sign_model_anew(change, model)


def _key(change: KeyChange, known: Delegations, name: str, given: Key | None, kind: str) -> Key:
    """The key given, that of another model which names the person too, or a new one."""
    if given is not None:
        return named(given, name)
    found = next((key for key in known.keys.values() if name_of(key, "") == name), None)
    return found or change.new_key(name, kind).public_key
