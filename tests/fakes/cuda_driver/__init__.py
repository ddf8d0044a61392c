"""NVIDIA's driver without a GPU: compiled once, and put in the place of the real one in processes of its own."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_HERE = Path(__file__).parent
_REPOSITORY = _HERE.parents[2]
# In the order of `enum Kind` in stub.h.
_KINDS = (
    "device memory",
    "host memory",
    "streams",
    "events",
    "graphs",
    "contexts",
    "allocations",
    "work",
)


def can_build() -> bool:
    """Whether there is a C compiler."""
    return shutil.which("gcc") is not None


@dataclass(frozen=True)
class StubDriver:
    """The compiled driver.

    Args:
        folder: Holds ``libcuda.so.1``.
    """

    folder: Path

    @classmethod
    def build(cls, folder: Path) -> StubDriver:
        """Compile it."""
        subprocess.run([str(_HERE / "build"), str(folder)], check=True, timeout=60)
        return cls(folder)

    @property
    def library(self) -> Path:
        """The driver's library."""
        return self.folder / "libcuda.so.1"

    def environment(self, **settings: object) -> dict[str, str]:
        """What a process needs to find it.

        Args:
            settings: See ``stub.h``; ``total_mib=4`` is ``SHOAL_STUB_CUDA_TOTAL_MIB=4``.
        """
        named = {f"SHOAL_STUB_CUDA_{name.upper()}": str(value) for name, value in settings.items()}
        return {"LD_LIBRARY_PATH": str(self.folder), **named}

    def python(self, *arguments: str, **settings: object) -> subprocess.CompletedProcess[str]:
        """Run Python over it, in the repository's root, and give what it wrote."""
        return subprocess.run(
            [sys.executable, "-W", "error", *arguments],
            env={**os.environ, **self.environment(**settings)},
            cwd=_REPOSITORY,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )


def counts() -> dict[str, int]:
    """In a process over it: what is live by kind; ``allocations`` and ``work`` count all there ever were."""
    count = ctypes.CDLL("libcuda.so.1").shoal_stub_count
    count.restype = ctypes.c_long
    return {name: count(kind) for kind, name in enumerate(_KINDS)}
