"""Runs a program that sees a full disk: a tmpfs of one mebibyte, filled up, in a mount namespace of its own."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from pathlib import Path

import pytest

_UNSHARED = ("unshare", "--user", "--map-root-user", "--mount")
_ROOMY_SCRIPT = 'mount -t tmpfs -o size="$1" tmpfs "$2"; shift 2; exec "$@"'
_SCRIPT = 'mount -t tmpfs -o size=1m tmpfs "$1"; head -c 2m /dev/zero > "$1/filler"; shift; exec "$@"'


def run_on_full_disk(command: list[str], mounted: Path) -> subprocess.CompletedProcess[str]:
    """Run ``command`` where the folder ``mounted`` is a full disk; skips where namespaces are not allowed."""
    _need_namespaces()
    mounted.mkdir()
    return subprocess.run(
        [*_UNSHARED, "sh", "-c", _SCRIPT, "sh", str(mounted), *command],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def on_small_disk(mounted: Path, size: str) -> tuple[str, ...]:
    """A command that runs another one, and stays its process: the folder ``mounted`` is a disk of ``size`` to it."""
    _need_namespaces()
    mounted.mkdir()
    return (*_UNSHARED, "sh", "-c", _ROOMY_SCRIPT, "sh", size, str(mounted))


def fill(folder: Path) -> Path:
    """Leave no room on the disk of ``folder``; the file that takes it all."""
    filler = folder / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while file.write(b"x" * 4096):
            pass
    return filler


def _need_namespaces() -> None:
    if shutil.which("unshare") is None:
        pytest.skip("unshare is not installed")
    if subprocess.run([*_UNSHARED, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this machine allows no user namespaces")
