"""Files that took long to make, kept: each entry appears whole or not at all, and is verified before it is used.

An entry is a folder named by a digest of all that its files depend on, so that one which no longer holds is never
found. It lies in the agent's own folder, where nobody else writes.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path

import msgspec

from edge_agent.contract.errors import ShoalError
from edge_agent.durable import sync_folder, write_durably
from edge_agent.runtime.package import file_digest

_ENTRY_FILE = "entry.json"

_log = logging.getLogger(__name__)


class _Entry(msgspec.Struct, frozen=True):
    """What an entry's files must be, by SHA-256."""

    files: dict[str, str]


class KeptFiles:
    """A folder of entries.

    Args:
        folder: Made where it is missing.
        kind: What an entry is, for the log: ``optimised model``.
    """

    def __init__(self, folder: Path, *, kind: str) -> None:
        self.folder, self._kind = folder, kind

    def find(self, key: str, *, needs: str) -> Path | None:
        """The folder of an entry, its bytes verified; a damaged entry is removed and counts as none.

        Args:
            needs: A file without which the entry is of no use.
        """
        place = self.folder / key
        try:
            data = (place / _ENTRY_FILE).read_bytes()
        except OSError:
            return None
        try:
            files = msgspec.json.decode(data, type=_Entry).files
            whole = needs in files and all(file_digest(place / name) == sha256 for name, sha256 in files.items())
        except (msgspec.DecodeError, UnicodeDecodeError, ShoalError) as error:
            self.drop(key, str(error))
            return None
        if not whole:
            self.drop(key, "its bytes are not those that were written")
            return None
        return place

    def make(self, key: str, fill: Callable[[Path], None]) -> Path | None:
        """A new entry in place of an older one of this name.

        Args:
            fill: Writes the entry's files into the folder that it is given.
        Returns:
            The entry's folder; None, with a line in the log, where the disk or ``fill`` refuses.
        """
        building: Path | None = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            building = Path(tempfile.mkdtemp(prefix=".building-", dir=self.folder))
            fill(building)
            files = {path.name: file_digest(path) for path in sorted(building.iterdir())}
            write_durably(building / _ENTRY_FILE, msgspec.json.encode(_Entry(files=files)))
            shutil.rmtree(self.folder / key, ignore_errors=True)
            building.rename(self.folder / key)
            sync_folder(self.folder)
        except (OSError, ShoalError) as error:
            _log.warning("%s: an %s could not be kept: %s", self.folder, self._kind, error)
            return None
        finally:
            if building is not None:
                shutil.rmtree(building, ignore_errors=True)
        return self.folder / key

    def drop(self, key: str, reason: str) -> None:
        """Remove an entry that is of no use."""
        _log.warning("%s: %s %s removed: %s", self.folder, self._kind, key[:12], reason)
        shutil.rmtree(self.folder / key, ignore_errors=True)

    def keys(self) -> list[str]:
        """The entries' names, the newest first; none where the folder cannot be read, which the log then says."""
        return [path.name for path in sorted(self._paths(), key=_age, reverse=True) if not path.name.startswith(".")]

    def collect(self, keep: Collection[str]) -> None:
        """Remove all entries but these, and what a crash has left half made."""
        for path in self._paths():
            if path.name not in keep:
                shutil.rmtree(path, ignore_errors=True)

    def _paths(self) -> list[Path]:
        try:
            return list(self.folder.iterdir())
        except FileNotFoundError:
            return []
        except OSError as error:  # it cannot be used either, which is said where something should be kept there
            _log.warning("%s: cannot be read: %s", self.folder, error.strerror)
            return []


def _age(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # removed meanwhile
        return 0.0
