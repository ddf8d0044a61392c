"""A change that has all its signatures comes into force: in steps that may be repeated after a crash."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from edge_agent.durable import sync_folder
from trainer.publish.errors import SigningKeyError
from trainer.publish.keys import PENDING_KEYS, RETIRED, SNAPSHOT, TIMESTAMP, KeyFolder
from trainer.publish.metadata_folder import IMAGE, MetadataFolder
from trainer.publish.pending import PendingChange, forget_pending, read_pending, requirements


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
    if any(one.missing for one in requirements(change, store)) or not _publisher_is_here(keys):
        return None
    _move_keys(keys, change)
    for file, text in change.files.items():
        store.write(file, text.encode())
    for name in change.keys:
        if name.startswith("approvers/"):
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


def _publisher_is_here(keys: KeyFolder) -> bool:
    """Without snapshot and timestamp a change cannot come into force: it waits until the publisher finds it."""
    for name in (SNAPSHOT, TIMESTAMP):
        pending = keys.path(f"{PENDING_KEYS}/{name}")
        path = pending if pending.exists() else keys.path(name)
        if not path.exists():
            return False
        keys.read(path, name)  # a wrong passphrase is found here, before anything is written
    return True


def _move_keys(keys: KeyFolder, change: PendingChange) -> None:
    for name in change.keys:
        new, path = keys.path(f"{PENDING_KEYS}/{name}"), keys.path(name)
        if new.exists():  # else an earlier attempt has moved it
            _retire(keys, path, name)
            _move(new, path)
    for name in change.retired:
        if name not in change.keys:
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
