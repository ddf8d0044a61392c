"""A change of keys that may still lack signatures: one file, ``pending.json``, that goes from person to person.

It holds the new metadata with the signatures so far, and no private key. Nothing in it counts before every threshold
holds.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
from securesystemslib.signer import Key, Signature
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Signed, Targets, VerificationResult

from edge_agent.durable import sync_folder, write_durably
from trainer.publish.errors import SigningKeyError
from trainer.publish.hash_bins import model_of
from trainer.publish.key_uses import KeyUse, uses, uses_in
from trainer.publish.keys import DIRECTOR, DIRECTOR_ROOT, IMAGE_ROOT, IMAGE_TARGETS, SNAPSHOT, TIMESTAMP, model_key
from trainer.publish.metadata_folder import DIRECTOR_REPOSITORY, IMAGE, MetadataFolder, name_of
from trainer.publish.public_key import is_itself

PENDING_FILE = "pending.json"
_KEY = re.compile(r"(offline|approvers|publisher|server)(/[a-z0-9_-]{1,80}){1,2}")
_FILE = re.compile(r"(image|director)/[0-9]{1,9}\.[a-z0-9_-]{1,80}\.json")


class PendingChange(msgspec.Struct, kw_only=True):
    """What ``pending.json`` holds.

    Args:
        what: What was asked for, in words.
        begun: When, RFC 3339.
        files: Signed metadata by its path in the key folder: ``image/2.root.json``. Which keys come and go is read from
            it: nothing else in here is signed.
    """

    what: list[str] = []
    begun: str = ""
    files: dict[str, str] = {}

    def models(self) -> set[str]:
        """The models whose roles are signed anew by it: meanwhile nothing of theirs is published."""
        return {model_of(role_of(name)) for name in self.files} - {"root", "targets"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Requirement:
    """So many signatures of these keys are needed on a file.

    Args:
        file: ``image/2.root.json``.
        whose: Whose keys: those of ``root``, ``root until now``, ``targets``, ``digits``.
        signed, unsigned: Names of the keys that have, and that may still.
        old, new: Those of them that the change takes away, and those that take the place of a key of the same name.
    """

    file: str
    whose: str
    threshold: int
    signed: tuple[str, ...]
    unsigned: tuple[str, ...]
    old: tuple[str, ...] = ()
    new: tuple[str, ...] = ()

    @property
    def asked(self) -> tuple[str, ...]:
        """Whose signatures are asked for: of a key that is taken away only where the others are too few."""
        stay = tuple(name for name in self.unsigned if name not in self.old)
        return stay if len(stay) >= self.missing else self.unsigned

    @property
    def missing(self) -> int:
        """Signatures that it still lacks."""
        return max(0, self.threshold - len(self.signed))

    def text(self) -> str:
        """In a line, for a person."""
        by = f"signed by {self._marked(self.signed)}" if self.signed else "signed by nobody"
        line = f"{self.file}: {len(self.signed)} of {self.threshold} signatures by the keys of {self.whose} ({by})"
        if not self.missing:
            return line
        spared = tuple(name for name in self.unsigned if name not in self.asked)
        line += f"; {self.missing} missing of: {self._marked(self.asked)}"
        return line + (f"; not asked: {self._marked(spared)}" if spared else "")

    def _marked(self, names: tuple[str, ...]) -> str:
        marks = dict.fromkeys(self.new, " (the new key)") | dict.fromkeys(self.old, " (the key until now)")
        return ", ".join(name + marks.get(name, "") for name in names)


def role_of(file: str) -> str:
    """The role of a metadata file: ``digits`` of ``image/3.digits.json``."""
    return file.rpartition("/")[2].removesuffix(".json").partition(".")[2]


def read_pending(folder: Path) -> PendingChange | None:
    """The change that waits in a key folder, if one does.

    Raises:
        SigningKeyError: The file is damaged.
    """
    return read_pending_file(folder / PENDING_FILE)


def read_pending_file(path: Path) -> PendingChange | None:
    """The change in a file; None where there is none.

    Raises:
        SigningKeyError: The file is damaged.
    """
    try:
        change = msgspec.json.decode(path.read_bytes(), type=PendingChange)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SigningKeyError(
            f"{path}: cannot be read: {error}; take it from another person's copy, or `shoal keys discard`"
        ) from error
    # It comes from other machines: no name in it may lead out of the folder.
    for name in change.files:
        if _FILE.fullmatch(name) is None:
            raise SigningKeyError(f"{path}: {name!r} is no name of a metadata file; do not sign it")
    return change


def write_pending(folder: Path, change: PendingChange) -> None:
    """Keep a change; from here on it is finished or discarded, never half done."""
    write_durably(folder / PENDING_FILE, msgspec.json.format(msgspec.json.encode(change), indent=1))


def forget_pending(folder: Path) -> None:
    """The change is in force, or discarded."""
    (folder / PENDING_FILE).unlink(missing_ok=True)
    sync_folder(folder)


def metadata_in(change: PendingChange, file: str) -> Metadata[Any]:
    """One file of a change.

    Raises:
        SigningKeyError: It is no metadata, or a key in it is not the one that it is called, or called what no key is.
    """
    try:
        found: Metadata[Any] = Metadata.from_bytes(change.files[file].encode())
    except RepositoryError as error:
        raise SigningKeyError(f"{PENDING_FILE}: {file}: {error}; take it from another person's copy") from error
    for keyid, key in _keys_in(found.signed).items():
        if not is_itself(key):
            raise SigningKeyError(f"{PENDING_FILE}: {file}: {keyid} is the identifier of another key; do not sign it")
        # It names a file in whoever's folder the change comes into force in.
        if _KEY.fullmatch(name := name_of(key, default_name(file))) is None:
            raise SigningKeyError(f"{PENDING_FILE}: {file}: {name!r} is no name of a key; do not sign it")
    return found


def _keys_in(signed: Signed) -> Mapping[str, Key]:
    if isinstance(signed, Root):
        return signed.keys
    delegations = signed.delegations if isinstance(signed, Targets) else None
    return delegations.keys if delegations is not None else {}


def requirements(change: PendingChange, store: MetadataFolder) -> list[Requirement]:
    """All signatures that a change needs, with those that it has.

    Raises:
        SigningKeyError: A file of it is damaged, belongs to no role, or is not the next version of it.
    """
    found, current = [], _versions(store)
    before, then = uses(store), {use.keyid for use in keys_then(change, store)}
    known, names = {use.keyid for use in before}, {use.name for use in before}
    for file in change.files:
        metadata = metadata_in(change, file)
        _check_version(change, store, file, current.get(_place(file), 0))
        for whose, verify in delegators(change, store, file):
            result = verify(metadata.signed_bytes, metadata.signatures)
            one = requirement(file, whose, result, default=default_name(file))
            keys = {
                name_of(key, default_name(file)): keyid for keyid, key in {**result.signed, **result.unsigned}.items()
            }
            old = tuple(name for name, keyid in keys.items() if keyid in known and keyid not in then)
            new = tuple(name for name, keyid in keys.items() if keyid not in known and name in names)
            found.append(dataclasses.replace(one, old=old, new=new))
    return found


def _place(file: str) -> tuple[str, str]:
    return file.partition("/")[0], role_of(file)


def _versions(store: MetadataFolder) -> dict[tuple[str, str], int]:
    """The versions in force, by repository and role."""
    found = {(IMAGE, name): role.version for name, role in store.roles().items()}
    return found | {(one, Root.type): store.root_version(one) for one in (IMAGE, DIRECTOR_REPOSITORY)}


def _check_version(change: PendingChange, store: MetadataFolder, file: str, current: int) -> None:
    """What was in force once has all its signatures, and must not come back under a new name."""
    version = metadata_in(change, file).signed.version
    named = file == f"{file.partition('/')[0]}/{version}.{role_of(file)}.json"
    # A crash may have left the change half in force: then this very file counts already.
    in_force = version == current and named and store.data(file) == change.files[file].encode()
    if not named or (version != current + 1 and not in_force):
        raise SigningKeyError(
            f"{PENDING_FILE}: {file} holds version {version}, which does not follow {current}, in force here; take new "
            "copies of image/ and director/, or `shoal keys discard`"
        )


def requirement(file: str, whose: str, result: VerificationResult, *, default: str) -> Requirement:
    """What python-tuf found, with the names of people instead of key identifiers."""

    def names(keys: Mapping[str, Key]) -> tuple[str, ...]:
        return tuple(sorted(name_of(key, default) for key in keys.values()))

    return Requirement(
        file=file,
        whose=whose,
        threshold=result.threshold,
        signed=names(result.signed),
        unsigned=names(result.unsigned),
    )


_Verify = Callable[[bytes, dict[str, Signature]], VerificationResult]


def delegators(change: PendingChange, store: MetadataFolder, file: str) -> Iterator[tuple[str, _Verify]]:
    """Who must sign a file: its role by the metadata that will count with it; a root by the one before it, too."""
    repository, role = file.partition("/")[0], role_of(file)
    if role == Root.type:
        new = metadata_in(change, file).signed
        if store.root_version(repository) > 0:
            yield "root until now", _verifier(store.root(repository), Root.type)
        yield "root", _verifier(new, Root.type)
    elif role == Targets.type:
        yield role, _verifier(newest(change, store, Root.type, repository), role)
    elif role == model_of(role):
        yield role, _verifier(newest(change, store, Targets.type), role)
    else:
        yield model_of(role), _verifier(newest(change, store, model_of(role)), role)


def _verifier(delegator: Signed, role: str) -> _Verify:
    if not isinstance(delegator, (Root, Targets)):
        raise SigningKeyError(f"{PENDING_FILE}: {delegator.type} names no keys; take it from another person's copy")

    def verify(payload: bytes, signatures: dict[str, Signature]) -> VerificationResult:
        try:
            return delegator.get_verification_result(role, payload, signatures)
        except ValueError as error:
            raise SigningKeyError(f"{PENDING_FILE}: {error}; `shoal keys discard`, then begin anew") from error

    return verify


def newest(change: PendingChange, store: MetadataFolder, role: str, repository: str = IMAGE) -> Signed:
    """A root or targets role as it will be: that of the change, else the one in force."""
    for file in change.files:
        if role_of(file) == role and file.startswith(f"{repository}/"):
            signed: Signed = metadata_in(change, file).signed
            return signed
    return store.root(repository) if role == Root.type else store.roles()[role]


def default_name(file: str) -> str:
    """What the key of a role was called before keys had names in metadata."""
    repository, role = file.partition("/")[0], role_of(file)
    if repository == DIRECTOR_REPOSITORY:
        return DIRECTOR_ROOT if role == Root.type else DIRECTOR
    known = {
        Root.type: IMAGE_ROOT, Targets.type: IMAGE_TARGETS, "snapshot": SNAPSHOT, "timestamp": TIMESTAMP,
    }  # fmt: skip
    return known.get(role) or model_key(model_of(role))


def keys_then(change: PendingChange, store: MetadataFolder) -> list[KeyUse]:
    """Which key will be in which role, read from what is signed."""
    roots = {one: newest(change, store, Root.type, one) for one in (IMAGE, DIRECTOR_REPOSITORY)}
    targets = newest(change, store, Targets.type)
    if not isinstance(targets, Targets) or not all(isinstance(root, Root) for root in roots.values()):
        raise SigningKeyError(f"{PENDING_FILE}: its roles are of other types than their names; do not sign it")
    return uses_in({name: root for name, root in roots.items() if isinstance(root, Root)}, targets)


def keys_that_come(change: PendingChange, store: MetadataFolder) -> dict[str, set[str]]:
    """The keys that the change puts in force: their identifiers by name."""
    known, found = {(use.name, use.keyid) for use in uses(store)}, dict[str, set[str]]()
    for use in keys_then(change, store):
        if (use.name, use.keyid) not in known:
            found.setdefault(use.name, set()).add(use.keyid)
    return found


def merge(change: PendingChange, other: PendingChange, store: MetadataFolder) -> int:
    """Take the signatures of another copy of the same change; gives how many were new.

    Raises:
        SigningKeyError: It is another change.
    """
    taken = 0
    for file in change.files:
        mine = metadata_in(change, file)
        if file not in other.files:
            raise SigningKeyError(f"the other copy lacks {file}: it is of another change; begin from the same one")
        theirs = metadata_in(other, file)
        if theirs.signed_bytes != mine.signed_bytes:
            raise SigningKeyError(
                f"{file} differs in the other copy: it is of another change, or an earlier form of it"
            )
        for keyid, signature in theirs.signatures.items():
            held = [verify for _, verify in delegators(change, store, file)]
            good = any(keyid in verify(mine.signed_bytes, {keyid: signature}).signed for verify in held)
            if good and keyid not in mine.signatures:
                mine.signatures[keyid] = signature
                taken += 1
        change.files[file] = mine.to_bytes().decode()
    return taken
