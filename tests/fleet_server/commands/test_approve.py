"""``shoal models approve`` with a wrong key or a wrong root: what was found, what was expected, and what to do."""

from __future__ import annotations

import datetime as dt
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

import fleet_server.cli
from edge_agent.contract.manifest import encode_manifest
from edge_agent.runtime.package import Package
from tests.fakes.packages import make_package
from tests.fakes.update_server import TOKEN, UpdateServer, update_server
from trainer.publish.image_signing import ImageSigning
from trainer.publish.keys import KeyFolder


@pytest.fixture
def server(tmp_path: Path) -> Iterator[UpdateServer]:
    """With a release that waits for dora's signature; her key is beside it."""
    with update_server(tmp_path / "server", models=("faces",)) as running:
        running.signing.add_model("digits", approvers={"dora": None})
        shutil.move(running.keys_folder / "approvers/dora", tmp_path / "dora")
        running.publisher.publish(make_package(tmp_path / "package"))
        yield running


def approve(server: UpdateServer, key: Path, *more: object, version: str = "1") -> Result:
    arguments = ["models", "approve", "digits", version, "--key", str(key), "--server", server.url, "--token", TOKEN]
    return CliRunner().invoke(fleet_server.cli.main, [*arguments, "--yes", *map(str, more)])


def test_the_key_of_somebody_else_is_refused_before_anything_is_shown(server: UpdateServer, tmp_path: Path) -> None:
    KeyFolder(tmp_path).make("eve")
    result = approve(server, tmp_path / "eve.pem", "--root", tmp_path / "dora/root.json")
    assert result.exit_code == 2
    assert "evaluation" not in result.output
    assert "is not one that is missing on digits 1: that waits for approvers/dora/approver (" in result.stderr
    own = approve(server, server.keys.path("publisher/digits"), "--root", tmp_path / "dora/root.json")
    assert "as publisher/digits it has signed digits 1 already; still waited for: approvers/dora" in own.stderr


def test_what_is_no_private_key_is_told_so(server: UpdateServer, tmp_path: Path) -> None:
    result = approve(server, tmp_path / "dora/root.json")
    assert result.exit_code == 2
    assert "others than its owner may read it" in result.stderr
    (tmp_path / "dora/root.json").chmod(0o600)
    assert "holds no private key" in approve(server, tmp_path / "dora/root.json").stderr


@pytest.mark.parametrize(
    ("root", "status", "said"),
    [
        ("server/keys/image/1.targets.json", 2, "holds targets, no root"),
        ("package/manifest.json", 2, "holds no root, but something else"),
        ("server/keys/director/1.root.json", 4, "Either that is not the image root of this server's fleet"),
        ("other/image/1.root.json", 4, "Either that is not the image root of this server's fleet"),
        ("nothing.json", 2, "image/1.root.json of the key folder"),
    ],
)
def test_a_wrong_root_is_told_with_what_it_is(
    root: str, status: int, said: str, server: UpdateServer, tmp_path: Path
) -> None:
    ImageSigning(KeyFolder(tmp_path / "other")).create(("digits",))
    result = approve(server, tmp_path / "dora/approver.pem", "--root", tmp_path / root)
    assert (result.exit_code, result.output.count("signed;")) == (status, 0)
    assert said in result.stderr
    assert root in result.stderr
    assert server.approvals.list()[0].missing == 1


def test_metadata_that_has_expired_is_told_with_the_time_and_who_renews_it(tmp_path: Path) -> None:
    long_ago = dt.datetime(2021, 1, 1, tzinfo=dt.UTC)
    with update_server(tmp_path / "server", models=("faces",), utc_now=lambda: long_ago) as running:
        running.signing.add_model("digits", approvers={"dora": None})
        running.publisher.publish(make_package(tmp_path / "package"))
        result = approve(running, running.keys_folder / "approvers/dora/approver.pem")
        assert result.exit_code == 4
        assert "is expired, at 20" in result.stderr
        assert "shoal keys publish" in result.stderr
        assert running.approvals.list()[0].missing == 1


def test_what_a_package_says_of_itself_does_not_paint_over_what_is_to_be_signed(
    server: UpdateServer, tmp_path: Path
) -> None:
    """The publisher's key may be stolen: what the approver sees is what that one has written."""
    package = make_package(tmp_path / "2", version="2")
    lineage = msgspec.structs.replace(package.manifest.lineage, run="\x1b[2A\rpackage  " + "0" * 64)
    painted = encode_manifest(msgspec.structs.replace(package.manifest, lineage=lineage))
    (package.folder / "manifest.json").write_bytes(painted)
    server.publisher.publish(Package.open(package.folder, verify=True))
    result = approve(server, tmp_path / "dora/approver.pem", version="2")
    assert result.exit_code == 0, result.output
    assert "?[2A?package" in result.output
    assert "\x1b" not in result.output
    assert "\r" not in result.output


def test_a_model_whose_approver_signed_nothing_in_time_stops_no_other_and_is_renewed_by_that_signature(
    tmp_path: Path,
) -> None:
    now = dt.datetime.now(dt.UTC)
    clock = [now - dt.timedelta(days=100)]
    with update_server(tmp_path / "server", models=("faces",), utc_now=lambda: clock[0]) as running:
        running.signing.add_model("digits", approvers={"dora": None})
        running.publisher.refresh()
        clock[0] = now
        assert running.signing.renew(), "roots and targets; the role of digits has expired ten days ago"
        running.publisher.publish(make_package(tmp_path / "faces", name="faces"))
        assert [one.manifest.name for one in running.releases] == ["faces"]
        running.publisher.refresh()
        (renewal,) = running.approvals.list()
        assert (renewal.model, renewal.version, renewal.missing) == ("digits", "_renewal", 1)
        key = running.keys_folder / "approvers/dora/approver.pem"
        result = approve(running, key, version="_renewal")
        assert result.exit_code == 0, result.output
        assert running.publisher.refresh() is False
        expires = running.images.roles()["digits"].expires
        assert expires > now + dt.timedelta(days=80)
        assert f"signed anew, until {expires:%Y-%m-%d}" in result.output


def test_a_key_in_the_clear_is_warned_of_and_an_encrypted_one_says_how_its_passphrase_is_given(
    server: UpdateServer, tmp_path: Path
) -> None:
    key, passphrase = tmp_path / "dora/approver.pem", tmp_path / "passphrase"
    warned = approve(server, key, "--root", server.keys_folder / "director/1.root.json")
    assert f"warning: {key} is not encrypted" in warned.stderr
    passphrase.write_text("correct horse\n")
    passphrase.chmod(0o600)
    encrypted = CliRunner().invoke(
        fleet_server.cli.main, ["keys", "encrypt", str(key.parent), "--passphrase-file", str(passphrase)]
    )
    assert encrypted.exit_code == 0, encrypted.stderr
    assert "give --passphrase-file" in approve(server, key).stderr
    signed = approve(server, key, "--passphrase-file", passphrase)
    assert (signed.exit_code, signed.stderr) == (0, "")


def test_a_key_that_is_not_there_is_named_before_the_root_beside_it(server: UpdateServer, tmp_path: Path) -> None:
    result = approve(server, tmp_path / "nobody/approver.pem")
    assert result.exit_code == 2
    assert "nobody/approver.pem: there is no such file; give your private key with --key" in result.stderr
