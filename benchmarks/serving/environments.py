"""Environments of the other servers: made on demand, each by itself, from pinned versions."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

_INSTALL_TIMEOUT_S = 900


class NotInstalled(Exception):
    """A server cannot be had here; the text says why."""


@dataclasses.dataclass(frozen=True)
class Environment:
    """What a server needs.

    Args:
        name: Of its folder.
        packages: Pinned; ``alone`` ones are installed without what they ask for.
        pythons: Versions that it runs on, the preferred one first.
    """

    name: str
    packages: tuple[str, ...]
    alone: tuple[str, ...] = ()
    pythons: tuple[str, ...] = ("3.11", "3.12", "3.10", "3.13")

    def python(self, root: Path, *, install: bool) -> str:
        """The path of its interpreter, after installing what is missing.

        Raises:
            NotInstalled: It is not there and may not, or cannot, be installed.
        """
        folder = root / self.name
        stamp = folder / "installed.txt"
        wanted = hashlib.sha256(repr((self.packages, self.alone)).encode()).hexdigest()
        found = folder / "bin" / "python"
        if stamp.exists() and stamp.read_text() == wanted and found.exists():
            return str(found)
        if not install:
            raise NotInstalled("not there, and --no-install was given")
        shutil.rmtree(folder, ignore_errors=True)
        print(f"installing {self.name} into {folder}", file=sys.stderr, flush=True)
        _run([self._interpreter(), "-m", "venv", str(folder)])
        pip = [str(found), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        if self.packages:
            _run([*pip, *self.packages])
        if self.alone:
            _run([*pip, "--no-deps", *self.alone])
        stamp.write_text(wanted)
        return str(found)

    def _interpreter(self) -> str:
        """An interpreter of a version that fits; ``BENCH_PYTHON`` names one where none is on PATH."""
        named = os.environ.get("BENCH_PYTHON")
        if named:
            return named
        if f"{sys.version_info.major}.{sys.version_info.minor}" in self.pythons:
            return sys.executable
        for version in self.pythons:
            path = shutil.which(f"python{version}")
            if path is not None:
                return path
        raise NotInstalled(f"needs one of Python {', '.join(self.pythons)} on PATH, or in BENCH_PYTHON")


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotInstalled(str(error)) from error
    if done.returncode:
        errors = [line for line in done.stderr.strip().splitlines() if "WARNING" not in line]
        raise NotInstalled(f"pip: {errors[-1][:200] if errors else done.returncode}")
