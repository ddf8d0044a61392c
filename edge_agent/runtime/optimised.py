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
import platform
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec
import onnxruntime as ort

from edge_agent.runtime.kept_files import KeptFiles
from edge_agent.runtime.package import Package

# Below it there is nothing to gain: such a model loads in milliseconds and is copied once anyway.
SMALLEST_BYTES = 1 << 20
MODEL_FILE, WEIGHTS_FILE = "model.onnx", "model.data"
_FORMAT = 1
_LEVEL = "all"


class OptimisedModels:
    """The folder of optimised models.

    Args:
        folder: Made where it is missing.
        own: The agent's own folder; packages outside it can change under the agent.
    """

    def __init__(self, folder: Path, *, own: Path) -> None:
        self._kept, self._own = KeptFiles(folder, kind="optimised model"), own.resolve()
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
        place = self._kept.find(key, needs=MODEL_FILE)
        return None if place is None else place / MODEL_FILE

    def make(self, key: str, optimise: Callable[[Path], None]) -> Path | None:
        """A new entry, which appears whole or not at all.

        Args:
            optimise: Writes the optimised model under the path it is given, its weights beside it.
        Returns:
            The model of the entry; None, with a line in the log, where the disk or the runtime refuses: the package's
            own file then does.
        """
        place = self._kept.make(key, lambda folder: optimise(folder / MODEL_FILE))
        return None if place is None else place / MODEL_FILE

    def drop(self, key: str, reason: str) -> None:
        """Remove an entry that is of no use."""
        self._kept.drop(key, reason)

    def collect(self, packages: Iterable[Package]) -> None:
        """Remove the entries that none of ``packages`` can use, and what a crash has left half made."""
        self._kept.collect(
            {self.key(package, variant) for package in packages for variant in package.manifest.variants}
        )


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
