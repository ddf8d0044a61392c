"""Who a device is survives a bit that its disk has lost."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from edge_agent.cli import main
from edge_agent.contract.enrolment import BrokerAddress, Enrolment
from edge_agent.contract.errors import ConfigurationError
from edge_agent.identity import identity_to_serve_with, keep_identity, read_identity

MINE = Enrolment(
    fleet="f", device="d", secret="s", server="http://h", broker=BrokerAddress(host="h", port=1),
    image_root="{}", director_root="{}",
)  # fmt: skip


def flip(path: Path, at: int, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(bytes(data))


def test_an_identity_is_read_as_it_was_written_and_nobody_else_may_read_it(tmp_path: Path) -> None:
    assert read_identity(tmp_path) is None
    keep_identity(tmp_path, MINE)
    assert read_identity(tmp_path) == MINE
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


@pytest.mark.parametrize("name", ["identity.json", "identity.copy.json"])
@pytest.mark.parametrize("bit", [0, 4])
def test_any_flipped_bit_in_either_file_leaves_the_identity_as_it_was(tmp_path: Path, name: str, bit: int) -> None:
    keep_identity(tmp_path, MINE)
    path = tmp_path / name
    written = path.read_bytes()
    for at in range(len(written)):
        flip(path, at, bit)
        assert read_identity(tmp_path) == MINE, f"{name}, byte {at}"
        path.write_bytes(written)


def test_a_mended_file_is_on_the_disk_again_with_its_owner_and_mode(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keep_identity(tmp_path, MINE)
    path = tmp_path / "identity.json"
    flip(path, 12, 1)
    path.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(path, 1234, 1235)
    before = path.stat()
    read_identity(tmp_path, mend=True)
    assert "and it is mended" in caplog.text
    after = path.stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    (tmp_path / "identity.copy.json").unlink()
    assert read_identity(tmp_path) == MINE


def test_who_only_reads_writes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keep_identity(tmp_path, MINE)
    path = tmp_path / "identity.json"
    flip(path, 12, 1)
    before = path.stat().st_ino, path.read_bytes()
    assert read_identity(tmp_path) == MINE
    done = CliRunner().invoke(main, ["status", "--state", str(tmp_path)])
    assert "device  d of fleet f" in done.output
    assert (path.stat().st_ino, path.read_bytes()) == before
    assert "identity.copy.json is taken for it. To change" in caplog.text


def test_a_file_that_is_gone_is_taken_from_its_copy(tmp_path: Path) -> None:
    keep_identity(tmp_path, MINE)
    path = tmp_path / "identity.json"
    path.unlink()
    assert read_identity(tmp_path) == MINE
    assert not path.exists()
    assert read_identity(tmp_path, mend=True) == MINE
    assert path.stat().st_mode & 0o777 == 0o600
    for each in tmp_path.iterdir():
        each.unlink()
    assert read_identity(tmp_path) is None


def test_a_device_that_enrolled_before_there_were_copies_reads_its_file(tmp_path: Path) -> None:
    (tmp_path / "identity.json").write_bytes(msgspec.json.encode(MINE))
    assert read_identity(tmp_path) == MINE


def test_a_damaged_identity_without_a_copy_is_named_and_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "identity.json").write_bytes(b'{"fleet": ')
    with pytest.raises(ConfigurationError, match=r"identity\.json.*enrol this device again"):
        read_identity(tmp_path)


def test_whoever_serves_models_goes_on_without_a_damaged_identity_and_is_told(tmp_path: Path) -> None:
    assert identity_to_serve_with(tmp_path) == (None, "")
    keep_identity(tmp_path, MINE)
    assert identity_to_serve_with(tmp_path) == (MINE, "")
    for name in ("identity.json", "identity.copy.json"):
        flip(tmp_path / name, 5, 7)
    identity, trouble = identity_to_serve_with(tmp_path)
    assert identity is None
    assert f"{tmp_path}/identity.json" in trouble
    assert "models are served" in trouble
    assert "enrol this device again" in trouble


def test_an_identity_that_another_user_keeps_is_not_taken_for_a_damaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_identity(tmp_path, MINE)

    def forbidden(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", forbidden)  # the tests may run as root, to whom nothing is forbidden
    for read in (read_identity, identity_to_serve_with):
        with pytest.raises(ConfigurationError, match="Permission denied; run this as the user who enrolled it"):
            read(tmp_path)


def test_a_file_that_the_disk_cannot_read_any_more_is_taken_from_its_copy(tmp_path: Path) -> None:
    keep_identity(tmp_path, MINE)
    (tmp_path / "identity.json").unlink()
    (tmp_path / "identity.json").mkdir()
    assert read_identity(tmp_path) == MINE
    (tmp_path / "identity.copy.json").unlink()
    with pytest.raises(ConfigurationError, match=r"identity\.json: Is a directory"):
        read_identity(tmp_path)


def test_a_device_that_enrols_anew_is_never_taken_for_what_it_was(tmp_path: Path) -> None:
    keep_identity(tmp_path, MINE)
    (tmp_path / "identity.json").unlink()
    other = msgspec.structs.replace(MINE, device="e")
    (tmp_path / ".identity.copy.json.new").mkdir()  # the power goes before the copy is there
    with pytest.raises(OSError, match=r"identity\.copy\.json"):
        keep_identity(tmp_path, other)
    assert read_identity(tmp_path) == other
