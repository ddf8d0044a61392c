"""The folder ``runtime.models``: one package per sub-folder, looked at anew whenever somebody asks."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from edge_agent.contract.errors import ShoalError
from edge_agent.contract.manifest import MANIFEST_FILE
from edge_agent.runtime.package import Package

_log = logging.getLogger(__name__)

# When a file was written, its size and inode: what changes when another is put in its place.
_Stamp = tuple[int, int, int]
_GONE: _Stamp = (0, 0, 0)
_EXPECTED = f"expected is a folder with one folder per package, each with its {MANIFEST_FILE}"


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
        return _text(self.error)


class ModelsFolder:
    """A folder with one package per sub-folder. For one thread at a time.

    What a person should put right there is said in the log, once for as long as it stays wrong.

    Args:
        folder: May be missing, and may change at any time; each :meth:`scan` looks anew.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen: dict[Path, tuple[_Stamp, Package]] = {}
        self._verified: dict[Path, tuple[tuple[_Stamp, ...], str]] = {}
        self._wrong: list[str] = []
        self._said: frozenset[str] = frozenset()

    def scan(self) -> tuple[list[Package], list[Broken]]:
        """The packages in the folder now, and what is broken there.

        Only manifests are read. But of several packages with the same name and version the first by name whose files
        are whole counts, and the others are not there.
        """
        before, self._seen = self._seen, {}
        self._wrong = []
        found: dict[tuple[str, str], list[Package]] = {}
        broken: list[Broken] = []
        for folder in self._folders():
            try:
                package = self._open(folder, before)
            except ShoalError as error:  # noqa: PERF203 - one spoilt folder must not hide the others
                self._wrong.append(f"{_text(folder)} is not served: {_text(error)}")
                broken.append(self._broken(folder, before, error))
            else:
                found.setdefault((package.manifest.name, package.manifest.version), []).append(package)
        packages = [same[0] if len(same) == 1 else self._first_whole(same) for same in found.values()]
        for text in self._wrong:
            if text not in self._said:
                _log.warning("%s", text)
        self._said = frozenset(self._wrong)
        return packages, [each for each in broken if (each.name, each.version) not in found]

    def _folders(self) -> list[Path]:
        where = f"{_text(self._folder)} (runtime.models)"
        try:
            paths = sorted(self._folder.iterdir())
        except FileNotFoundError:
            self._wrong.append(f"{where}: there is no such folder; make it, or correct the setting: {_EXPECTED}")
            return []
        except OSError as error:
            self._wrong.append(f"{where}: the folder of models cannot be read: {error.strerror}; {_EXPECTED}")
            return []
        if self._folder / MANIFEST_FILE in paths:
            self._wrong.append(
                f"{where}: this is a package itself, and is not served; {_EXPECTED}: move the package into a folder "
                "within this one"
            )
            return []
        packages = [path for path in paths if _may_be_package(path)]
        self._wrong += [
            f"{_text(path)} is no package and is not served; {_EXPECTED}; {advice}"
            for path in paths
            if path not in packages and (advice := _advice(path))
        ]
        return packages

    def _open(self, folder: Path, before: Mapping[Path, tuple[_Stamp, Package]]) -> Package:
        stamp = _stamp(folder / MANIFEST_FILE)
        seen = before.get(folder)
        package = seen[1] if seen is not None and seen[0] == stamp else Package.open(folder, verify=False)
        self._seen[folder] = (stamp, package)
        return package

    def _broken(self, folder: Path, before: Mapping[Path, tuple[_Stamp, Package]], error: ShoalError) -> Broken:
        _, was = before.get(folder, (None, None))
        if was is None:
            return Broken(_text(folder.name), "", error)
        self._seen[folder] = (_GONE, was)  # what it held is still what its state is about
        return Broken(was.manifest.name, was.manifest.version, error)

    def _first_whole(self, same: list[Package]) -> Package:
        """The first of several packages with one name and version whose files are those of its manifest."""
        faults = {package.folder: self._fault(package) for package in same}
        chosen = next((package for package in same if not faults[package.folder]), same[0])
        for other in same:
            if other is chosen:
                continue
            if fault := faults[other.folder]:
                why = f"is damaged ({fault})"
            elif other.digest == chosen.digest:
                why = "is a copy"
            else:
                why = "differs"
            what = f"{chosen.manifest.name} {chosen.manifest.version}"
            self._wrong.append(
                f"{_text(other.folder)} is not used: it {why}, and {_text(chosen.folder)} holds the same model and "
                f"version, {what}; remove one of them, or give it another version"
            )
        return chosen

    def _fault(self, package: Package) -> str:
        """What is wrong with a package's files; empty where nothing is. Read again only when one has changed."""
        stamps = tuple(_stamp(package.folder / name) for name in (MANIFEST_FILE, *package.manifest.files))
        known = self._verified.get(package.folder)
        if known is not None and known[0] == stamps:
            return known[1]
        try:
            package.verify()
        except ShoalError as error:
            fault = _text(error)
        else:
            fault = ""
        self._verified[package.folder] = (stamps, fault)
        return fault


def _stamp(path: Path) -> _Stamp:
    try:
        status = path.stat()
    except OSError:
        return _GONE  # gone since it was listed: opening it says so
    return status.st_mtime_ns, status.st_size, status.st_ino


def _text(what: object) -> str:
    """As text: not every name of a file is UTF-8."""
    return str(what).encode(errors="replace").decode()


def _may_be_package(folder: Path) -> bool:
    """Whether there is a manifest, or nobody can tell: then opening it says why."""
    try:
        return (folder / MANIFEST_FILE).exists()
    except OSError:
        return True


def _advice(path: Path) -> str:
    """What to do about something else that lies among the packages; empty where it does no harm."""
    try:
        if path.name.startswith(".") or not (path.is_dir() or path.suffix == ".onnx"):
            return ""
        if any(path.glob(f"*/{MANIFEST_FILE}")):
            return f"there are packages within it: move them up into {_text(path.parent)}"
        if path.suffix == ".onnx" or any(path.glob("*.onnx")) or any(path.glob("*/*.onnx")):
            return (
                f"it {'is' if path.suffix == '.onnx' else 'holds'} a bare ONNX model, whose inputs nobody has "
                "described and whose answers nobody can check: make a package of it first"
            )
        return f"remove it, or complete it with the {MANIFEST_FILE} that was written with its model"
    except OSError:
        return ""
