"""A change that has all its signatures comes into force: in steps that may be repeated after a crash."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from edge_agent.durable import sync_folder
from trainer.publish.errors import KeyOfAnotherChange, SigningKeyError
from trainer.publish.key_uses import uses
from trainer.publish.keys import PENDING_KEYS, RETIRED, SNAPSHOT, TIMESTAMP, KeyFolder
from trainer.publish.metadata_folder import IMAGE, MetadataFolder
from trainer.publish.pending import (
    PendingChange,
    forget_pending,
    keys_that_come,
    keys_then,
    read_pending,
    requirements,
)
from trainer.publish.public_key import SUFFIX


def settle(keys: KeyFolder, store: MetadataFolder, sign_snapshot: Callable[[], None]) -> PendingChange | None:
    """Put the change that waits in force, if every threshold holds; finish what a crash left half done.

    Args:
        sign_snapshot: Signs snapshot and timestamp over what is then in force.
    Returns:
        What came into force, or None.
    Raises:
        SigningKeyError: A key of the publisher is needed and cannot be read.
    """
    change = read_pending(keys.folder)
    if change is None:
        shutil.rmtree(keys.folder / PENDING_KEYS, ignore_errors=True)  # of a change that was never written down
        return None
    if any(one.missing for one in requirements(change, store)) or not _publisher_is_here(keys, change, store):
        return None
    _move_keys(keys, change, store)
    for file, text in change.files.items():
        store.write(file, text.encode())
    for name in {use.name for use in keys_then(change, store)}:
        if name.startswith("approvers/") and keys.path(name).exists():
            give_root(store, name)
    sign_snapshot()
    forget_pending(keys.folder)
    shutil.rmtree(keys.folder / PENDING_KEYS, ignore_errors=True)
    return change


def give_root(store: MetadataFolder, name: str) -> None:
    """Put the newest root beside an approver's key: what that person judges the server's words by."""
    root = store.data(f"{IMAGE}/{store.root_version(IMAGE)}.root.json")
    store.write(f"{name.rpartition('/')[0]}/root.json", root)


def discard(keys: KeyFolder) -> PendingChange | None:
    """Forget the change that waits, and the keys that it would have brought.

    One that has all its signatures must be settled first: it may be half in force.
    """
    try:
        change = read_pending(keys.folder)
    except SigningKeyError as error:
        change = PendingChange(what=[str(error)])
    if change is not None:
        forget_pending(keys.folder)
    shutil.rmtree(keys.folder / PENDING_KEYS, ignore_errors=True)
    return change


def _publisher_is_here(keys: KeyFolder, change: PendingChange, store: MetadataFolder) -> bool:
    """Without snapshot and timestamp a change cannot come into force: it waits until the publisher finds it.

    Raises:
        KeyOfAnotherChange: One of them is another than the change names: what it would sign, nobody would believe.
    """
    then = {(use.name, use.keyid) for use in keys_then(change, store)}
    for name in (SNAPSHOT, TIMESTAMP):
        pending = keys.path(f"{PENDING_KEYS}/{name}")
        path = pending if pending.exists() else keys.path(name)
        if not path.exists():
            return False
        signer = keys.read(path, name)  # a wrong passphrase is found here, before anything is written
        if (name, signer.public_key.keyid) not in then:
            raise KeyOfAnotherChange(
                f"{path}: is another key than the change that waits names; it belongs to an earlier form of it, or to "
                "another folder: bring the right one, or `shoal keys discard`, then begin anew"
            )
    return True


def _move_keys(keys: KeyFolder, change: PendingChange, store: MetadataFolder) -> None:
    """Which keys come and go is read from what is signed: what else the file says, anybody could have written."""
    for name in keys_that_come(change, store):
        new, path = keys.path(f"{PENDING_KEYS}/{name}"), keys.path(name)
        if new.exists():
            _retire(keys, path, name)
            _move(new, path)
        elif new.with_suffix(SUFFIX).exists():  # made elsewhere; else an earlier attempt has moved it
            _retire(keys, path, name)
    for name in {use.name for use in uses(store)} - {use.name for use in keys_then(change, store)}:
        _retire(keys, keys.path(name), name)


def _retire(keys: KeyFolder, path: Path, name: str) -> None:
    if not path.exists():
        return
    number = 1
    while (target := keys.path(f"{RETIRED}/{name}.{number}")).exists():
        number += 1
    _move(path, target)


def _move(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.rename(target)
    for folder in (target.parent, path.parent):
        sync_folder(folder)
