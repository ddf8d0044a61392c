"""A change of roots, targets and keys: drafted, signed with the keys at hand, in force once every threshold holds.

Every change is first written down whole, as ``pending.json``, and only then carried out, in steps that may be repeated:
a crash leaves either a change that the next command finishes, or keys of a change that never was, which it removes.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from typing import Any

from securesystemslib.signer import CryptoSigner, Key, Signature
from tuf.api.metadata import Metadata, MetaFile, Root, Signed, Snapshot, Targets, Timestamp

from trainer.publish.errors import SigningKeyError
from trainer.publish.keys import PENDING_KEYS, SNAPSHOT, TIMESTAMP, KeyFolder, generate
from trainer.publish.metadata_folder import IMAGE, Lifetimes, MetadataFolder, named, until
from trainer.publish.pending import (
    PendingChange,
    Requirement,
    default_name,
    delegators,
    keys_that_come,
    metadata_in,
    read_pending,
    requirement,
    requirements,
    role_of,
    write_pending,
)
from trainer.publish.public_key import SUFFIX, write_public

# Told before a change is written over one that waits: what waited, and the signatures that are lost with it.
Joins = Callable[[Sequence[str], Sequence[str]], None]


def refuse_loss(waited: Sequence[str], lost: Sequence[str]) -> None:
    """Lose no signature that was given.

    Raises:
        SigningKeyError: One would be.
    """
    if lost:
        raise SigningKeyError(
            f"{', '.join(lost)}: would be lost, as {'; '.join(waited)} waits already; sign that first"
        )


class KeyChange:
    """The change that is being made in a key folder: what waits already, and what is added to it.

    Args:
        keys, store: The key folder.
        lifetimes, now: Of what is signed.
        may_wait: Whether it may be written down without the one key that it needs.
        joins: Told, or asked, before it is made one with a change that waits.
    """

    def __init__(
        self,
        keys: KeyFolder,
        store: MetadataFolder,
        lifetimes: Lifetimes,
        now: Callable[[], dt.datetime],
        *,
        may_wait: bool = False,
        joins: Joins = refuse_loss,
    ) -> None:
        self._may_wait, self._joins = may_wait, joins
        self._keys, self._store, self._lifetimes, self._now = keys, store, lifetimes, now
        self.pending = read_pending(keys.folder) or PendingChange(begun=now().isoformat())
        self.waited, self.lost = list(self.pending.what), list[str]()
        self._drafts: dict[str, Signed] = {}
        self._files: dict[str, str] = {}  # of each draft, which file of the pending change it replaces
        self.new_keys: dict[str, CryptoSigner] = {}
        self._from_elsewhere: dict[str, Key] = {}

    def root(self, repository: str) -> Root:
        """The next root of a repository, to be changed in place."""
        signed = self._draft(Root.type, repository, lambda: self._store.root(repository))
        if not isinstance(signed, Root):
            raise SigningKeyError(f"pending.json: {repository}: is no root; `shoal keys discard`, then begin anew")
        signed.expires = until(self._now(), self._lifetimes.root)
        return signed

    def role(self, name: str, otherwise: Targets | None = None) -> Targets:
        """The next targets role of that name, to be changed in place.

        Args:
            otherwise: Of a role that was never signed: its first version.
        """
        signed = self._draft(name, IMAGE, lambda: otherwise or self._store.roles()[name], fresh=otherwise is not None)
        if not isinstance(signed, Targets):
            raise SigningKeyError(f"pending.json: {name}: is no targets; `shoal keys discard`, then begin anew")
        signed.expires = until(self._now(), self._lifetimes.targets)
        return signed

    def roles(self) -> dict[str, Targets]:
        """All roles as they will be: those of the change, else those in force."""
        found = self._store.roles()
        for file in self.pending.files:
            signed = metadata_in(self.pending, file).signed
            if isinstance(signed, Targets):
                found[role_of(file)] = signed
        return found | {name: one for name, one in self._drafts.items() if isinstance(one, Targets)}

    def new_key(self, name: str, kind: str) -> CryptoSigner:
        """A new key that gets this name when the change is in force; the file that has it now is retired then.

        Raises:
            SigningKeyError: The change brings a key of that name already.
        """
        self._refuse_twice(name)
        signer = generate(kind)
        named(signer.public_key, name)
        self.new_keys[name] = signer
        return signer

    def key_from_elsewhere(self, name: str, key: Key) -> None:
        """A key that gets this name when the change is in force, and whose private part is not here.

        Raises:
            SigningKeyError: The change brings a key of that name already.
        """
        self._refuse_twice(name)
        self._from_elsewhere[name] = named(key, name)

    def sign(self, what: str) -> list[Requirement]:
        """Sign what was drafted with every key at hand; gives what is needed and what of it is there.

        Raises:
            SigningKeyError: Nobody's key is at hand, where one alone would do.
        """
        given = self._given()
        self.pending.what.append(what)
        for name, draft in self._drafts.items():
            self.pending.files.pop(self._files.get(name, ""), None)
            self.pending.files[self._file(name, draft)] = signed_bytes(draft, []).decode()
        failures: list[SigningKeyError] = []
        for file in self.pending.files:
            self._sign_file(file, failures)
        self.lost = sorted(given - self._given())
        return requirements(self.pending, self._store)

    def _given(self) -> set[str]:
        """The signatures that count so far."""
        found = requirements(self.pending, self._store) if self.pending.files else []
        return {f"the signature of {name} on {one.file}" for one in found for name in one.signed}

    def save(self) -> None:
        """Write the change down, its new private keys first.

        Raises:
            SigningKeyError: Signatures would be lost, and nobody was asked.
        """
        if self.waited:
            self._joins(self.waited, self.lost)
        for name, signer in self.new_keys.items():
            path = self._keys.path(f"{PENDING_KEYS}/{name}")
            path.unlink(missing_ok=True)  # of an earlier form of this change, never in force
            self._keys.store(name, signer, folder=PENDING_KEYS)
        for name, key in self._from_elsewhere.items():
            path = self._keys.path(f"{PENDING_KEYS}/{name}").with_suffix(SUFFIX)
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_public(path, key)
        write_pending(self._keys.folder, self.pending)

    def _refuse_twice(self, name: str) -> None:
        coming = keys_that_come(self.pending, self._store) if self.pending.files else {}
        if name in self.new_keys or name in self._from_elsewhere or name in coming:
            raise SigningKeyError(f"{name} is being replaced already: see `shoal keys status`, sign it or discard it")

    def _draft(self, role: str, repository: str, current: Callable[[], Signed], *, fresh: bool = False) -> Signed:
        key = role if repository == IMAGE else f"{repository}/{role}"
        if key not in self._drafts:
            for file in self.pending.files:
                if role_of(file) == role and file.startswith(f"{repository}/"):
                    self._drafts[key], self._files[key] = metadata_in(self.pending, file).signed, file
                    return self._drafts[key]
            signed = current()
            signed.version += 0 if fresh else 1
            self._drafts[key] = signed
        return self._drafts[key]

    def _file(self, key: str, draft: Signed) -> str:
        repository, _, role = key.rpartition("/")
        return f"{repository or IMAGE}/{draft.version}.{role}.json"

    def _sign_file(self, file: str, failures: list[SigningKeyError]) -> None:
        metadata = metadata_in(self.pending, file)
        for _, verify in delegators(self.pending, self._store, file):
            result = verify(metadata.signed_bytes, metadata.signatures)
            needed = requirement(file, "", result, default=default_name(file))
            opened = 0
            for name in needed.unsigned:
                try:
                    signer = self._at_hand(name, set(result.unsigned))
                except SigningKeyError as error:
                    failures.append(error)
                    continue
                if signer is not None:
                    metadata.sign(signer, append=True)
                    opened += 1
            if needed.threshold == 1 and not needed.signed and not opened and not self._may_wait:
                raise failures[-1] if failures else self._missing(needed)
        self.pending.files[file] = metadata.to_bytes().decode()

    def _at_hand(self, name: str, keyids: set[str]) -> CryptoSigner | None:
        candidates = [self.new_keys[name]] if name in self.new_keys else []
        paths = (self._keys.path(name), self._keys.path(f"{PENDING_KEYS}/{name}"))
        candidates += [self._keys.read(path, name) for path in paths if path.exists()]
        return next((one for one in candidates if one.public_key.keyid in keyids), None)

    def _missing(self, needed: Requirement) -> SigningKeyError:
        names = " or ".join(str(self._keys.path(name)) for name in needed.unsigned)
        return SigningKeyError(
            f"{names}: the key is not here, and {needed.file} needs it; bring it from where it is kept"
        )


def add_signature(change: PendingChange, store: MetadataFolder, signer: CryptoSigner) -> list[str]:
    """Sign every file of a change that this key counts for and has not signed; gives the files."""
    signed = []
    for file in change.files:
        metadata = metadata_in(change, file)
        keyid = signer.public_key.keyid
        wanted = [keyid in verify(metadata.signed_bytes, {}).unsigned for _, verify in delegators(change, store, file)]
        if any(wanted) and keyid not in metadata.signatures:
            metadata.sign(signer, append=True)
            change.files[file] = metadata.to_bytes().decode()
            signed.append(file)
    return signed


def counts_for(change: PendingChange, store: MetadataFolder, keyid: str) -> bool:
    """Whether a key's signature is of any use to a change."""
    nothing: dict[str, Signature] = {}
    return any(
        keyid in verify(metadata_in(change, file).signed_bytes, nothing).unsigned
        for file in change.files
        for _, verify in delegators(change, store, file)
    )


def sign_snapshot(
    keys: KeyFolder, store: MetadataFolder, roles: dict[str, int], lifetimes: Lifetimes, now: dt.datetime
) -> None:
    """Snapshot, then timestamp: until that is written, the versions before are the ones that count.

    Args:
        roles: Versions of all roles; a role that the snapshot before names stays in it (TUF, 5.5.5).
    Raises:
        SigningKeyError: A key is missing, or the disk refuses.
    """
    before = store.timestamp()
    version = before.version + 1 if before is not None else 1
    expires = until(now, lifetimes.snapshot)
    meta: dict[str, MetaFile] = store.snapshot().meta if before is not None else {}
    meta |= {f"{name}.json": store.meta(name, number) for name, number in roles.items()}
    snapshot = Snapshot(version=version, expires=expires, meta=dict(sorted(meta.items())))
    data = signed_bytes(snapshot, [keys.signer(SNAPSHOT)])
    store.write(f"{IMAGE}/{version}.snapshot.json", data)
    newest = MetaFile.from_data(version, data, ["sha256"])
    timestamp = Timestamp(version=version, expires=expires, snapshot_meta=newest)
    store.write(f"{IMAGE}/timestamp.json", signed_bytes(timestamp, [keys.signer(TIMESTAMP)]))


def signed_bytes(signed: Signed, signers: list[CryptoSigner]) -> bytes:
    """Metadata with the signatures of these keys."""
    metadata: Metadata[Any] = Metadata(signed)
    for signer in signers:
        metadata.sign(signer, append=True)
    return metadata.to_bytes()
