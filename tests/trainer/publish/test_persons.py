"""Root and targets keys of several persons: what their signatures bring into force, and what does not."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Delegations, Metadata, Root, SuccinctRoles, Targets

from tests.trainer.publish.stock_client import StockClient
from trainer.publish.cli import keys_commands
from trainer.publish.errors import PublishRefused, SigningKeyError
from trainer.publish.image_signing import ImageSigning
from trainer.publish.keys import SNAPSHOT, KeyFolder
from trainer.publish.pending import PENDING_FILE
from trainer.publish.public_key import read_public

PERSONS = ("anna", "ben", "carla")


def shoal_keys(*arguments: object, **environment: str) -> Result:
    agrees = "y\n" if arguments[0] == "sign" else None
    return CliRunner().invoke(keys_commands, [str(one) for one in arguments], env=environment, input=agrees)


def succeeds(*arguments: object, **environment: str) -> str:
    result = shoal_keys(*arguments, **environment)
    assert result.exit_code == 0, result.output + result.stderr
    return result.output


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Keys of three persons, two of whom must sign; the persons have taken theirs with them."""
    return shared(tmp_path)


def shared(tmp_path: Path, *, threshold: int = 2, persons: tuple[str, ...] = PERSONS) -> Path:
    keys = KeyFolder(tmp_path / "keys")
    ImageSigning(keys).create(("digits",), persons=persons, threshold=threshold)
    shutil.move(keys.folder / "offline", tmp_path / "persons")
    return keys.folder


def without_private_keys(folder: Path, copy: Path) -> Path:
    """What another person gets to sign on a machine of their own."""
    for part in ("image", "director"):
        shutil.copytree(folder / part, copy / part)
    shutil.copy(folder / PENDING_FILE, copy)
    return copy


def test_a_change_is_in_force_once_two_of_three_have_signed_on_machines_of_their_own(
    folder: Path, tmp_path: Path
) -> None:
    device = StockClient(tmp_path / "device", folder / "image")
    assert device.target("faces/1/manifest.json") is None
    assert "signatures are missing" in succeeds("add-model", folder, "faces")
    assert "2 missing of: offline/anna/image-targets" in succeeds("status", folder)
    for person in ("anna", "carla"):
        elsewhere = without_private_keys(folder, tmp_path / f"machine of {person}")
        said = succeeds("sign", elsewhere, "--key", tmp_path / "persons" / person)
        assert "image-targets.pem" in said
        shutil.copy(elsewhere / PENDING_FILE, folder)
    assert "complete" in succeeds("status", folder)
    signing = ImageSigning(KeyFolder(folder))
    assert signing.refresh(), "the publisher's next command finds it complete"
    assert "no change" in succeeds("status", folder)
    assert signing.add_target("faces", "faces/1/manifest.json", 7, "a" * 64)
    assert device.target("faces/1/manifest.json") is not None


def test_signatures_that_were_given_side_by_side_are_brought_together(folder: Path, tmp_path: Path) -> None:
    succeeds("renew", folder)
    copies = [without_private_keys(folder, tmp_path / f"copy of {person}") for person in ("ben", "carla")]
    for copy, person in zip(copies, ("ben", "carla"), strict=True):
        succeeds("sign", copy, "--key", tmp_path / "persons" / person)
    assert "in force" in succeeds("sign", folder, "--from", copies[0], "--from", copies[1] / PENDING_FILE)
    assert (folder / "image/2.root.json").exists()
    assert (folder / "director/2.root.json").exists()


def test_nothing_of_a_pending_change_is_published_and_who_needs_it_is_refused(folder: Path) -> None:
    succeeds("add-model", folder, "faces")
    signing = ImageSigning(KeyFolder(folder))
    before = signing.files()
    signing.refresh()
    assert signing.files() == before
    with pytest.raises(PublishRefused, match="shoal keys status"):
        signing.add_target("faces", "faces/1/manifest.json", 7, "a" * 64)
    assert signing.add_target("digits", "digits/1/manifest.json", 7, "a" * 64), "other models go on"


def test_while_the_keys_of_a_model_change_nothing_of_it_is_released(folder: Path) -> None:
    succeeds("rotate", folder, "digits")
    with pytest.raises(PublishRefused, match="are being changed"):
        ImageSigning(KeyFolder(folder)).add_target("digits", "digits/1/manifest.json", 7, "a" * 64)
    assert "discarded: rotate digits" in succeeds("discard", folder)
    assert ImageSigning(KeyFolder(folder)).add_target("digits", "digits/1/manifest.json", 7, "a" * 64)


def test_a_signature_that_counts_for_nothing_is_refused(folder: Path, tmp_path: Path) -> None:
    succeeds("add-model", folder, "faces")
    refused = shoal_keys("sign", folder, "--key", tmp_path / "persons/anna/image-root.pem")
    assert refused.exit_code == 2
    assert "of no use to this change" in refused.stderr


def test_a_copy_that_somebody_altered_is_refused(folder: Path, tmp_path: Path) -> None:
    succeeds("add-model", folder, "faces")
    altered = without_private_keys(folder, tmp_path / "altered")
    text = (altered / PENDING_FILE).read_text()
    (altered / PENDING_FILE).write_text(text.replace("faces/*/manifest.json", "*/*/manifest.json"))
    refused = shoal_keys("sign", folder, "--from", altered)
    assert refused.exit_code == 2
    assert "differs in the other copy" in refused.stderr


def test_what_is_signed_is_told_from_the_metadata_and_not_from_the_words_in_the_file(
    folder: Path, tmp_path: Path
) -> None:
    succeeds("revoke", folder, "anna", "--no-successor")
    path = folder / PENDING_FILE
    path.write_text(path.read_text().replace("revoke anna", "a harmless renewal"))
    said = succeeds("sign", folder, "--key", tmp_path / "persons/ben")
    assert "image/2.root.json: root loses the key offline/anna/image-root (" in said
    assert "image/2.root.json: targets loses the key offline/anna/image-targets (" in said
    succeeds("discard", folder)
    succeeds("add-model", folder, "faces", "--approver", "dora")
    said = succeeds("status", folder)
    assert "the model faces is new" in said
    assert "faces may sign faces/*/manifest.json" in said
    assert "faces gets the key approvers/dora/approver (" in said
    assert "faces needs 2 signatures of 2 keys" in said


def altered(folder: Path, file: str, change: Callable[[Any], None]) -> None:
    """The pending change with something else in one of its files, which somebody else is asked to sign then."""
    pending = msgspec.json.decode((folder / PENDING_FILE).read_bytes())
    metadata = Metadata[Any].from_bytes(pending["files"][file].encode())
    change(metadata.signed)
    metadata.signatures.clear()
    pending["files"][file] = metadata.to_bytes().decode()
    (folder / PENDING_FILE).write_bytes(msgspec.json.encode(pending))


def test_a_key_behind_the_identifier_of_another_is_not_signed(folder: Path, tmp_path: Path) -> None:
    """No role would name another key than before, and yet whoever proposes it would hold two of three."""
    succeeds("rotate", folder, "timestamp")
    ben = KeyFolder(tmp_path / "persons").read(tmp_path / "persons/ben/image-root.pem", "ben").public_key.keyid

    def replace(root: Root) -> None:
        root.keys[ben].keyval["public"] = "ab" * 32

    altered(folder, "image/2.root.json", replace)
    refused = shoal_keys("sign", folder, "--key", tmp_path / "persons/carla")
    assert refused.exit_code == 2
    assert f"{ben} is the identifier of another key; do not sign it" in refused.stderr
    assert "discarded" in succeeds("discard", folder)
    succeeds("rotate", folder, "timestamp")


def test_that_a_change_hands_a_models_packages_to_bins_and_a_key_to_somebody_is_told(
    folder: Path, tmp_path: Path
) -> None:
    succeeds("rotate", folder, "digits")
    stranger = CryptoSigner.generate_ed25519().public_key

    def delegate(role: Targets) -> None:
        bins = SuccinctRoles([stranger.keyid], 1, 4, "digits-bins")
        role.delegations = Delegations({stranger.keyid: stranger}, succinct_roles=bins)

    altered(folder, "image/2.digits.json", delegate)
    said = succeeds("status", folder)
    assert "image/2.digits.json: digits lets 16 bins digits-bins-... sign its packages" in said
    assert f"digits-bins-... gets the key publisher/digits ({stranger.keyid[:12]}" in said
    succeeds("discard", folder)
    succeeds("rotate", folder, "timestamp")

    def rename(root: Root) -> None:
        for key in root.keys.values():
            key.unrecognized_fields["x-shoal-name"] = "offline/ben/image-root"

    altered(folder, "image/2.root.json", rename)
    said = succeeds("status", folder)
    assert "root: the key offline/anna/image-root (" in said
    assert "is called offline/ben/image-root (" in said


def test_what_was_in_force_once_does_not_come_back_under_a_new_name(folder: Path) -> None:
    """It has all its signatures: whoever hands pending.json back could bring old keys back with it."""
    succeeds("add-model", folder, "faces")
    path = folder / PENDING_FILE
    old = (folder / "image/1.targets.json").read_text()
    for name in ("image/3.targets.json", "image/1.targets.json", "image/01.targets.json"):
        pending = msgspec.json.decode(path.read_bytes()) | {"files": {name: old}, "keys": []}
        path.write_bytes(msgspec.json.encode(pending))
        assert "does not follow 2, in force here" in shoal_keys("status", folder).stderr
        with pytest.raises(SigningKeyError, match="does not follow 2"):
            ImageSigning(KeyFolder(folder)).refresh()
    assert ImageSigning(KeyFolder(folder)).store.roles()["targets"].version == 2
    assert not (folder / "image/3.targets.json").exists()
    assert "discarded" in succeeds("discard", folder)
    succeeds("rotate", folder, "timestamp")


def test_a_change_that_nobody_can_sign_can_be_discarded(folder: Path) -> None:
    succeeds("add-model", folder, "faces")
    path = folder / PENDING_FILE
    pending = msgspec.json.decode(path.read_bytes())
    pending["files"]["image/1.letters.json"] = pending["files"].pop("image/1.faces.json")
    path.write_bytes(msgspec.json.encode(pending))
    assert "`shoal keys discard`" in shoal_keys("status", folder).stderr
    assert shoal_keys("renew", folder, "--pending").exit_code == 2, "and is in the way of others until then"
    assert "discarded: add the model faces" in succeeds("discard", folder)
    assert "no change" in succeeds("status", folder)


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa"])
def test_a_public_key_under_the_identifier_of_another_is_not_taken(folder: Path, tmp_path: Path, kind: str) -> None:
    for name in ("dora", "mine"):
        succeeds("make", tmp_path / name, "--kind", kind)
    assert read_public(tmp_path / "mine.pub").keyid != read_public(tmp_path / "dora.pub").keyid
    mine, dora = (msgspec.json.decode((tmp_path / f"{name}.pub").read_bytes()) for name in ("mine", "dora"))
    (tmp_path / "mine.pub").write_bytes(msgspec.json.encode(mine | {"keyid": dora["keyid"]}))
    refused = shoal_keys("add-model", folder, "faces", "--approver", f"dora={tmp_path / 'mine.pub'}")
    assert refused.exit_code == 2
    assert "its keyid is that of another key" in refused.stderr


@pytest.mark.parametrize("leads", ["a file", "a key's name"])
def test_a_file_that_leads_out_of_the_folder_is_not_followed(folder: Path, leads: str) -> None:
    succeeds("add-model", folder, "faces")
    path = folder / PENDING_FILE
    change = msgspec.json.decode(path.read_bytes())
    if leads == "a file":
        change["files"] = {"../x.json": "{}"}
    else:
        file = next(name for name in change["files"] if name.endswith(".targets.json"))
        assert "publisher/faces" in change["files"][file]
        change["files"][file] = change["files"][file].replace("publisher/faces", "../../../home/anna/id")
    path.write_bytes(msgspec.json.encode(change))
    refused = shoal_keys("status", folder)
    assert refused.exit_code == 2
    assert "do not sign it" in refused.stderr
    assert "discarded" in succeeds("discard", folder)
    assert "no change" in succeeds("status", folder)


def test_which_keys_come_and_go_is_read_from_what_is_signed_and_not_from_what_is_said_beside_it(
    folder: Path, tmp_path: Path
) -> None:
    old = {name: KeyFolder(folder).signer(name).public_key.keyid for name in ("publisher/timestamp", SNAPSHOT)}
    succeeds("rotate", folder, "timestamp")
    path = folder / PENDING_FILE
    said = msgspec.json.decode(path.read_bytes())
    # Whoever passes the file on would have the publisher's other key put away, and the new one lost.
    path.write_bytes(msgspec.json.encode(said | {"keys": [], "retired": [SNAPSHOT, "server/director"]}))
    for person in ("anna", "ben"):
        succeeds("sign", folder, "--key", tmp_path / "persons" / person)
    assert "no change" in succeeds("status", folder)
    keys = KeyFolder(folder)
    assert keys.signer(SNAPSHOT).public_key.keyid == old[SNAPSHOT]
    assert keys.path("server/director").exists()
    timestamp = ImageSigning(keys).store.root("image").roles["timestamp"].keyids
    assert timestamp == [keys.signer("publisher/timestamp").public_key.keyid] != [old["publisher/timestamp"]]
    assert (folder / "retired/publisher/timestamp.1.pem").exists()


def test_a_file_with_bytes_that_are_no_text_is_told_as_damaged_and_can_be_discarded(folder: Path) -> None:
    succeeds("rotate", folder, "timestamp")
    path = folder / PENDING_FILE
    path.write_bytes(path.read_bytes().replace(b'"rotate ', b'"\xff', 1))
    assert b"\xff" in path.read_bytes()
    refused = shoal_keys("status", folder)
    assert (refused.exit_code, "cannot be read" in refused.stderr) == (2, True)
    succeeds("discard", folder)
    assert "no change" in succeeds("status", folder)


def test_words_beside_what_is_signed_do_not_write_over_what_is_shown(folder: Path) -> None:
    succeeds("rotate", folder, "timestamp")
    path = folder / PENDING_FILE
    said = msgspec.json.decode(path.read_bytes())
    path.write_bytes(msgspec.json.encode(said | {"what": ["nothing\x1b[2J\rmuch"]}))
    shown = succeeds("status", folder)
    assert "pending   nothing?[2J?much" in shown
    assert "timestamp loses the key" in shown


def test_an_earlier_form_of_a_change_is_not_put_in_force_with_the_keys_of_a_later_one(
    folder: Path, tmp_path: Path
) -> None:
    succeeds("rotate", folder, "timestamp")
    earlier = without_private_keys(folder, tmp_path / "earlier")
    for person in ("anna", "ben"):
        succeeds("sign", earlier, "--key", tmp_path / "persons" / person)
    succeeds("discard", folder)
    succeeds("rotate", folder, "timestamp")
    shutil.copy(earlier / PENDING_FILE, folder)
    before = ImageSigning(KeyFolder(folder)).store.root_version("image")
    with pytest.raises(SigningKeyError, match="is another key than the change that waits names"):
        ImageSigning(KeyFolder(folder)).refresh()
    assert ImageSigning(KeyFolder(folder)).store.root_version("image") == before
    succeeds("discard", folder)
    ImageSigning(KeyFolder(folder)).refresh()


def test_passphrases_are_asked_for_once_per_person(tmp_path: Path) -> None:
    made = CliRunner().invoke(
        keys_commands,
        ["init", str(tmp_path / "keys"), "--threshold", "1", "--person", "anna", "--person", "ben", "--ask"],
        input="one\none\ntwo\ntwo\n",
    )
    assert made.exit_code == 0, made.stderr
    for person, secret in (("anna", "one"), ("ben", "two")):
        keys = KeyFolder(tmp_path / "keys", passphrase=secret)
        for key in ("image-root", "image-targets", "director-root"):
            keys.signer(f"offline/{person}/{key}")


def test_each_person_has_a_passphrase_of_their_own(tmp_path: Path) -> None:
    folder, secret = tmp_path / "keys", tmp_path / "passphrase"
    secret.write_text("open sesame\n")
    secret.chmod(0o600)
    succeeds("init", folder, "--threshold", "2", "--keys", "3", "--passphrase-file", secret, "--model", "digits")
    key = folder / "offline/person-1/image-targets.pem"
    assert b"ENCRYPTED" in key.read_bytes()
    assert b"ENCRYPTED" not in (folder / "publisher/snapshot.pem").read_bytes()
    shutil.move(folder / "offline", tmp_path / "persons")
    succeeds("renew", folder)
    person = tmp_path / "persons/person-1"
    assert shoal_keys("sign", folder, "--key", person).exit_code == 2
    succeeds("sign", folder, "--key", person, "--passphrase-file", secret)
    secret.chmod(0o644)
    assert "chmod 600" in shoal_keys("sign", folder, "--key", person, "--passphrase-file", secret).stderr


def test_a_key_can_stay_on_the_machine_that_it_was_made_on(folder: Path, tmp_path: Path) -> None:
    succeeds("make", tmp_path / "anna.pem")
    succeeds("rotate", folder, "targets", "--key", "anna", "--public", tmp_path / "anna.pem.pub")
    for person in ("ben", "carla"):
        succeeds("sign", folder, "--key", tmp_path / "persons" / person)
    assert "no change" in succeeds("status", folder)
    succeeds("add-model", folder, "faces")
    assert shoal_keys("sign", folder, "--key", tmp_path / "persons/anna").exit_code == 2, "her old key is worth nothing"
    succeeds("sign", folder, "--key", tmp_path / "anna.pem", "--key", tmp_path / "persons/ben")
    assert "faces" in ImageSigning(KeyFolder(folder)).models()


def test_a_threshold_that_nobody_can_meet_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SigningKeyError, match="cannot be met"):
        ImageSigning(KeyFolder(tmp_path)).create((), persons=("anna",), threshold=2)


@settings(max_examples=8, deadline=None)
@given(st.data())
def test_as_many_signatures_as_the_threshold_and_no_fewer_convince_a_stock_client(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 4), "persons")
    threshold = data.draw(st.integers(1, count), "threshold")
    persons = tuple(f"p{number}" for number in range(count))
    signers = data.draw(st.lists(st.sampled_from(persons), unique=True), "who signs")
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        folder = shared(place, threshold=threshold, persons=persons)
        device = StockClient(place / "device", folder / "image")
        device.target("digits/1/manifest.json")
        succeeds("rotate", folder, "timestamp", "--pending")
        for person in signers:
            if (folder / PENDING_FILE).exists():
                succeeds("sign", folder, "--key", place / "persons" / person)
        convinced = len(signers) >= threshold
        assert (folder / "image/2.root.json").exists() is convinced
        device.target("digits/1/manifest.json")
        if not convinced and signers:
            # What is there so far, shown all the same, convinces nobody.
            text = msgspec.json.decode((folder / PENDING_FILE).read_bytes())["files"]["image/2.root.json"]
            (folder / "image/2.root.json").write_text(text)
            with pytest.raises(RepositoryError):
                device.target("digits/1/manifest.json")
