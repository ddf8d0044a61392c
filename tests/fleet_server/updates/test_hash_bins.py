"""Models with hash bins: what the server accepts of them, and that a device installs out of one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from tuf.api.metadata import DelegatedRole, Delegations, Metadata, SuccinctRoles, Targets

from edge_agent.runtime.package import Package
from tests.fakes.packages import make_package
from tests.fakes.update_server import UpdateServer
from tests.fakes.updating_device import UpdatingDevice
from trainer.publish.hash_bins import bins_of

METADATA = "/api/v1/repository/metadata"


@pytest.fixture
def two_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bins from the third package on."""
    monkeypatch.setattr("trainer.publish.hash_bins.TARGETS_PER_ROLE", 2)


@pytest.fixture
def packages(tmp_path: Path) -> list[Package]:
    return [make_package(tmp_path / f"built/{one}", version=one, seed=int(one)) for one in "1234"]


def upload(client: httpx.Client, server: UpdateServer) -> httpx.Response:
    files = {name: data.decode() for name, data in server.signing.files().items()}
    return client.post(METADATA, json={"files": files})


@pytest.mark.usefixtures("two_at_most")
def test_a_device_that_knew_the_model_without_bins_installs_out_of_one(
    server: UpdateServer, packages: list[Package], tmp_path: Path
) -> None:
    server.publisher.publish(packages[0])
    device = UpdatingDevice(tmp_path / "device", server.enrolment())
    try:
        device.update(server.assign(packages[0]))
        assert device.version == "1"
        for package in packages[1:]:
            server.publisher.publish(package)
        assert bins_of(server.signing._roles()["digits"]) is not None
        assert [release.manifest.version for release in server.releases] == ["1", "2", "3", "4"]
        device.update(server.assign(packages[3]))
        assert device.version == "4"
    finally:
        device.close()


@pytest.mark.usefixtures("two_at_most")
def test_a_bin_without_the_models_key_or_with_anothers_package_is_refused(
    server: UpdateServer, packages: list[Package], client: httpx.Client
) -> None:
    for package in packages[:3]:
        server.publisher.publish(package)
    signing = server.signing
    roles = signing._roles()
    bins = bins_of(roles["digits"])
    assert bins is not None
    path = "digits/1/manifest.json"
    wrong = next(name for name in bins.get_roles() if name != bins.get_role_for_target(path))
    roles[wrong].targets[path] = roles[bins.get_role_for_target(path)].targets[path]
    signing._sign_targets(wrong, roles[wrong], "publisher/digits", roles)
    signing._sign_snapshot(roles)
    answer = upload(client, server)
    assert answer.status_code == 422
    assert f"role '{wrong}' may not sign" in answer.json()["error"]
    signing._sign_targets(wrong, roles[wrong], "publisher/faces", roles)
    signing._sign_snapshot(roles)
    assert f"{wrong} was signed by 0/1 keys" in upload(client, server).json()["error"]


def other_prefix(keyid: str) -> Delegations:
    return Delegations({}, succinct_roles=SuccinctRoles([keyid], 1, 1, "faces"))


def to_a_role(keyid: str) -> Delegations:
    rule = DelegatedRole("friend", [keyid], 1, terminating=True, paths=["digits/*/manifest.json"])
    return Delegations({}, {"friend": rule})


@pytest.mark.parametrize("delegate", [other_prefix, to_a_role])
def test_a_models_key_cannot_delegate_to_others(
    server: UpdateServer, client: httpx.Client, delegate: Callable[[str], Delegations]
) -> None:
    signing = server.signing
    roles = signing._roles()
    key = server.keys.signer("publisher/digits").public_key
    roles["digits"].delegations = delegate(key.keyid)
    roles["digits"].delegations.keys[key.keyid] = key
    signing._sign_targets("digits", roles["digits"], "publisher/digits", roles)
    signing._sign_snapshot(roles)
    answer = upload(client, server)
    assert answer.status_code == 422
    assert "may delegate to bins digits-bins-... only" in answer.json()["error"]


def test_bins_of_an_earlier_number_stay_in_the_snapshot_and_count_for_nothing(
    server: UpdateServer, packages: list[Package], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.publish.hash_bins.TARGETS_PER_ROLE", 1)
    for package in packages[:2]:
        server.publisher.publish(package)
    monkeypatch.setattr("trainer.publish.hash_bins.bits_for", lambda _count: 8)
    server.publisher.publish(packages[2])
    roles = server.signing._roles()
    assert {"digits-bins-0", "digits-bins-00", "digits-bins-ff"} <= roles.keys()
    text = server.images.metadata(f"{roles['digits'].version}.digits.json")
    assert text is not None
    bins = bins_of(Metadata[Targets].from_bytes(text).signed)
    assert bins is not None
    assert bins.bit_length == 8
    assert len(server.releases) == 3
    server.publisher.publish(packages[3])
    assert len(server.releases) == 4


@pytest.mark.usefixtures("two_at_most")
def test_a_model_moves_into_bins_with_its_approvers_signature(
    server: UpdateServer, packages: list[Package], tmp_path: Path
) -> None:
    server.signing.add_model("sorted", approvers={"ben": None})
    signer = server.keys.signer("approvers/ben/approver")
    built = [make_package(tmp_path / f"s/{one}", name="sorted", version=one, seed=int(one)) for one in "123"]
    for package in built:
        server.publisher.publish(package)
        proposal = server.approvals.details("sorted", package.manifest.version).proposal
        signed = {
            role: signer.sign(Metadata.from_bytes(text.encode()).signed_bytes) for role, text in proposal.roles.items()
        }
        answer = server.approvals.sign(
            "sorted", package.manifest.version, {role: {one.keyid: one.signature} for role, one in signed.items()}
        )
        assert answer.missing == 0
        assert server.publisher.refresh() is False
    assert bins_of(server.signing._roles()["sorted"]) is not None
    assert [release.manifest.name for release in server.releases] == ["sorted"] * 3
