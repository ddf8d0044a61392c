"""Optimised models, kept: ONNX Runtime's graph optimisation is done once per package and machine.

An optimised model is loaded as it is, and its weights, which lie beside it, are mapped instead of copied. Measured on a
CNN with 26 MB of weights (x86-64, ONNX Runtime 1.32; memory above that of the bare runtime):

==================  =======  ================  =======================  ======================================
what is loaded      load     most while it is  resident after 8 rows    of it not just mapped from a file
==================  =======  ================  =======================  ======================================
the package's file  98 ms    108 MB            38 MB                    30 MB
the kept one        15 ms    17 MB             38 MB                    12 MB
==================  =======  ================  =======================  ======================================

An entry holds for one machine only (the layout of weights follows the processor), so all that it depends on is in its
name. It lies in the agent's own folder, where nobody else writes: a mapped file that another program cuts short ends
the process that reads it.
"""

from __future__ import annotations

import hashlib
import logging
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec
import onnxruntime as ort

from edge_agent.contract.errors import ShoalError
from edge_agent.durable import sync_folder, write_durably
from edge_agent.runtime.package import Package, file_digest

# Below it there is nothing to gain: such a model loads in milliseconds and is copied once anyway.
SMALLEST_BYTES = 1 << 20
MODEL_FILE, WEIGHTS_FILE = "model.onnx", "model.data"
_ENTRY_FILE = "entry.json"
_FORMAT = 1
_LEVEL = "all"

_log = logging.getLogger(__name__)


class _Entry(msgspec.Struct, frozen=True):
    """What an entry's files must be, by SHA-256."""

    files: dict[str, str]


class OptimisedModels:
    """The folder of optimised models.

    Args:
        folder: Made where it is missing.
        own: The agent's own folder; packages outside it can change under the agent.
    """

    def __init__(self, folder: Path, *, own: Path) -> None:
        self._folder, self._own = folder, own.resolve()
        self._machine = _machine()

    def wants(self, package: Package, variant: str) -> bool:
        """Whether keeping this model optimised gains anything: time and memory, or safety.

        Weights in files of their own are mapped also from the package; outside the agent's folder, where anybody may
        cut such a file short, they are always loaded from here.
        """
        form = package.manifest.variants[variant]
        files = package.manifest.files
        size_bytes = sum(files[name].size_bytes for name in (form.model, *form.data))
        return size_bytes >= SMALLEST_BYTES or (bool(form.data) and not self.owns(package))

    def owns(self, package: Package) -> bool:
        """Whether a package lies in the agent's own folder, where nobody else writes."""
        return self._own in package.folder.resolve().parents

    def key(self, package: Package, variant: str) -> str:
        """The name of a variant's entry: a digest of all that the optimised model depends on."""
        form, files = package.manifest.variants[variant], package.manifest.files
        digests = [files[name].sha256 for name in (form.model, *form.data)]
        parts = [_FORMAT, digests, variant, ort.__version__, *self._machine, _LEVEL]
        return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()

    def find(self, key: str) -> Path | None:
        """The model of an entry, its bytes verified; a damaged entry is removed and counts as none."""
        place = self._folder / key
        try:
            data = (place / _ENTRY_FILE).read_bytes()
        except OSError:
            return None
        try:
            files = msgspec.json.decode(data, type=_Entry).files
            whole = MODEL_FILE in files and all(file_digest(place / name) == sha256 for name, sha256 in files.items())
        except (msgspec.DecodeError, UnicodeDecodeError, ShoalError) as error:
            self.drop(key, str(error))
            return None
        if not whole:
            self.drop(key, "its bytes are not those that were written")
            return None
        return place / MODEL_FILE

    def make(self, key: str, optimise: Callable[[Path], None]) -> Path | None:
        """A new entry, which appears whole or not at all.

        Args:
            optimise: Writes the optimised model under the path it is given, its weights beside it.
        Returns:
            The model of the entry; None, with a line in the log, where the disk or the runtime refuses: the package's
            own file then does.
        """
        building: Path | None = None
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            building = Path(tempfile.mkdtemp(prefix=".building-", dir=self._folder))
            optimise(building / MODEL_FILE)
            files = {path.name: file_digest(path) for path in sorted(building.iterdir())}
            write_durably(building / _ENTRY_FILE, msgspec.json.encode(_Entry(files=files)))
            shutil.rmtree(self._folder / key, ignore_errors=True)
            building.rename(self._folder / key)
            sync_folder(self._folder)
        except (OSError, ShoalError) as error:
            _log.warning("%s: an optimised model could not be kept: %s", self._folder, error)
            return None
        finally:
            if building is not None:
                shutil.rmtree(building, ignore_errors=True)
        return self._folder / key / MODEL_FILE

    def drop(self, key: str, reason: str) -> None:
        """Remove an entry that is of no use."""
        _log.warning("%s: optimised model %s removed: %s", self._folder, key[:12], reason)
        shutil.rmtree(self._folder / key, ignore_errors=True)

    def collect(self, packages: Iterable[Package]) -> None:
        """Remove the entries that none of ``packages`` can use, and what a crash has left half made."""
        keep = {self.key(package, variant) for package in packages for variant in package.manifest.variants}
        try:
            found = [path for path in self._folder.iterdir() if path.name not in keep]
        except FileNotFoundError:
            return
        except OSError as error:  # it cannot be used either, which is said where a model should be kept there
            _log.warning("%s: cannot be read: %s", self._folder, error.strerror)
            return
        for path in found:
            shutil.rmtree(path, ignore_errors=True)


def _machine() -> tuple[str, str]:
    """Architecture and a digest of the processor's features, on which the layout of optimised weights depends."""
    features: set[str] = set()
    try:
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("flags", "Features"):
                features.update(value.split())
    except OSError:  # another system: its name for the processor must do
        features.add(platform.processor())
    return platform.machine(), hashlib.sha256(" ".join(sorted(features)).encode()).hexdigest()
