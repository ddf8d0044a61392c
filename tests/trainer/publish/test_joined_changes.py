"""A change beside one that waits: they are one then, and no signature is lost without a word."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.trainer.publish.test_persons import shared, shoal_keys, succeeds
from trainer.publish.pending import PENDING_FILE

ANNA = "the signature of offline/anna/image-root on image/2.root.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two of three; a change waits that anna has signed."""
    folder = shared(tmp_path)
    succeeds("rotate", folder, "timestamp")
    succeeds("sign", folder, "--key", tmp_path / "persons/anna")
    return folder


@pytest.mark.parametrize(
    "second",
    [
        ("rotate", "snapshot"),
        ("revoke", "ben"),
        ("renew",),
        ("share", "--person", "anna", "--person", "eve", "--threshold", "2"),
    ],
)
def test_a_signature_that_a_second_change_would_lose_is_asked_for_first(folder: Path, second: tuple[str, ...]) -> None:
    command, *more = second
    before = (folder / PENDING_FILE).read_bytes()
    stopped = shoal_keys(command, folder, *more)
    assert stopped.exit_code == 1, "nobody was there to answer"
    assert "joined    one change now, signed as one, with what waits already: rotate timestamp" in stopped.output
    assert f"lost      {ANNA}" in stopped.output
    assert (folder / PENDING_FILE).read_bytes() == before
    assert not list((folder / "pending-keys").rglob("snapshot.pem"))
    said = succeeds(command, folder, *more, "--yes")
    assert f"lost      {ANNA}" in said
    assert "pending   rotate timestamp\npending   " in succeeds("status", folder)


def test_a_dry_run_says_what_would_be_lost_and_loses_nothing(folder: Path, tmp_path: Path) -> None:
    said = succeeds("rotate", folder, "snapshot", "--dry-run")
    assert f"lost      {ANNA}" in said
    assert "in force" in succeeds("sign", folder, "--key", tmp_path / "persons/ben"), "anna's signature is still there"


def test_where_nothing_is_lost_nobody_is_asked(folder: Path, tmp_path: Path) -> None:
    said = succeeds("add-model", folder, "faces")
    assert "joined    one change now" in said
    assert "lost  " not in said
    assert "in force" in succeeds("sign", folder, "--key", tmp_path / "persons/anna", "--key", tmp_path / "persons/ben")
    succeeds("rotate", folder, "timestamp")
    shutil.move(tmp_path / "persons", folder / "offline")
    assert "lost  " not in succeeds("rotate", folder, "snapshot"), "the keys that are here sign it anew"
