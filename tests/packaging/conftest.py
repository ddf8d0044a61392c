"""The device's wheel, and its tests on the oldest Python that it supports."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.background import Background
from tests.packaging.interpreters import OLDEST_PYTHON, find_python, run


@pytest.fixture(scope="session")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the device part."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--disable-pip-version-check", "-qq"]
    source = str(repository / "packaging" / "device")
    run([*pip, "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), source])
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def device_tests(
    wheel: Path, repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Background | None]:
    """The device's tests on the oldest Python, which take a minute or two; None without such a Python."""
    python = find_python(OLDEST_PYTHON)
    if python is None:
        yield None
        return
    folder = tmp_path_factory.mktemp("oldest")
    command = [sys.executable, "-m", "tests.packaging.device_tests", str(python), str(wheel), str(folder)]
    running = Background(command, folder / "said.txt", cwd=repository)
    yield running
    running.stop()


@pytest.fixture(scope="session", autouse=True)
def _device_tests_run_meanwhile(request: pytest.FixtureRequest) -> None:
    """Begin them, if their own test is to come, which is one of the last."""
    if any("device_tests" in getattr(item, "fixturenames", ()) for item in request.session.items):
        request.getfixturevalue("device_tests")
