"""A file is replaced whole, or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from edge_agent.durable import write_durably


def test_the_new_bytes_replace_the_old_with_the_mode_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "slots.json"
    write_durably(path, b"old")
    write_durably(path, b"new", mode=0o600)
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["slots.json"]


def test_what_an_earlier_crash_left_beside_it_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "slots.json"
    beside = tmp_path / ".slots.json.new"
    beside.write_bytes(b"half of something much longer than the new bytes")
    beside.chmod(0o666)
    write_durably(path, b"new", mode=0o600)
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_disk_that_refuses_leaves_the_old_file_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "slots.json"
    write_durably(path, b"old")

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_durably(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["slots.json"]
