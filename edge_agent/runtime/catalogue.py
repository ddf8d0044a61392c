"""Which packages this device has, loaded or not: those that the fleet installed, and those in a folder of its own."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

from edge_agent.contract.errors import DeviceError, ShoalError
from edge_agent.contract.manifest import MANIFEST_FILE
from edge_agent.runtime.package import Package

_log = logging.getLogger(__name__)

# When the manifest was written, its size and inode: what changes when a package is put in another's place.
_Stamp = tuple[int, int, int]


class Known(NamedTuple):
    """A package on this device, its files not yet verified.

    Args:
        installed: Whether it came from the fleet; ``active``: whether it is the one that the fleet wants served.
        watched: Whether it is on probation.
    """

    package: Package
    installed: bool = False
    active: bool = True
    watched: bool = False

    @property
    def name(self) -> str:
        """The model's name."""
        return self.package.manifest.name

    @property
    def version(self) -> str:
        """The model's version."""
        return self.package.manifest.version


class Broken(NamedTuple):
    """A folder that should hold a package and does not.

    Args:
        name, version: What it held before; else the folder's name, and no version.
        error: What is wrong with it.
    """

    name: str
    version: str
    error: ShoalError

    @property
    def reason(self) -> str:
        """The error as text that every message can hold, whatever the folder is called."""
        return str(self.error).encode(errors="replace").decode()


class FleetPackages(Protocol):
    """Who knows what the fleet has installed; may be asked from any thread."""

    def installed(self) -> list[Known]:
        """The packages that the fleet installed and that are on the disk."""


class ModelsFolder:
    """A folder with one package per sub-folder. For one thread at a time.

    Args:
        folder: May be missing, and may change at any time; each :meth:`scan` looks anew.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen: dict[Path, tuple[_Stamp, Package]] = {}

    def scan(self) -> tuple[list[Known], list[Broken]]:
        """The packages in the folder now, and what is broken there.

        Only manifests are read; of two packages with the same name and version the one in the folder first by name
        counts, the other is broken.
        """
        known: dict[tuple[str, str], Known] = {}
        broken: list[Broken] = []
        before, self._seen = self._seen, {}
        for folder in self._folders():
            try:
                package = self._open(folder, before)
                same = known.get((package.manifest.name, package.manifest.version))
                if same is not None:
                    raise DeviceError(f"{folder}: {same.package.folder} holds the same model and version; remove one")
            except ShoalError as error:
                _, was = before.get(folder, (None, None))
                name, version = (was.manifest.name, was.manifest.version) if was is not None else (_named(folder), "")
                broken.append(Broken(name, version, error))
                self._seen.pop(folder, None)
                if was is not None:  # what it held is still what its state is about
                    self._seen[folder] = ((0, 0, 0), was)
                continue
            known[package.manifest.name, package.manifest.version] = Known(package)
        return list(known.values()), broken

    def _folders(self) -> list[Path]:
        try:
            return [path for path in sorted(self._folder.iterdir()) if _may_be_package(path)]
        except OSError as error:
            _log.warning("%s: the folder of models cannot be read: %s", self._folder, error.strerror)
            return []

    def _open(self, folder: Path, before: Mapping[Path, tuple[_Stamp, Package]]) -> Package:
        try:
            status = (folder / MANIFEST_FILE).stat()
            stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
        except OSError:
            stamp = (0, 0, 0)  # gone since it was listed: opening it says so
        seen = before.get(folder)
        package = seen[1] if seen is not None and seen[0] == stamp else Package.open(folder, verify=False)
        self._seen[folder] = (stamp, package)
        return package


def _named(folder: Path) -> str:
    """A folder's name as text: not every name of a file is UTF-8."""
    return folder.name.encode(errors="replace").decode()


def _may_be_package(folder: Path) -> bool:
    """Whether there is a manifest, or nobody can tell: then opening it says why."""
    try:
        return (folder / MANIFEST_FILE).exists()
    except OSError:
        return True


class Catalogue:
    """All packages of this device. :meth:`refresh` is for one thread at a time, what it found for any.

    Args:
        folder: Of further packages; None for none.
    Attributes:
        known: By name and version; never changed, but replaced by the next :meth:`refresh`. ``broken`` likewise.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = ModelsFolder(folder) if folder is not None else None
        self._fleet: FleetPackages | None = None
        self.known: dict[tuple[str, str], Known] = {}
        self.broken: list[Broken] = []

    def follow(self, fleet: FleetPackages) -> None:
        """Ask ``fleet`` too from now on."""
        self._fleet = fleet

    def refresh(self) -> None:
        """Look at disk and fleet again; where both have a version of a model, the fleet's counts."""
        known, self.broken = self._folder.scan() if self._folder is not None else ([], [])
        installed = self._fleet.installed() if self._fleet is not None else []
        self.known = {(each.name, each.version): each for each in (*known, *installed)}

    def watched(self) -> set[tuple[str, str]]:
        """Name and version of the packages on probation."""
        installed = self._fleet.installed() if self._fleet is not None else []
        return {(each.name, each.version) for each in installed if each.watched}

    def packages(self) -> Iterable[Package]:
        """The packages that are known."""
        return [each.package for each in self.known.values()]
