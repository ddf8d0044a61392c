"""The files that packages on this device have already: to share, or to make others of."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from edge_agent.contract.errors import PackageError
from edge_agent.contract.manifest import FileEntry, Manifest
from edge_agent.runtime.package import Package, file_digest

PARTS_FOLDER = ".parts"


class FilesHere:
    """Looks through a folder of packages, as it is at each call.

    Args:
        folder: With a folder for each package, and :data:`PARTS_FOLDER`, which is none.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def packages(self) -> list[Path]:
        """Their folders, those included that still gather."""
        if not self._folder.is_dir():
            return []
        return [path for path in self._folder.iterdir() if path.is_dir() and path != self._folder / PARTS_FOLDER]

    def by_sha256(self) -> dict[str, Path]:
        """A file for each SHA-256 that some package here has."""
        known: dict[str, Path] = {}
        for folder in self.packages():
            with contextlib.suppress(PackageError):  # half a package: its manifest has not come yet
                manifest = Package.open(folder, verify=False).manifest
                places = {entry.sha256: folder / name for name, entry in manifest.files.items()}
                # A package that gathers here names files that it lacks, and must not hide who has them.
                known |= {sha256: place for sha256, place in places.items() if place.is_file()}
        return known

    def like(self, name: str, manifest: Manifest, preferred: Mapping[str, Path]) -> list[tuple[str, Path]]:
        """Files by SHA-256 that one of a manifest may be a little different from, the likeliest first.

        Args:
            preferred: By path in the package, files to be taken before all others.
        """
        found: dict[str, Path] = {}
        if name in preferred and preferred[name].is_file():
            found[file_digest(preferred[name])] = preferred[name]
        for folder in sorted(self.packages(), key=lambda path: (path.name != manifest.parent, path.name)):
            with contextlib.suppress(PackageError):  # half a package: its manifest has not come yet
                held = Package.open(folder, verify=False).manifest
                entry = held.files.get(name)
                if held.name == manifest.name and entry is not None and (folder / name).is_file():
                    found.setdefault(entry.sha256, folder / name)
        found.pop(manifest.files[name].sha256, None)
        return list(found.items())


def is_here(place: Path, entry: FileEntry) -> bool:
    """Whether a file is what the manifest names; all of it is read."""
    return place.is_file() and place.stat().st_size == entry.size_bytes and file_digest(place) == entry.sha256


def link(source: Path | None, place: Path, entry: FileEntry) -> bool:
    """Share a file of another package; its bytes are checked again, for disks lose bits.

    Returns:
        Whether that was done; not where there is none, or it has been spoilt.
    Raises:
        OSError: The disk refuses.
    """
    if source is None or not is_here(source, entry):
        return False
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    try:
        os.link(source, place)
    except OSError:  # a file system without links
        shutil.copyfile(source, place)
        with place.open("rb+") as file:
            os.fsync(file.fileno())
    return True
