"""Runs a program that sees a full disk: a tmpfs of one mebibyte, filled up, in a mount namespace of its own."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

_UNSHARED = ("unshare", "--user", "--map-root-user", "--mount")
_SCRIPT = 'mount -t tmpfs -o size=1m tmpfs "$1"; head -c 2m /dev/zero > "$1/filler"; shift; exec "$@"'


def run_on_full_disk(command: list[str], mounted: Path) -> subprocess.CompletedProcess[str]:
    """Run ``command`` where the folder ``mounted`` is a full disk; skips where namespaces are not allowed."""
    if shutil.which("unshare") is None:
        pytest.skip("unshare is not installed")
    if subprocess.run([*_UNSHARED, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this machine allows no user namespaces")
    mounted.mkdir()
    return subprocess.run(
        [*_UNSHARED, "sh", "-c", _SCRIPT, "sh", str(mounted), *command],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
