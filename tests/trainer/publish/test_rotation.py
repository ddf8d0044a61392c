"""Every key there is, rotated and revoked: devices that knew the old metadata follow, thieves are left behind."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, Targets, Timestamp

from tests.trainer.publish.stock_client import StockClient
from tests.trainer.publish.test_persons import shoal_keys, succeeds
from trainer.publish.image_signing import ImageSigning
from trainer.publish.keys import DIRECTOR, SNAPSHOT, TIMESTAMP, KeyFolder

PATH = "digits/1/manifest.json"
ROLES = ("root", "targets", "snapshot", "timestamp", "digits")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    keys = KeyFolder(tmp_path / "keys")
    signing = ImageSigning(keys)
    signing.create(("digits", "faces"))
    for version in ("1", "2", "3"):
        signing.add_target("digits", f"digits/{version}/manifest.json", 7, version * 64)
    return keys.folder


def contents(folder: Path) -> dict[Path, bytes]:
    """All that matters: the file that keeps two commands apart does not."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".signing"}


def root(folder: Path, repository: str = "image") -> Root:
    newest = max((folder / repository).glob("*.root.json"), key=lambda path: int(path.name.split(".")[0]))
    return Metadata[Root].from_bytes(newest.read_bytes()).signed


@pytest.mark.parametrize("role", ROLES)
def test_a_rotated_key_takes_over_without_a_device_noticing(folder: Path, tmp_path: Path, role: str) -> None:
    device = StockClient(tmp_path / "device", folder / "image")
    assert device.target(PATH) is not None
    before = {name: KeyFolder(folder).signer(name).public_key.keyid for name in KeyFolder(folder).names()}
    said = succeeds("rotate", folder, role)
    assert "In force here" in said
    assert "devices  " in said
    after = {name: KeyFolder(folder).signer(name).public_key.keyid for name in KeyFolder(folder).names()}
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {next(name for name in before if name.rpartition("/")[2].removeprefix("image-") == role)}
    assert ImageSigning(KeyFolder(folder)).add_target("digits", "digits/4/manifest.json", 7, "4" * 64)
    assert device.target(PATH) is not None
    assert device.target("digits/4/manifest.json") is not None


def test_a_rotated_root_is_signed_by_the_keys_before_and_after_it(folder: Path) -> None:
    old = root(folder)
    succeeds("rotate", folder, "root")
    new = Metadata[Root].from_bytes((folder / "image/2.root.json").read_bytes())
    old.verify_delegate(Root.type, new.signed_bytes, new.signatures)
    new.signed.verify_delegate(Root.type, new.signed_bytes, new.signatures)
    assert not set(old.roles[Root.type].keyids) & set(new.signed.roles[Root.type].keyids)


@pytest.mark.parametrize(("role", "name"), [("director", DIRECTOR), ("director-root", "offline/director-root")])
def test_the_director_gets_another_key_under_the_root_that_devices_know(folder: Path, role: str, name: str) -> None:
    before, old = KeyFolder(folder).signer(name).public_key.keyid, root(folder, "director")
    said = succeeds("rotate", folder, role)
    assert "shoal server init" in said
    assert before != KeyFolder(folder).signer(name).public_key.keyid
    new = Metadata[Root].from_bytes((folder / "director/2.root.json").read_bytes())
    old.verify_delegate(Root.type, new.signed_bytes, new.signatures)
    assert before not in new.signed.keys
    if role == "director":
        keyids = {tuple(new.signed.roles[one].keyids) for one in (Targets.type, Snapshot.type, Timestamp.type)}
        assert keyids == {(KeyFolder(folder).signer(DIRECTOR).public_key.keyid,)}


def test_a_dry_run_says_all_and_changes_nothing(folder: Path) -> None:
    before = contents(folder)
    said = succeeds("revoke", folder, "publisher/digits", "snapshot", "timestamp", "--drop", "2", "--dry-run")
    assert "publisher/digits of digits (threshold 1): replaced by a new key" in said
    assert "digits: stay signed: 1, 3; no longer: 2" in said
    assert "devices   believe packages of digits only as they are signed now" in said
    assert "- Once it is in force, publish it" in said
    assert "dry run: nothing was changed" in said
    assert before == contents(folder)


@pytest.mark.parametrize(
    ("option", "kept"), [(("--drop", "2"), {"1", "3"}), (("--keep", "3"), {"3"}), ((), {"1", "2", "3"})]
)
def test_what_a_stolen_models_key_has_signed_stays_as_far_as_it_is_kept(
    folder: Path, tmp_path: Path, option: tuple[str, ...], kept: set[str]
) -> None:
    device = StockClient(tmp_path / "device", folder / "image")
    assert device.target(PATH) is not None
    succeeds("revoke", folder, "publisher/digits", *option)
    found = {version for version in "123" if device.target(f"digits/{version}/manifest.json") is not None}
    assert found == kept


def test_a_revoked_key_signs_nothing_that_a_device_believes(folder: Path, tmp_path: Path) -> None:
    stolen = KeyFolder(folder).signer("publisher/digits")
    device = StockClient(tmp_path / "device", folder / "image")
    device.target(PATH)
    succeeds("revoke", folder, "publisher/digits")
    signing = ImageSigning(KeyFolder(folder))
    roles = signing.store.roles()
    forged = Metadata(roles["digits"])
    forged.signed.version += 1
    forged.sign(stolen)
    (folder / f"image/{forged.signed.version}.digits.json").write_bytes(forged.to_bytes())
    signing._sign_snapshot({**roles, "digits": forged.signed})
    with pytest.raises(RepositoryError, match="digits was signed by 0/1 keys"):
        device.target(PATH)


def test_an_approvers_key_that_was_stolen_puts_no_blame_on_the_publishers(folder: Path) -> None:
    succeeds("add-model", folder, "signs", "--approver", "dora")
    said = succeeds("revoke", folder, "dora", "--dry-run")
    assert "approvers/dora/approver.pem to whom it belongs" in said
    assert "thief" not in said
    assert "thief" in succeeds("revoke", folder, "publisher/signs", "--dry-run")


def test_a_revoked_person_is_gone_from_every_role_and_the_others_go_on(tmp_path: Path) -> None:
    keys = KeyFolder(tmp_path / "keys")
    ImageSigning(keys).create((), persons=("anna", "ben", "carla"), threshold=2)
    said = succeeds("revoke", keys.folder, "anna", "--no-successor")
    assert "replaced by nobody" in said
    assert len(root(keys.folder).roles[Root.type].keyids) == 2
    assert len(root(keys.folder, "director").roles[Root.type].keyids) == 2
    assert not (keys.folder / "offline/anna/image-root.pem").exists()
    assert (keys.folder / "retired/offline/anna/image-root.1.pem").exists()
    refused = shoal_keys("revoke", keys.folder, "ben", "--no-successor")
    assert refused.exit_code == 2
    assert "needs 2 signatures and would have 1 keys" in refused.stderr


@pytest.mark.parametrize("name", ["nobody", "offline/dora/image-root"])
def test_a_key_that_is_not_in_force_cannot_be_revoked(folder: Path, name: str) -> None:
    refused = shoal_keys("revoke", folder, name)
    assert refused.exit_code == 2
    assert "known: offline/director-root" in refused.stderr


def test_devices_recover_from_versions_that_a_thief_has_pushed_ahead(folder: Path, tmp_path: Path) -> None:
    """TUF 5.3.11: with snapshot and timestamp keys a thief makes devices refuse all that has lower versions."""
    device = StockClient(tmp_path / "device", folder / "image")
    assert device.target(PATH) is not None
    mirror = tmp_path / "thief"
    mirror.mkdir()
    for path in (folder / "image").iterdir():
        (mirror / path.name).write_bytes(path.read_bytes())
    push_ahead(mirror, KeyFolder(folder))
    StockClient(tmp_path / "device", mirror).target(PATH)
    with pytest.raises(RepositoryError, match="version"):
        device.target(PATH)
    succeeds("revoke", folder, "snapshot", "timestamp")
    assert device.target(PATH) is not None
    assert ImageSigning(KeyFolder(folder)).add_target("digits", "digits/4/manifest.json", 7, "4" * 64)
    assert device.target("digits/4/manifest.json") is not None


def push_ahead(mirror: Path, stolen: KeyFolder, version: int = 900_000_000) -> None:
    """What a thief of the snapshot and timestamp keys shows."""
    expires = dt.datetime.now(dt.UTC).replace(microsecond=0) + dt.timedelta(days=5)
    current = Metadata[Timestamp].from_bytes((mirror / "timestamp.json").read_bytes()).signed.snapshot_meta.version
    meta = Metadata[Snapshot].from_bytes((mirror / f"{current}.snapshot.json").read_bytes()).signed.meta
    snapshot = Metadata(Snapshot(version=version, expires=expires, meta=meta))
    snapshot.sign(stolen.signer(SNAPSHOT))
    data = snapshot.to_bytes()
    (mirror / f"{version}.snapshot.json").write_bytes(data)
    found = MetaFile.from_data(version, data, ["sha256"])
    timestamp = Metadata(Timestamp(version=version, expires=expires, snapshot_meta=found))
    timestamp.sign(stolen.signer(TIMESTAMP))
    (mirror / "timestamp.json").write_bytes(timestamp.to_bytes())


def test_what_lies_beside_a_stolen_key_is_told(folder: Path) -> None:
    assert "revoke both" in succeeds("revoke", folder, "snapshot")
    assert "has its other keys too" in succeeds("revoke", folder, "publisher/faces")


def test_keys_that_were_made_before_metadata_named_them_are_rotated_like_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("first_keys", "image_signing"):
        monkeypatch.setattr(f"trainer.publish.{module}.named", lambda key, _name: key)
    keys = KeyFolder(tmp_path / "keys")
    ImageSigning(keys).create(("digits",))
    ImageSigning(keys).add_target("digits", PATH, 7, "1" * 64)
    monkeypatch.undo()
    assert b"x-shoal-name" not in (keys.folder / "image/1.root.json").read_bytes()
    device = StockClient(tmp_path / "device", keys.folder / "image")
    assert device.target(PATH) is not None
    before = {name: keys.signer(name).public_key.keyid for name in keys.names()}
    for role in (*ROLES, "director", "director-root"):
        succeeds("rotate", keys.folder, role)
    after = {name: keys.signer(name).public_key.keyid for name in keys.names()}
    assert before.keys() == after.keys()
    assert not set(before.values()) & set(after.values())
    assert device.target(PATH) is not None
