"""Whoever signs with the wrong thing is told what it is, what was expected, and what to do."""

from __future__ import annotations

import datetime as dt
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tuf.api.metadata import Metadata, Root

from tests.trainer.publish.test_persons import shared, shoal_keys, succeeds
from trainer.publish.cli import keys_commands
from trainer.publish.image_signing import ImageSigning
from trainer.publish.keys import KeyFolder, is_encrypted
from trainer.publish.pending import metadata_in, read_pending, write_pending


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Keys of three persons, two of whom must sign, with a change that waits."""
    made = shared(tmp_path)
    succeeds("rotate", made, "timestamp")
    return made


def refused(*arguments: object) -> str:
    result = shoal_keys(*arguments)
    assert result.exit_code == 2, result.output
    return result.stderr


def test_of_a_key_that_does_not_count_its_place_and_the_keys_that_would_are_told(folder: Path, tmp_path: Path) -> None:
    said = refused("sign", folder, "--key", tmp_path / "persons/anna/image-targets.pem")
    assert "is offline/anna/image-targets, of targets" in said
    assert "waits for signatures of: offline/anna/image-root, offline/ben/image-root, offline/carla/image-root" in said
    KeyFolder(tmp_path).make("eve")
    assert "is a key that nothing in force names" in refused("sign", folder, "--key", tmp_path / "eve.pem")


@pytest.mark.parametrize(
    ("given", "said"),
    [("persons/eve", "there is no such file or folder"), ("empty", "holds no key"), ("a.pub", "holds no private key")],
)
def test_of_what_is_no_key_it_is_told_what_it_is(given: str, said: str, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.pub").write_text("{}")
    (tmp_path / "a.pub").chmod(0o600)
    assert said in refused("sign", folder, "--key", tmp_path / given)


def test_of_a_passphrase_that_nobody_is_there_to_type_it_is_told_how_to_give_it(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "passphrase").write_text("correct horse\n")
    (tmp_path / "passphrase").chmod(0o600)
    anna = tmp_path / "persons/anna"
    assert "encrypted" in succeeds("encrypt", anna, "--passphrase-file", tmp_path / "passphrase")
    assert all(is_encrypted(path) for path in anna.glob("*.pem"))
    assert "give --passphrase-file" in refused("sign", folder, "--key", anna)
    succeeds("sign", folder, "--key", anna, "--passphrase-file", tmp_path / "passphrase")
    again = refused("encrypt", anna / "image-root.pem", "--passphrase-file", tmp_path / "passphrase")
    assert "has a passphrase already" in again


def test_an_encryption_of_a_folder_that_was_broken_off_is_finished_by_the_next(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "passphrase").write_text("correct horse\n")
    (tmp_path / "passphrase").chmod(0o600)
    anna = tmp_path / "persons/anna"
    first, *rest = sorted(anna.glob("*.pem"))
    succeeds("encrypt", first, "--passphrase-file", tmp_path / "passphrase")
    before = first.read_bytes()
    said = succeeds("encrypt", anna, "--passphrase-file", tmp_path / "passphrase")
    assert said.count("encrypted ") == len(rest)
    assert all(is_encrypted(path) for path in rest)
    assert first.read_bytes() == before


def test_a_change_that_has_expired_while_it_waited_is_not_signed(folder: Path, tmp_path: Path) -> None:
    change = read_pending(folder)
    assert change is not None
    root: Metadata[Root] = metadata_in(change, "image/2.root.json")
    root.signed.expires = dt.datetime(2021, 1, 1, tzinfo=dt.UTC)
    change.files["image/2.root.json"] = Metadata(root.signed).to_bytes().decode()
    write_pending(folder, change)
    assert "shoal keys discard" in refused("sign", folder, "--key", tmp_path / "persons/anna")


def _added(folder: Path) -> Result:
    return CliRunner().invoke(keys_commands, ["add-model", str(folder), "faces", "--approver", "dora"])


def _made(folder: Path) -> Result:
    return CliRunner().invoke(keys_commands, ["make", str(folder.with_name("dora.pem"))])


def _shared(folder: Path) -> Result:
    return CliRunner().invoke(keys_commands, ["share", str(folder), "--person", "dora", "--threshold", "1"])


@pytest.mark.parametrize("made", [_added, _made, _shared])
def test_a_persons_key_that_is_made_without_a_passphrase_is_warned_of(
    made: Callable[[Path], Result], tmp_path: Path
) -> None:
    keys = KeyFolder(tmp_path / "keys")
    ImageSigning(keys).create(("digits",))
    result = made(keys.folder)
    assert result.exit_code == 0, result.stderr
    assert "not encrypted" in result.stderr
    assert "dora" in result.stderr


def test_keys_of_persons_that_are_encrypted_are_not_warned_of(tmp_path: Path) -> None:
    (tmp_path / "passphrase").write_text("correct horse\n")
    (tmp_path / "passphrase").chmod(0o600)
    arguments = ["--person", "anna", "--person", "ben", "--passphrase-file", str(tmp_path / "passphrase")]
    result = CliRunner().invoke(keys_commands, ["init", str(tmp_path / "keys"), *arguments])
    assert (result.exit_code, result.stderr) == (0, "")


def test_a_release_that_has_expired_while_it_waited_is_proposed_anew(tmp_path: Path) -> None:
    keys, now = KeyFolder(tmp_path / "keys"), dt.datetime(2030, 1, 1, tzinfo=dt.UTC)
    clock = [now]
    signing = ImageSigning(keys, now=lambda: clock[0])
    signing.create(())
    signing.add_model("faces", approvers={"dora": None})
    shutil.move(keys.folder / "approvers", tmp_path / "persons")
    signing.add_target("faces", "faces/1/manifest.json", 7, "a" * 64)
    clock[0] = now + dt.timedelta(days=100)
    (proposal,) = signing.releases.rebase()
    role = Metadata.from_bytes(proposal.roles["faces"].encode()).signed
    assert not role.is_expired(clock[0])
    assert proposal.package == "a" * 64
