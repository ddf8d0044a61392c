"""What a worker keeps on disk: its name, the newest runs with their checkpoints, the packages that it needs again."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import socket
import uuid
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from edge_agent.contract.errors import DigestMismatch, PackageError
from edge_agent.contract.names import check_digest
from edge_agent.contract.runs import RunFile
from edge_agent.runtime.package import Package

log = logging.getLogger(__name__)

CHECKPOINTS_FOLDER = "checkpoints"
_RUNS_KEPT = 20
_PACKAGES_KEPT = 5


class Folders:
    """A worker's folder.

    Args:
        at_once: Runs that may be under way in it.

    Attributes:
        worker: The worker's name: the folder's own, as long as no other process works in it, so that the server knows
            it again after a restart; else one of this process.
    """

    def __init__(self, root: Path, *, at_once: int = 1) -> None:
        self._root, self._at_once = root, at_once
        self._runs, self._packages = root / "runs", root / "packages"
        root.mkdir(parents=True, exist_ok=True)
        # Open for as long as we live: whoever has it locked has the name.
        self._lock = os.open(root / "worker.id", os.O_RDWR | os.O_CREAT, 0o644)
        weakref.finalize(self, os.close, self._lock)
        self.worker = self._name()
        for half in self._packages.glob(".*"):  # downloads that a kill has cut short
            shutil.rmtree(half)

    def run(self, run: str) -> Path:
        """A run's folder; it need not be there."""
        return self._runs / run

    def prepare(self, run: RunFile, *, held: Sequence[str]) -> Path:
        """A run's folder with nothing in it but the run's file, and the checkpoints of earlier attempts.

        Args:
            held: Runs under way; of the others the oldest go.
        """
        folder = self.run(run.run)
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.iterdir():
            if left.name == CHECKPOINTS_FOLDER:
                continue
            shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
        (folder / "run.json").write_bytes(msgspec.json.encode(run))
        others = [path for path in self._runs.iterdir() if path.name not in {*held, run.run}]
        for old in sorted(others, key=_modified)[: -_RUNS_KEPT or None]:
            shutil.rmtree(old, ignore_errors=True)
        return folder

    def package(self, digest: str, download: Callable[[str, Path], Package]) -> Package:
        """A package, from here or by ``download``.

        Raises:
            ManifestError: ``digest`` is none.
        """
        folder = self._packages / check_digest(digest, "package")
        if folder.exists():
            try:
                found = Package.open(folder, verify=True)
                os.utime(folder)
                return found
            except (PackageError, DigestMismatch, OSError) as error:
                log.warning("%s: %s; fetching it again", folder, error)
                shutil.rmtree(folder)
        return download(digest, folder)

    def keep(self, package: Package, *, models: int) -> None:
        """Keep what was released: it is the next run's champion. The packages used longest ago go."""
        folder = self._packages / package.digest
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            if not folder.exists():
                package.folder.rename(folder)  # whole or not at all
            os.utime(folder)
        except OSError as error:
            # It is released all the same, and can be fetched.
            log.warning("%s: cannot be kept: %s", folder, error)
            return
        kept = max(_PACKAGES_KEPT, 2 * models, 2 * self._at_once)
        for old in sorted(self._packages.iterdir(), key=_modified)[:-kept]:
            shutil.rmtree(old, ignore_errors=True)

    def _name(self) -> str:
        host = socket.gethostname()
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return f"{host}:{os.getpid()}"
        name = os.pread(self._lock, 64, 0).decode(errors="replace").strip()
        if not name:
            name = uuid.uuid4().hex[:8]
            os.pwrite(self._lock, name.encode(), 0)
        return f"{host}:{name}"


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # another worker's download, renamed meanwhile
        return 0.0
