"""The whole wheel: what is no module has to travel with it, and work from where it was installed."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.fleet_server.migrations.revisions import HEAD
from tests.packaging.interpreters import INSTALL_TIMEOUT_S, run

pytestmark = pytest.mark.timeout(600)

_UPGRADE = """
import sys
from fleet_server import migrate
from fleet_server.database import Database
db = Database(f"sqlite:///{sys.argv[1]}")
print(migrate.__file__, migrate.upgrade(db).head, migrate.upgrade(db).needed, sep="\\n")
db.close()
"""


@pytest.fixture(scope="module")
def installed(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the wheel's files lie, as pip would put them."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--disable-pip-version-check", "-qq"]
    built = [*pip, "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(repository)]
    run(built, timeout_s=INSTALL_TIMEOUT_S)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site-packages")
    return folder / "site-packages"


def test_the_revisions_of_the_database_travel_with_the_server(installed: Path, repository: Path) -> None:
    inside = Path("fleet_server", "migrations")
    expected = {path.relative_to(repository) for path in (repository / inside).rglob("*.py")}
    assert {path.relative_to(installed) for path in (installed / inside).rglob("*") if path.is_file()} == expected


def test_the_installed_server_upgrades_a_database(installed: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", _UPGRADE, str(tmp_path / "shoal.db")]
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    file, head, needed = done.stdout.splitlines()
    assert Path(file).is_relative_to(installed)
    assert (head, needed) == (HEAD, "False")


def test_whatever_is_no_python_travels_and_nothing_else_does(installed: Path, repository: Path) -> None:
    parts = ("edge_agent", "fleet_server", "trainer")
    tracked = run(["git", "ls-files", *parts], cwd=repository).stdout.split()
    assert [name for name in tracked if (repository / name).exists() and not (installed / name).exists()] == []
    assert {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")} == set(parts)
    assert not list(installed.rglob("__pycache__"))


def test_the_recipes_that_come_with_the_trainer_are_found_and_work(installed: Path, tmp_path: Path) -> None:
    code = "import trainer.recipe as found; print(found.recipes_folder(None))"
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = ["-m", "fleet_server.cli", "trainer", "import", "digits", "--lake", str(tmp_path / "lake")]
    said = [
        subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        ).stdout
        for arguments in (["-c", code], command)
    ]
    assert said[0].strip() == str(installed / "trainer" / "recipes")
    assert "701 rows are new" in said[1]
