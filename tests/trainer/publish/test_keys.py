"""Keys: their files, their modes, and the commands."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from trainer.publish.cli import keys_commands
from trainer.publish.errors import SigningKeyError
from trainer.publish.keys import IMAGE_ROOT, PASSPHRASE_VARIABLE, KeyFolder


def run(*arguments: object, **environment: str) -> Result:
    return CliRunner().invoke(keys_commands, [str(one) for one in arguments], env=environment)


def test_init_makes_private_keys_that_only_their_owner_reads(tmp_path: Path) -> None:
    assert run("init", tmp_path, "--model", "digits", "--model", "faces").exit_code == 0
    names = KeyFolder(tmp_path).names()
    assert names == [
        "offline/director-root", "offline/image-root", "offline/image-targets", "publisher/digits", "publisher/faces",
        "publisher/snapshot", "publisher/timestamp", "server/director",
    ]  # fmt: skip
    assert {stat.S_IMODE(KeyFolder(tmp_path).path(name).stat().st_mode) for name in names} == {0o600}
    assert (tmp_path / "image/1.root.json").exists()
    assert (tmp_path / "director/1.root.json").exists()


def test_init_does_not_overwrite_keys(tmp_path: Path) -> None:
    run("init", tmp_path)
    key = KeyFolder(tmp_path).path(IMAGE_ROOT).read_bytes()
    again = run("init", tmp_path)
    assert again.exit_code == 2
    assert "there are keys already" in again.stderr
    assert KeyFolder(tmp_path).path(IMAGE_ROOT).read_bytes() == key


def test_show_names_keys_models_and_expiries(tmp_path: Path) -> None:
    run("init", tmp_path, "--model", "digits", "--snapshot-days", "2")
    shown = run("show", tmp_path)
    assert "publisher/digits" in shown.output
    assert "digits: 0 packages signed" in shown.output
    assert shown.output.count("expires") == 6


def test_export_gives_the_server_its_part_and_no_more(tmp_path: Path) -> None:
    run("init", tmp_path / "keys")
    assert run("export", tmp_path / "keys", tmp_path / "data").exit_code == 0
    files = sorted(path.name for path in (tmp_path / "data/keys").iterdir())
    assert files == ["director-root.json", "director.pem", "image-root.json"]
    assert stat.S_IMODE((tmp_path / "data/keys/director.pem").stat().st_mode) == 0o600


def test_keys_are_encrypted_where_the_environment_gives_a_passphrase(tmp_path: Path) -> None:
    secret = {PASSPHRASE_VARIABLE: "open sesame"}
    assert run("init", tmp_path, "--kind", "ecdsa", **secret).exit_code == 0
    assert b"ENCRYPTED" in KeyFolder(tmp_path).path(IMAGE_ROOT).read_bytes()
    with pytest.raises(SigningKeyError, match=PASSPHRASE_VARIABLE):
        KeyFolder(tmp_path).signer(IMAGE_ROOT)
    assert run("add-model", tmp_path, "digits", **secret).exit_code == 0
    assert run("add-model", tmp_path, "faces").exit_code == 2


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    run("init", tmp_path)
    path = KeyFolder(tmp_path).path(IMAGE_ROOT)
    path.chmod(0o644)
    with pytest.raises(SigningKeyError, match="chmod 600"):
        KeyFolder(tmp_path).signer(IMAGE_ROOT)


@pytest.mark.parametrize("name", ["snapshot", "Digits", "../x"])
def test_a_model_with_an_impossible_name_is_refused(tmp_path: Path, name: str) -> None:
    result = run("init", tmp_path, "--model", name)
    assert result.exit_code in (2, 3)
    assert KeyFolder(tmp_path).names() == []
