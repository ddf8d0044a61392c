"""The model of a disk finds what a careless program loses, and nothing that a careful one can lose."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.power_cut.disk import Disk, inodes_of
from tests.power_cut.power import FULL, KILL, KILLED, RECORD, TEAR, build_interposer, compiler
from tests.power_cut.record import read_record

_ROOT = Path(__file__).parents[2]
_PROGRAM = """
import ctypes, os, sys
from pathlib import Path
folder, fate, at, record = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
from edge_agent.durable import write_durably
to = os.open(record, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) if record else -1
arm = ctypes.CDLL(None).power_cut_arm
arm.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_long, ctypes.c_int]
arm(os.fsencode(folder), fate, at, to)
{body}
"""
CAREFUL = 'write_durably(folder / "state", b"new" * 1000)'
CARELESS = '(folder / "state.new").write_bytes(b"new" * 1000); (folder / "state.new").replace(folder / "state")'
OLD, NEW = b"old" * 1000, b"new" * 1000


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if compiler() is None:
        pytest.skip("there is no C compiler here: power cuts are NOT tried")
    return build_interposer(tmp_path_factory.mktemp("interposer"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "folder"
    made.mkdir()
    (made / "state").write_bytes(OLD)
    return made


def run(library: Path, folder: Path, body: str, fate: int, *, at: int = 0, record: Path | None = None) -> int:
    command = [sys.executable, "-c", _PROGRAM.format(body=body), str(folder), str(fate), str(at), str(record or "")]
    environment = {**os.environ, "LD_PRELOAD": str(library)}
    done = subprocess.run(command, cwd=_ROOT, env=environment, timeout=60, check=False, capture_output=True, text=True)
    assert done.returncode in (0, 1, KILLED), done.stderr
    return done.returncode


def states(library: Path, folder: Path, body: str, scratch: Path) -> set[bytes | None]:
    """What the file `state` may hold after a power cut; None where there is none."""
    before, inodes = scratch / "before", inodes_of(folder)
    shutil.copytree(folder, before)
    assert run(library, folder, body, RECORD, record=scratch / "record") == 0
    disk = Disk(before, inodes, read_record(scratch / "record", folder))
    found: set[bytes | None] = set()
    for number, crash in enumerate(disk.crashes()):
        disk.materialise(crash, scratch / f"state-{number}")
        path = scratch / f"state-{number}" / "state"
        found.add(path.read_bytes() if path.exists() else None)
    return found


def test_a_file_that_is_replaced_durably_is_the_old_or_the_new_one(library: Path, folder: Path, tmp_path: Path) -> None:
    assert states(library, folder, CAREFUL, tmp_path) == {OLD, NEW}


def test_a_file_that_is_renamed_before_it_is_synced_may_be_empty(library: Path, folder: Path, tmp_path: Path) -> None:
    assert states(library, folder, CARELESS, tmp_path) == {OLD, NEW, b""}


def test_names_links_and_folders_are_followed(library: Path, folder: Path, tmp_path: Path) -> None:
    body = (
        '(folder / "in").mkdir(); (folder / "in" / "a").write_bytes(b"1"); os.link(folder / "in" / "a", folder / "b"); '
        '(folder / "c").symlink_to("b"); (folder / "state").unlink(); (folder / "in" / "a").unlink(); '
        '(folder / "in").rmdir(); file = (folder / "b").open("r+b"); file.truncate(0); file.close()'
    )
    assert {OLD, None} == states(library, folder, body, tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == ["b", "c"]
    records = read_record(tmp_path / "record", folder)
    kinds = [one.kind for one in records]
    assert kinds == ["mkdir", "create", "write", "link", "symlink", "unlink", "unlink", "rmdir", "truncate"]
    assert [one.path for one in records if one.path] == ["in", "in/a", "b", "c", "state", "in/a", "in"]


def test_a_program_is_killed_at_each_of_its_operations_and_within_its_write(library: Path, folder: Path) -> None:
    survived = []
    for at in range(10):
        (folder / "state").write_bytes(OLD)
        if run(library, folder, CAREFUL, KILL, at=at) != KILLED:
            break
        survived.append((folder / "state").read_bytes())
    # made, written, synced, renamed; then the folder is synced.
    assert survived == [OLD, OLD, OLD, OLD, NEW]
    (folder / "state").write_bytes(OLD)
    assert run(library, folder, CAREFUL, TEAR, at=1) == KILLED
    assert (folder / ".state.new").read_bytes() == NEW[: len(NEW) // 2]


def test_a_full_disk_refuses_what_takes_room(library: Path, folder: Path) -> None:
    for at in (0, 1):
        assert run(library, folder, CAREFUL, FULL, at=at) == 1
        assert [path.name for path in folder.iterdir()] == ["state"]
        assert (folder / "state").read_bytes() == OLD
    said = 'import shutil; assert shutil.disk_usage(folder).free > 0; write_durably(folder / "x", b"1")'
    assert run(library, folder, said, FULL, at=100) == 0


def test_the_library_is_not_in_this_process() -> None:
    assert not hasattr(ctypes.CDLL(None), "power_cut_arm")
