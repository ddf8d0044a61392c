"""The packages on this device's disk: fetched beside the others, sharing files with them, staged by one rename."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from edge_agent.config import UpdateSettings
from edge_agent.contract.errors import (
    DeviceError,
    DigestMismatch,
    ManifestError,
    PackageError,
    ShoalError,
    StorageFull,
    storage_error,
)
from edge_agent.contract.manifest import MANIFEST_FILE, FileEntry, Manifest, decode_manifest
from edge_agent.durable import sync_folder, sync_tree
from edge_agent.runtime.package import Package, file_digest
from edge_agent.update.bandwidth import Bandwidth
from edge_agent.update.delta_download import DeltaDownload
from edge_agent.update.download import Download
from edge_agent.update.files_here import PARTS_FOLDER, FilesHere, is_here, link
from edge_agent.update.server_files import ServerFiles
from edge_agent.update.sources import Progress, Sources

# Left free for slots.json, metadata and the outbox's own housekeeping.
_RESERVE_BYTES = 4 << 20
# It is read into memory, and its length may have been signed with stolen keys.
_MOST_MANIFEST_BYTES = 16 << 20
# Of smaller files a delta saves less than it costs to ask for; one nearly as long as its file is not worth the work.
_LEAST_DELTA_BYTES = 4096
_DELTA_SHARE = 0.95
# The parent, and one more: asking is cheap, but a wave of devices asks for each.
_MOST_BASES = 2


class _Missing(NamedTuple):
    """A file of a manifest that is not here."""

    name: str
    place: Path
    entry: FileEntry


class PackageStore:
    """Folder of packages, each under its digest.

    Args:
        folder: Made where it is missing.
        files: The fleet server.
        settings: Mirrors, bandwidth, and whether files come as differences.
        monotonic: Seconds that never go back.
    """

    def __init__(
        self,
        folder: Path,
        files: ServerFiles,
        settings: UpdateSettings = UpdateSettings(),  # noqa: B008 - frozen
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._here = FilesHere(folder)
        self._parts = folder / PARTS_FOLDER
        bandwidth = Bandwidth(settings.max_kib_per_s)
        self._sources = Sources(files, settings.mirrors, bandwidth=bandwidth, monotonic=monotonic)
        self._with_deltas = settings.deltas

    @property
    def progress(self) -> Progress | None:
        """How far the files of the update under way have come; None where none is. Safe from any thread."""
        return self._sources.progress

    def folder_of(self, digest: str) -> Path:
        """Where a package lies when it is here."""
        return self._folder / digest

    def open(self, digest: str, *, verify: bool) -> Package:
        """A package that is here.

        Raises:
            PackageError, DigestMismatch: It is missing or damaged.
        """
        package = Package.open(self.folder_of(digest), verify=verify)
        if package.digest != digest:
            raise DigestMismatch(str(package.folder / MANIFEST_FILE), expected=digest, actual=package.digest)
        return package

    def open_to_serve(self, digest: str) -> tuple[Package, ShoalError | None]:
        """A package that is here, its files verified that serving needs.

        Returns:
            The package, and what is wrong with a file that serving does not need.
        Raises:
            PackageError, DigestMismatch: It is missing, or damaged where it matters.
        """
        package = self.open(digest, verify=False)
        by_need = sorted(package.manifest.files, key=package.is_served, reverse=True)
        serving = [name for name in by_need if package.is_served(name)]
        for name in serving:
            package.verify_file(name)
        try:
            for name in by_need[len(serving) :]:
                package.verify_file(name)
        except (PackageError, DigestMismatch) as error:
            return package, error
        return package, None

    def fetch_manifest(self, digest: str, length: int, *, between_chunks: Callable[[], None]) -> Manifest:
        """The manifest of a package, downloaded into the folder where the package will gather.

        Raises:
            ManifestError, NetworkError, StorageFull, StorageNotWritable: As they say.
        """
        if length > _MOST_MANIFEST_BYTES:
            raise ManifestError(f"{MANIFEST_FILE} has {length} bytes; more than {_MOST_MANIFEST_BYTES} are not read")
        place = self._gathering(digest) / MANIFEST_FILE
        self._sources.turn_to(digest)
        with self._storage_errors():
            place.parent.mkdir(exist_ok=True)  # its presence keeps the parts from being collected
            if not (place.exists() and file_digest(place) == digest):
                self._download(digest, length, place, between_chunks)
            return decode_manifest(place.read_bytes())

    def fetch_files(
        self,
        digest: str,
        manifest: Manifest,
        *,
        between_chunks: Callable[[], None],
        bases: Mapping[str, Path] | None = None,
    ) -> None:
        """All files of the manifest, verified: linked from packages already here, made of them, or downloaded.

        Args:
            bases: By path in the package, files to be tried first as what a delta is of.
        Raises:
            NetworkError, StorageFull, StorageNotWritable: As they say.
        """
        with self._storage_errors():
            missing = self._missing(digest, manifest)
            self._check_room(missing, manifest)
            self._sources.begin(digest, sum(entry.size_bytes for _, _, entry in missing))
            try:
                for at, (_, place, entry) in enumerate(missing):
                    same = next((each.place for each in missing[:at] if each.entry.sha256 == entry.sha256), None)
                    if not link(same, place, entry):
                        self._fetch(missing[at:], manifest, between_chunks, bases or {})
                    self._sources.done(entry.size_bytes)
            finally:
                self._sources.end()

    def check_room(self, digest: str, manifest: Manifest) -> None:
        """Return where there is room for what is missing of a package.

        Raises:
            StorageFull, StorageNotWritable: There is none, or the disk refuses.
        """
        with self._storage_errors():
            here = (self._folder / digest).is_dir()
            self._check_room([] if here else self._missing(digest, manifest), manifest)

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
                place.unlink(missing_ok=True)  # a download that broke off may share it with a package that serves
                shutil.copyfile(package.folder / name, place)
                with place.open("rb+") as file:
                    os.fsync(file.fileno())
            Package.open(gathering, verify=True)
        self.stage(package.digest)

    def collect(self, keep: set[str]) -> None:
        """Remove all packages but those in ``keep``, and what broken downloads left of the others."""
        for path in self._here.packages():
            if path.name.removeprefix(".gathering-") not in keep:
                shutil.rmtree(path, ignore_errors=True)
        if not any(path.name.startswith(".gathering-") for path in self._here.packages()):
            shutil.rmtree(self._parts, ignore_errors=True)

    def close(self) -> None:
        """Close the connections to mirrors; the server's are not this one's."""
        self._sources.close()

    def _missing(self, digest: str, manifest: Manifest) -> list[_Missing]:
        """The files that no package here has; the others are linked."""
        gathering, known = self._gathering(digest), self._here.by_sha256()
        missing: list[_Missing] = []
        for name, entry in manifest.files.items():
            place = gathering / name
            if not is_here(place, entry) and not link(known.get(entry.sha256), place, entry):
                missing.append(_Missing(name, place, entry))
        return missing

    def _gathering(self, digest: str) -> Path:
        return self._folder / f".gathering-{digest}"

    def _fetch(
        self,
        missing: list[_Missing],
        manifest: Manifest,
        between_chunks: Callable[[], None],
        preferred: Mapping[str, Path],
    ) -> None:
        """Bring the first of the missing files, as a delta where that can be; the others must have room too."""
        name, place, entry = missing[0]
        worth_it = self._with_deltas and entry.size_bytes >= _LEAST_DELTA_BYTES
        for sha256, base in self._here.like(name, manifest, preferred)[:_MOST_BASES] if worth_it else ():
            if self._from_delta(base, sha256, missing, between_chunks):
                (self._parts / entry.sha256).unlink(missing_ok=True)
                return
        self._download(entry.sha256, entry.size_bytes, place, between_chunks)

    def _from_delta(
        self, base: Path, base_sha256: str, missing: list[_Missing], between_chunks: Callable[[], None]
    ) -> bool:
        """Whether the first of the missing files could be made of a base."""
        _, place, entry = missing[0]
        if file_digest(base) != base_sha256:  # the disk has lost bits
            return False
        part = self._parts / entry.sha256
        if part.exists() and part.stat().st_size > entry.size_bytes // 2:
            return False  # most of the whole file is here already
        spare = shutil.disk_usage(self._folder).free - self._wanted(missing) - _RESERVE_BYTES
        return DeltaDownload(
            sources=self._sources,
            base=base,
            base_sha256=base_sha256,
            sha256=entry.sha256,
            size_bytes=entry.size_bytes,
            parts=self._parts,
            most_bytes=min(int(_DELTA_SHARE * entry.size_bytes), spare),
            between_chunks=between_chunks,
        ).to(place)

    def _download(self, sha256: str, size_bytes: int, place: Path, between_chunks: Callable[[], None]) -> None:
        Download(
            files=self._sources,
            sha256=sha256,
            size_bytes=size_bytes,
            part=self._parts / sha256,
            between_chunks=between_chunks,
        ).to(place)

    def _wanted(self, missing: list[_Missing]) -> int:
        """Bytes that are still to be written for these files, where they come whole."""
        parts = {path.name: path.stat().st_size for path in self._parts.glob("*")}
        return sum(max(0, each.entry.size_bytes - parts.get(each.entry.sha256, 0)) for each in missing)

    def _check_room(self, missing: list[_Missing], manifest: Manifest) -> None:
        for left in self._parts.glob("*.made"):  # of an attempt that was killed; it begins anew
            left.unlink()
        wanted = max(self._wanted(missing), manifest.resources.disk_bytes) + _RESERVE_BYTES
        free = shutil.disk_usage(self._folder).free
        if missing and free < wanted:
            for left in self._parts.glob("*.delta"):  # whole files need no room beside their own
                left.unlink()
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
