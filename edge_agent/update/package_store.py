"""The packages on this device's disk: fetched beside the others, sharing files with them, staged by one rename."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from edge_agent.contract.errors import DeviceError, DigestMismatch, PackageError, StorageFull, storage_error
from edge_agent.contract.manifest import MANIFEST_FILE, FileEntry, Manifest, decode_manifest
from edge_agent.durable import sync_folder, sync_tree
from edge_agent.runtime.package import Package, file_digest
from edge_agent.update.download import Download
from edge_agent.update.server_files import ServerFiles

# Left free for slots.json, metadata and the outbox's own housekeeping.
_RESERVE_BYTES = 4 << 20


class PackageStore:
    """Folder of packages, each under its digest.

    Args:
        folder: Made where it is missing.
    """

    def __init__(self, folder: Path, files: ServerFiles) -> None:
        self._folder, self._files = folder, files
        self._parts = folder / ".parts"

    def open(self, digest: str, *, verify: bool) -> Package:
        """A package that is here.

        Raises:
            PackageError, DigestMismatch: It is missing or damaged.
        """
        package = Package.open(self._folder / digest, verify=verify)
        if package.digest != digest:
            raise DigestMismatch(str(package.folder / MANIFEST_FILE), expected=digest, actual=package.digest)
        return package

    def fetch_manifest(self, digest: str, length: int, *, between_chunks: Callable[[], None]) -> Manifest:
        """The manifest of a package, downloaded into the folder where the package will gather.

        Raises:
            DigestMismatch, ManifestError, NetworkError, StorageFull, StorageNotWritable: As they say.
        """
        place = self._gathering(digest) / MANIFEST_FILE
        with self._storage_errors():
            place.parent.mkdir(exist_ok=True)  # its presence keeps the parts from being collected
            if not (place.exists() and file_digest(place) == digest):
                self._download(digest, length, place, between_chunks)
            return decode_manifest(place.read_bytes())

    def fetch_files(self, digest: str, manifest: Manifest, *, between_chunks: Callable[[], None]) -> None:
        """All files of the manifest, verified: linked from packages already here, the rest downloaded.

        Raises:
            DigestMismatch, NetworkError, StorageFull, StorageNotWritable: As they say.
        """
        gathering = self._gathering(digest)
        with self._storage_errors():
            known = self._known_files()
            missing: list[tuple[Path, FileEntry]] = []
            for name, entry in manifest.files.items():
                place = gathering / name
                if not self._is_here(place, entry) and not self._link(known.get(entry.sha256), place, entry):
                    missing.append((place, entry))
            self._check_room(missing, manifest)
            for place, entry in missing:
                self._download(entry.sha256, entry.size_bytes, place, between_chunks)

    def stage(self, digest: str) -> None:
        """Rename a gathered package to its place, durably.

        Raises:
            StorageFull, StorageNotWritable: The disk refuses.
        """
        gathering, place = self._gathering(digest), self._folder / digest
        with self._storage_errors():
            sync_tree(gathering)
            shutil.rmtree(place, ignore_errors=True)  # a damaged package of that name
            gathering.rename(place)
            sync_folder(self._folder)

    def add(self, package: Package) -> None:
        """Copy a package from elsewhere on this machine.

        Raises:
            StorageFull, StorageNotWritable, PackageError: As they say.
        """
        gathering = self._gathering(package.digest)
        with self._storage_errors():
            for name in (MANIFEST_FILE, *package.manifest.files):
                place = gathering / name
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(package.folder / name, place)
                with place.open("rb+") as file:
                    os.fsync(file.fileno())
            Package.open(gathering, verify=True)
        self.stage(package.digest)

    def collect(self, keep: set[str]) -> None:
        """Remove all packages but those in ``keep``, and what broken downloads left of the others."""
        for path in self._packages():
            if path.name.removeprefix(".gathering-") not in keep:
                shutil.rmtree(path, ignore_errors=True)
        if not any(path.name.startswith(".gathering-") for path in self._packages()):
            shutil.rmtree(self._parts, ignore_errors=True)

    def _gathering(self, digest: str) -> Path:
        return self._folder / f".gathering-{digest}"

    def _packages(self) -> list[Path]:
        if not self._folder.is_dir():
            return []
        return [path for path in self._folder.iterdir() if path.is_dir() and path != self._parts]

    def _known_files(self) -> dict[str, Path]:
        """A file for each SHA-256 that some package here has."""
        known: dict[str, Path] = {}
        for folder in self._packages():
            with contextlib.suppress(PackageError):  # half a package: its manifest has not come yet
                manifest = Package.open(folder, verify=False).manifest
                places = {entry.sha256: folder / name for name, entry in manifest.files.items()}
                # A package that gathers here names files that it lacks, and must not hide who has them.
                known |= {sha256: place for sha256, place in places.items() if place.is_file()}
        return known

    def _is_here(self, place: Path, entry: FileEntry) -> bool:
        return place.is_file() and place.stat().st_size == entry.size_bytes and file_digest(place) == entry.sha256

    def _link(self, source: Path | None, place: Path, entry: FileEntry) -> bool:
        """Share a file of another package; its bytes are checked again, for disks lose bits."""
        if source is None or not self._is_here(source, entry):
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

    def _download(self, sha256: str, size_bytes: int, place: Path, between_chunks: Callable[[], None]) -> None:
        Download(
            files=self._files,
            sha256=sha256,
            size_bytes=size_bytes,
            part=self._parts / sha256,
            between_chunks=between_chunks,
        ).to(place)

    def _check_room(self, missing: list[tuple[Path, FileEntry]], manifest: Manifest) -> None:
        wanted = sum(entry.size_bytes for _, entry in missing)
        here = sum(path.stat().st_size for path in self._parts.glob("*"))
        wanted = max(wanted - here, manifest.resources.disk_bytes) + _RESERVE_BYTES
        free = shutil.disk_usage(self._folder).free
        if missing and free < wanted:
            raise StorageFull(
                f"{self._folder}: {manifest.name} {manifest.version} needs {wanted} bytes, {free} are free"
            )

    @contextlib.contextmanager
    def _storage_errors(self) -> Iterator[None]:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            yield
        except OSError as error:
            where = str(error.filename or self._folder)
            raise storage_error(error, where) or DeviceError(f"{where}: {error.strerror}") from error
