"""Keys: their files, their modes, and the commands."""

from __future__ import annotations

import datetime as dt
import stat
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from trainer.publish.cli import keys_commands
from trainer.publish.errors import SigningKeyError
from trainer.publish.image_signing import ImageSigning
from trainer.publish.keys import IMAGE_ROOT, PASSPHRASE_VARIABLE, KeyFolder, utc_now


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


def test_lifetimes_chosen_with_the_keys_hold_for_all_that_is_signed_later(tmp_path: Path) -> None:
    run("init", tmp_path, "--snapshot-days", "2", "--targets-days", "20", "--root-days", "100")
    assert run("add-model", tmp_path, "digits").exit_code == 0
    signing = ImageSigning(KeyFolder(tmp_path))
    assert not signing.refresh(), "all of it is new"
    later = utc_now() + dt.timedelta(days=1, hours=1)
    signing = ImageSigning(KeyFolder(tmp_path), now=lambda: later)
    assert signing.refresh(), "a snapshot of two days is old after one"
    left = {name: (expires - later).total_seconds() / 86_400 for name, expires in signing.expiries().items()}
    assert left["timestamp"] == pytest.approx(2, abs=0.01)
    assert left["digits"] == pytest.approx(20 - 25 / 24, abs=0.01)
    run("renew", tmp_path)
    assert (ImageSigning(KeyFolder(tmp_path)).expiries()["root"] - utc_now()).days in (99, 100)


def test_lifetimes_that_cannot_be_read_are_said_and_not_replaced(tmp_path: Path) -> None:
    run("init", tmp_path)
    (tmp_path / "image" / "lifetimes.json").write_text("{")
    shown = run("show", tmp_path)
    assert shown.exit_code == 2
    assert "lifetimes.json: cannot be read" in shown.stderr


def test_renewing_waits_for_whoever_is_signing(tmp_path: Path) -> None:
    run("init", tmp_path)
    keys = KeyFolder(tmp_path)
    renewing = threading.Thread(target=run, args=("renew", tmp_path))
    with keys.alone():
        before = ImageSigning(keys).files()
        renewing.start()
        renewing.join(0.5)
        assert renewing.is_alive()
        assert ImageSigning(keys).files() == before
    renewing.join(30)
    assert "2.root.json" in ImageSigning(keys).files()
