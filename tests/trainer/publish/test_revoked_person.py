"""A person's keys are revoked: which key of theirs is meant, who is asked, and what is left to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trainer.publish.test_persons import shared, shoal_keys, succeeds

ROOT = "image/2.root.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two of three, whose keys are with them."""
    return shared(tmp_path)


def lines(said: str, begin: str) -> list[str]:
    return [line for line in said.splitlines() if line.startswith(begin)]


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_who_is_revoked_is_not_asked_and_the_new_key_is_told_from_the_old(folder: Path, more: tuple[str, ...]) -> None:
    said = succeeds("revoke", folder, "carla", *more)
    until_now, then = lines(said, f"needs     {ROOT}")
    assert "2 missing of: offline/anna/image-root, offline/ben/image-root; not asked: offline/carla" in until_now
    assert until_now.endswith("offline/carla/image-root (the key until now)")
    assert "(signed by offline/carla/image-root (the new key)); 1 missing of: offline/anna" in then


def test_a_revoked_key_that_signs_all_the_same_is_told_apart(folder: Path, tmp_path: Path) -> None:
    succeeds("revoke", folder, "carla")
    said = succeeds("sign", folder, "--key", tmp_path / "persons/carla")
    assert "carla/image-root.pem is taken away by this change" in said
    assert "(signed by offline/carla/image-root (the key until now)); 1 missing of: offline/anna/image-root" in said


def test_where_the_others_are_too_few_the_old_keys_are_asked(folder: Path) -> None:
    said = succeeds("rotate", folder, "root")
    assert "2 missing of: offline/anna/image-root (the key until now), offline/ben/image-root (the key" in said


def test_what_has_its_signatures_is_not_among_what_is_needed_and_equal_demands_are_said_once(
    folder: Path, tmp_path: Path
) -> None:
    said = succeeds("rotate", folder, "timestamp")
    assert len(lines(said, "needs")) == 1
    succeeds("revoke", folder, "carla")
    said = succeeds("status", folder)
    assert len(lines(said, f"needs     {ROOT}")) == 2, "here they are not the same"
    said = succeeds("sign", folder, "--key", tmp_path / "persons/anna")
    assert f"signed    {ROOT}: 2 of 2" in said
    assert not any("2 of 2" in line for line in lines(said, "needs"))


def test_the_old_keys_of_a_revoked_person_are_said_to_be_of_no_use_once(folder: Path, tmp_path: Path) -> None:
    succeeds("revoke", folder, "carla")
    succeeds("sign", folder, "--key", tmp_path / "persons/anna", "--key", tmp_path / "persons/ben")
    succeeds("rotate", folder, "timestamp")
    refused = shoal_keys("sign", folder, "--key", tmp_path / "persons/carla")
    assert refused.exit_code == 2
    assert refused.stderr.count("a key that nothing in force names") == 1
    assert refused.stderr.count("image-root.pem (") == 1


def test_once_it_is_in_force_all_that_is_left_to_do_is_said_with_paths_that_are_there(
    folder: Path, tmp_path: Path
) -> None:
    succeeds("revoke", folder, "carla")
    said = succeeds("sign", folder, "--key", tmp_path / "persons/anna", "--key", tmp_path / "persons/ben")
    for key in ("image-root", "image-targets", "director-root"):
        path = folder / f"offline/carla/{key}.pem"
        assert path.exists()
        assert f"- Give {path} to whom it belongs" in said
    assert "- Give the director's new metadata to the server" in said
    succeeds("rotate", folder, "timestamp")
    said = succeeds("sign", folder, "--key", tmp_path / "persons/anna", "--key", tmp_path / "persons/ben")
    assert f"- Destroy the old private keys in {folder / 'retired'}" in said


def test_each_role_that_is_known_is_named_once(folder: Path) -> None:
    succeeds("revoke", folder, "carla", "--dry-run")
    refused = shoal_keys("rotate", folder, "nosuch")
    assert refused.stderr.count("digits") == 1
    assert refused.stderr.count("snapshot") == 1
