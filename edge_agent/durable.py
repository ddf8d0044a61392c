"""Files that survive a power cut: written beside their name, synced, then renamed over it, the folder synced too."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def write_durably(path: Path, data: bytes, *, mode: int = 0o644, owner: tuple[int, int] | None = None) -> None:
    """Replace ``path`` by ``data``: after a crash at any point it holds the old bytes or the new ones, whole.

    Args:
        mode: Permission bits, set before a byte is written.
        owner: Ids of user and group that it shall belong to, as far as this user may give it away.
    Raises:
        OSError: As the system says; the old file is then untouched.
    """
    beside = path.with_name(f".{path.name}.new")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            if owner is not None:
                with contextlib.suppress(PermissionError):
                    os.fchown(file.fileno(), *owner)
            os.fchmod(file.fileno(), mode)  # an earlier crash may have left the file with another mode
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_tree(folder: Path) -> None:
    """Make the names in ``folder`` and in all folders within it durable."""
    for inner in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        sync_folder(inner)


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` durable: a rename is only on disk once its folder is (fsync(2), NOTES)."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
