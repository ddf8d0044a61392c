"""Recorded boards (``board/``) as folders, and a stub of NVML, compiled."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent / "board"
MakeBoard = Callable[[str], Path]


@pytest.fixture
def make_board(tmp_path: Path) -> MakeBoard:
    """Builds the tree of a file in ``boards/`` under a folder and gives that folder."""

    def make(name: str) -> Path:
        root = tmp_path / name
        for line in (HERE / "boards" / f"{name}.txt").read_text().splitlines():
            if line.startswith("/"):
                # Paths may hold colons (iio:device0); contents come after the first that follows the last slash.
                head, slash, tail = line.partition(":") if ":device" not in line else _split_iio(line)
                assert slash
                file = root / head.lstrip("/")
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(tail.replace("|", "\n") + "\n")
        return root

    return make


@pytest.fixture(scope="session")
def stub_nvml(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of the stub library."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("NOT RUN: no C compiler for the stub of NVML")
    library = tmp_path_factory.mktemp("nvml") / "libnvidia-ml.so.1"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-Wall", "-Werror", "-o", str(library), str(HERE / "nvml_stub.c")], check=True
    )
    return str(library)


def _split_iio(line: str) -> tuple[str, str, str]:
    head, colon, tail = line.partition("/iio:")
    name, second, content = tail.partition(":")
    return f"{head}/iio:{name}", colon and second, content
