"""Proposals, at any threshold: what server and publisher count as enough is the same, and is what a client counts."""

from __future__ import annotations

import datetime as dt
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from securesystemslib.signer import CryptoSigner, Key
from tuf.api.metadata import Delegations, SuccinctRoles, TargetFile, Targets

from fleet_server.updates.errors import UploadRefused
from fleet_server.updates.image_verification import shown_roles
from fleet_server.updates.proposal import RENEWAL, Proposal, check_proposal, payloads, with_signatures
from tests.trainer.publish.stock_client import StockClient
from trainer.publish.change import signed_bytes
from trainer.publish.image_signing import ImageSigning
from trainer.publish.keys import KeyFolder, approver_key

PATH = "digits/1/manifest.json"


@settings(max_examples=8, deadline=None)
@given(st.data())
def test_a_release_is_complete_with_the_threshold_and_not_before(data: st.DataObject) -> None:
    persons = [f"p{number}" for number in range(data.draw(st.integers(1, 3), "approvers"))]
    threshold = data.draw(st.integers(2, 1 + len(persons)), "threshold")
    signers = data.draw(st.lists(st.sampled_from(persons), unique=True), "who approves")
    forged = data.draw(st.booleans(), "a stranger signs too")
    with tempfile.TemporaryDirectory() as name:
        keys = KeyFolder(Path(name) / "keys")
        signing = ImageSigning(keys)
        signing.create(())
        signing.add_model("digits", approvers=dict.fromkeys(persons), threshold=threshold)
        device = StockClient(Path(name) / "device", keys.folder / "image")
        assert device.target(PATH) is None
        signing.add_target("digits", PATH, 7, "1" * 64)
        (waiting,) = signing.releases.waiting.all()

        shown = shown_roles(lambda file: _read(keys.folder / "image" / file))
        proposal = Proposal(
            model="digits", version="1", roles=waiting.roles, path=PATH, length=7, package=waiting.package
        )
        approving = [keys.signer(approver_key(person)) for person in signers]
        strangers = [CryptoSigner.generate_ed25519()] if forged else []
        signed = {
            role: {one.public_key.keyid: one.sign(payload).signature for one in (*approving, *strangers)}
            for role, payload in payloads(proposal).items()
        }
        _, results = check_proposal(with_signatures(proposal, signed), shown, dt.datetime.now(dt.UTC))
        assert results["digits"].missing == max(0, threshold - 1 - len(signers))

        enough = 1 + len(signers) >= threshold
        assert signing.releases.complete(waiting, signed) is enough
        assert (device.target(PATH) is not None) is enough


def proposed(keys: KeyFolder, roles: dict[str, Targets]) -> Proposal:
    """The release of PATH in these roles, with the publisher's signature."""
    signer = keys.signer("publisher/digits")
    texts = {name: signed_bytes(role, [signer]).decode() for name, role in roles.items()}
    return Proposal(model="digits", version="1", roles=texts, path=PATH, length=7, package="1" * 64)


def approved(keys: KeyFolder, folder: Path) -> tuple[Targets, Callable[[str], bytes | None]]:
    """The next version of a model that asks for an approver too, with PATH in it, and what is shown until then."""
    ImageSigning(keys).create(())
    ImageSigning(keys).add_model("digits", approvers={"dora": None})
    role = shown_roles(lambda file: _read(folder / "image" / file))["digits"]
    role.version += 1
    role.targets[PATH] = TargetFile(7, {"sha256": "1" * 64}, PATH)
    return role, lambda file: _read(folder / "image" / file)


def test_a_renewal_names_no_package_that_nothing_signed_speaks_of(tmp_path: Path) -> None:
    keys = KeyFolder(tmp_path)
    role, shown = approved(keys, tmp_path)
    role.targets.clear()
    renewal = msgspec.structs.replace(proposed(keys, {"digits": role}), version=RENEWAL)
    now = dt.datetime.now(dt.UTC)
    with pytest.raises(UploadRefused, match="names a package"):
        check_proposal(renewal, shown_roles(shown), now)
    check_proposal(msgspec.structs.replace(renewal, path="", length=0, package=""), shown_roles(shown), now)


@pytest.mark.parametrize("claimed", ["other keys", "one signature", "a key behind the approver's name"])
def test_a_release_cannot_bring_bins_that_the_publisher_signs_alone(tmp_path: Path, claimed: str) -> None:
    keys = KeyFolder(tmp_path / "keys")
    role, stored = approved(keys, keys.folder)
    publisher, dora = (keys.signer(name).public_key for name in ("publisher/digits", approver_key("dora")))
    both: dict[str, Key] = {publisher.keyid: publisher, dora.keyid: dora}
    if claimed == "other keys":
        rule = SuccinctRoles([publisher.keyid], 1, 4, "digits-bins")
    elif claimed == "one signature":
        rule = SuccinctRoles(list(both), 1, 4, "digits-bins")
    else:
        rule = SuccinctRoles(list(both), 2, 4, "digits-bins")
        another = CryptoSigner.generate_ed25519().public_key
        another.keyid = dora.keyid
        both[dora.keyid] = another
    role.delegations = Delegations(both, succinct_roles=rule)
    roles = {"digits": role} | {name: Targets(version=1, expires=role.expires) for name in rule.get_roles()}
    with pytest.raises(UploadRefused, match="the bins of 'digits' need other keys"):
        check_proposal(proposed(keys, roles), shown_roles(stored), dt.datetime.now(dt.UTC))


def test_a_release_into_bins_that_it_does_not_bring_is_refused(tmp_path: Path) -> None:
    keys = KeyFolder(tmp_path / "keys")
    role, stored = approved(keys, keys.folder)
    known = shown_roles(stored)["targets"].delegations
    assert known is not None
    rule = SuccinctRoles(list(known.keys), 2, 4, "digits-bins")
    role.delegations = Delegations(known.keys, succinct_roles=rule)
    with pytest.raises(UploadRefused, match="lacks the role 'digits-bins-0'"):
        check_proposal(proposed(keys, {"digits": role}), shown_roles(stored), dt.datetime.now(dt.UTC))


def test_a_path_that_two_roles_sign_is_refused_whatever_they_say(tmp_path: Path) -> None:
    keys = KeyFolder(tmp_path / "keys")
    role, stored = approved(keys, keys.folder)
    known = shown_roles(stored)["targets"].delegations
    assert known is not None
    rule = SuccinctRoles(list(known.keys), 2, 4, "digits-bins")
    role.delegations = Delegations(known.keys, succinct_roles=rule)
    roles = {"digits": role} | {name: Targets(version=1, expires=role.expires) for name in rule.get_roles()}
    check_proposal(proposed(keys, roles), shown_roles(stored), dt.datetime.now(dt.UTC))
    # A device would come to the model's own role first; what is counted must not be the bin's.
    honest = TargetFile(7, {"sha256": "1" * 64}, PATH)
    roles[rule.get_role_for_target(PATH)].targets[PATH] = honest
    role.targets[PATH] = TargetFile(7, {"sha256": "2" * 64}, PATH)
    with pytest.raises(UploadRefused, match="which another role signs already"):
        check_proposal(proposed(keys, roles), shown_roles(stored), dt.datetime.now(dt.UTC))


def _read(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None
