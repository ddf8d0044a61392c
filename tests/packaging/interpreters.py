"""Finds the Python interpreters on which the device's code must run, and makes empty environments of them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

# JetPack 6's Python, older than what the server and the trainer need.
OLDEST_PYTHON = (3, 10)
# Long enough for a machine whose cores are busy with other tests.
INSTALL_TIMEOUT_S = 300.0
COMMAND_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """A virtual environment that holds nothing but what was installed into it."""

    root: Path

    def command(self, name: str) -> Path:
        """The path of one of its commands, e.g. ``python`` or ``shoal-agent``."""
        return self.root / "bin" / name

    def install(self, *arguments: str) -> None:
        """Run ``pip install`` in it; the error holds pip's own words."""
        pip = [str(self.command("python")), "-m", "pip", "install", "--disable-pip-version-check", "-qq"]
        run([*pip, *arguments], timeout_s=INSTALL_TIMEOUT_S)


def run(
    arguments: list[str], *, cwd: Path | None = None, timeout_s: float = COMMAND_TIMEOUT_S
) -> subprocess.CompletedProcess[str]:
    """Run a program that must succeed; the failure shows what it said.

    Args:
        arguments: The program and its arguments.
        cwd: Where it runs; give a folder outside the repository so that nothing there can be imported.
        timeout_s: How long it may take.
    """
    done = subprocess.run(
        arguments,
        cwd=cwd,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, f"{arguments} exited {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done


def clean_environment() -> dict[str, str]:
    """This process's environment without what would lead a child to our own packages."""
    leading = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PYENV_VERSION"}
    return {name: value for name, value in os.environ.items() if name not in leading}


def find_python(version: tuple[int, int]) -> Path | None:
    """A working interpreter of that version: this one, one on PATH, or one that pyenv has installed."""
    if sys.version_info[:2] == version:
        return Path(sys.executable)
    name = f"python{version[0]}.{version[1]}"
    on_path = shutil.which(name)
    by_pyenv = Path.home().glob(f".pyenv/versions/{version[0]}.{version[1]}*/bin/{name}")
    for candidate in [*([Path(on_path)] if on_path else []), *sorted(by_pyenv)]:
        # pyenv's shims are on PATH for versions that it will not run.
        if _reports(candidate, version):
            return candidate
    return None


def _reports(python: Path, version: tuple[int, int]) -> bool:
    code = f"import sys, venv, ensurepip; sys.exit(sys.version_info[:2] != {version!r})"
    return subprocess.run([str(python), "-c", code], capture_output=True, check=False).returncode == 0
