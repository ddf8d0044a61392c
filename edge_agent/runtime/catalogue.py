"""Which packages this device has, loaded or not: those that the fleet installed, and those in a folder of its own."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, Protocol

from edge_agent.contract.errors import UnknownModel
from edge_agent.runtime.models_folder import Broken, ModelsFolder
from edge_agent.runtime.package import Package
from edge_agent.runtime.versions import natural_order

__all__ = ["Broken", "Catalogue", "FleetPackages", "Known", "highest", "is_pipeline"]


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


class FleetPackages(Protocol):
    """Who knows what the fleet has installed; may be asked from any thread."""

    def installed(self) -> list[Known]:
        """The packages that the fleet installed and that are on the disk."""


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
        packages, broken = self._folder.scan() if self._folder is not None else ([], [])
        installed = self._fleet.installed() if self._fleet is not None else []
        known = [*(Known(package) for package in packages), *installed]
        self.known = {(each.name, each.version): each for each in known}
        self.broken = [each for each in broken if (each.name, each.version) not in self.known]

    def watched(self) -> set[tuple[str, str]]:
        """Name and version of the packages on probation."""
        installed = self._fleet.installed() if self._fleet is not None else []
        return {(each.name, each.version) for each in installed if each.watched}

    def packages(self) -> Iterable[Package]:
        """The packages that are known."""
        return [each.package for each in self.known.values()]

    def find(self, model: str, version: str | None = None) -> Known:
        """The package that a request to load means.

        Raises:
            UnknownModel: There is none.
            PackageError, DigestMismatch: It is broken.
        """
        known = [each for each in self.known.values() if each.name == model]
        for broken in self.broken:
            # A folder that cannot be read may well have held what is asked for: better its error than an older version.
            if broken.name == model and version in (None, broken.version):
                raise broken.error
        if version is not None:
            known = [each for each in known if each.version == version]
        if not known:
            raise self.unknown(model, version)
        wanted = [each for each in known if each.installed and each.active]
        return wanted[0] if wanted else highest(known)

    def unknown(self, model: str, version: str | None) -> UnknownModel:
        """The error that says so."""
        names = ", ".join(sorted({f"{name} {known}" for name, known in self.known})) or "none"
        of = f" version '{version}'" if version is not None else ""
        return UnknownModel(f"model '{model}'{of} is not on this device; there are: {names}")


def highest(packages: Iterable[Known]) -> Known:
    """The one with the highest version, of at least one."""
    return max(packages, key=lambda known: natural_order(known.version))


def is_pipeline(known: Known) -> bool:
    """Whether it runs other models: to be loaded after them."""
    return bool(known.package.manifest.pipeline)
