"""What every test of Shoal shares: marks by folder, and a clear skip where a real part is not installed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.e2e.demo_run import DemoRun

# A test machine is busy with many things: how long one example takes says nothing.
settings.register_profile("shoal", deadline=None)
# The device's tests run a second time on its oldest Python: there the examples are fewer.
settings.register_profile("again", deadline=None, max_examples=10)
settings.load_profile(os.environ.get("SHOAL_HYPOTHESIS_PROFILE", "shoal"))

_TESTS = Path(__file__).parent
# Fixtures that take minutes and mostly wait.
_IN_THE_BACKGROUND = frozenset({"demo", "device_tests"})
# Debian keeps daemons off an ordinary user's PATH, and PostgreSQL's programs in a folder per major version.
_DAEMON_FOLDERS = ("/usr/sbin", "/usr/local/sbin")
_POSTGRESQL_FOLDERS = "usr/lib/postgresql/*/bin"


def locate(program: str) -> Path | None:
    """Where an installed program is, or None; looks beyond PATH where Debian hides daemons."""
    newest_first = sorted(Path("/").glob(_POSTGRESQL_FOLDERS), key=_major_version, reverse=True)
    for folders in (os.environ.get("PATH", ""), os.pathsep.join((*_DAEMON_FOLDERS, *map(str, newest_first)))):
        if found := shutil.which(program, path=folders):
            return Path(found)
    return None


def _major_version(folder: Path) -> int:
    name = folder.parent.name
    return int(name) if name.isdigit() else 0


def _has_gpu() -> bool:
    # Jetsons have no /dev/nvidia0 but the integrated GPU's control node.
    return any(Path(node).exists() for node in ("/dev/nvidia0", "/dev/nvhost-gpu", "/dev/nvgpu"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark by folder (integration, e2e, gpu), then skip what this machine cannot run, saying why."""
    for item in items:
        if _TESTS in item.path.parents:
            folder = item.path.relative_to(_TESTS).parts[0]
            if folder in {"integration", "e2e", "gpu"}:
                item.add_marker(folder)
            # Several processes one after the other: where other things keep the machine busy too, that may take long.
            if folder in {"integration", "e2e"} and not any(map(item.get_closest_marker, ("timeout", "slow"))):
                item.add_marker(pytest.mark.timeout(400))
        if item.get_closest_marker("gpu") and not _has_gpu():
            item.add_marker(pytest.mark.skip(reason="no GPU on this machine"))
        for marker in item.iter_markers("real_parts"):
            if absent := [program for program in marker.args if locate(program) is None]:
                reason = f"not installed: {', '.join(absent)} (as root, `make test` installs them)"
                item.add_marker(pytest.mark.skip(reason=reason))
    # Begun long before, in the background, beside other tests.
    items.sort(key=lambda item: not _IN_THE_BACKGROUND.isdisjoint(getattr(item, "fixturenames", ())))


@pytest.fixture(scope="session")
def program() -> Callable[[str], Path]:
    """Gives the path of an installed program by name; skips the test where it is absent."""

    def find(name: str) -> Path:
        path = locate(name)
        if path is None:
            pytest.skip(f"not installed: {name} (as root, `make test` installs it)")
        return path

    return find


@pytest.fixture(scope="session")
def repository() -> Path:
    """The repository's root."""
    return _TESTS.parent


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Iterator[DemoRun]:
    """The README's demo, which takes minutes and mostly waits: where the server's tests run too, it is begun with them.

    Its own test, one of the last, finds it done.
    """
    run = DemoRun(tmp_path_factory.mktemp("demo"), repository)
    yield run
    run.stop()
