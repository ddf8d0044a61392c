"""A fleet that began with one local key, and whose keys are shared later: no device notices."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.trainer.publish.stock_client import StockClient
from tests.trainer.publish.test_persons import shoal_keys, succeeds
from trainer.publish.image_signing import ImageSigning
from trainer.publish.keys import KeyFolder

PATH = "digits/1/manifest.json"
PERSONS = ("--person", "anna", "--person", "ben", "--person", "carla", "--threshold", "2")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One local key for everything, and a package."""
    keys = KeyFolder(tmp_path / "keys")
    ImageSigning(keys).create(("digits",))
    ImageSigning(keys).add_target("digits", PATH, 7, "1" * 64)
    return keys.folder


def test_one_key_becomes_two_of_three_and_devices_follow(folder: Path, tmp_path: Path) -> None:
    device = StockClient(tmp_path / "device", folder / "image")
    assert device.target(PATH) is not None
    said = succeeds("share", folder, *PERSONS, "--dry-run")
    assert "root loses the key offline/image-root (" in said
    assert "targets needs 2 signatures of 3 keys, until now 1" in said
    assert not (folder / "offline/anna").exists()
    succeeds("share", folder, *PERSONS)
    assert device.target(PATH) is not None
    assert not (folder / "offline/image-root.pem").exists(), "one key alone is worth nothing any more"
    shutil.move(folder / "offline", tmp_path / "persons")
    succeeds("rotate", folder, "timestamp")
    succeeds("sign", folder, "--key", tmp_path / "persons/anna")
    assert "missing of" in succeeds("status", folder)
    assert "in force" in succeeds("sign", folder, "--key", tmp_path / "persons/ben")
    assert device.target(PATH) is not None


def test_somebody_joins_and_somebody_leaves(folder: Path, tmp_path: Path) -> None:
    succeeds("share", folder, *PERSONS)
    anna = KeyFolder(folder).signer("offline/anna/image-root").public_key.keyid
    succeeds("share", folder, "--person", "anna", "--person", "ben", "--person", "dora", "--threshold", "3")
    assert KeyFolder(folder).signer("offline/anna/image-root").public_key.keyid == anna, "she keeps her key"
    assert not (folder / "offline/carla/image-root.pem").exists()
    root = ImageSigning(KeyFolder(folder)).store.root("image")
    assert [root.roles[role].threshold for role in ("root", "targets", "snapshot", "timestamp")] == [3, 3, 1, 1]


def test_a_model_gets_approvers_and_loses_them_again(folder: Path, tmp_path: Path) -> None:
    device = StockClient(tmp_path / "device", folder / "image")
    succeeds("approvers", folder, "digits", "--approver", "ben", "--approver", "dora")
    assert (folder / "approvers/ben/root.json").exists()
    assert device.target(PATH) is not None
    signing = ImageSigning(KeyFolder(folder))
    assert signing.add_target("digits", "digits/2/manifest.json", 7, "2" * 64)
    assert device.target("digits/2/manifest.json") is None
    assert "digits 2: " in succeeds("status", folder)
    succeeds("approvers", folder, "digits", "--approver", "dora")
    succeeds("approvers", folder, "digits")
    assert [one.version for one in signing.releases.rebase()] == [], "now the publisher's signature is enough"
    assert device.target("digits/2/manifest.json") is not None
    refused = shoal_keys("approvers", folder, "digits", "--approver", "ben", "--threshold", "3")
    assert "cannot be had" in refused.stderr
    assert "not known here" in shoal_keys("approvers", folder, "letters", "--approver", "ben").stderr
