"""Releases that wait for an approver: what the server takes, what it shows to whom, and what comes of it."""

from __future__ import annotations

import concurrent.futures
import datetime as dt
import json
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from click.testing import CliRunner, Result
from tuf.api.metadata import Metadata, Targets

from edge_agent.contract.errors import ServerRefused
from edge_agent.contract.manifest import Manifest
from edge_agent.contract.repository import target_name
from edge_agent.runtime.package import Package
from fleet_server.commands.models import models_group
from fleet_server.config import RolloutSettings
from fleet_server.errors import Conflict, NotFound
from fleet_server.features import roll_out_approved
from fleet_server.models.service import ModelService
from fleet_server.updates import approving
from fleet_server.updates.approvals import Approval, Approvals
from fleet_server.updates.approver_key import read_key
from fleet_server.updates.image_verification import verify_upload
from fleet_server.updates.proposal import payloads
from tests.fakes.packages import make_package
from tests.fakes.update_server import TOKEN, UpdateServer, update_server
from tests.fleet_server.fleet import Fleet
from trainer.publish.errors import PublishRefused
from trainer.publish.image_signing import ImageSigning
from trainer.publish.keys import KeyFolder
from trainer.publish.repository import Publisher

APPROVALS = "/api/v1/approvals"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[UpdateServer]:
    """A server with a model that asks for an approver, and two persons who are one."""
    with update_server(tmp_path / "server", models=("faces",)) as running:
        running.signing.add_model("digits", approvers={"ben": None, "dora": None})
        shutil.move(running.keys_folder / "approvers", tmp_path / "persons")
        yield running


@pytest.fixture
def waiting(server: UpdateServer, package: Package) -> Package:
    """A package that the publisher has signed and nobody has approved."""
    assert server.publisher.publish(package) == "waits for approval: 1 of 2 signatures are missing"
    return package


def shoal_models(server: UpdateServer, *arguments: object) -> Result:
    where = ["--server", server.url, "--token", TOKEN]
    return CliRunner().invoke(models_group, [*map(str, arguments), *where], standalone_mode=False)


def shown_by(server: UpdateServer, *command: str) -> str:
    result = shoal_models(server, *command)
    if result.exception is not None:
        raise result.exception
    return result.output


def approve(server: UpdateServer, tmp_path: Path, *, version: str = "1", person: str = "ben") -> str:
    key = tmp_path / "persons" / person / "approver.pem"
    result = shoal_models(server, "approve", "digits", version, "--key", key, "--yes")
    if result.exception is not None:
        raise result.exception
    return result.output


def as_device(server: UpdateServer) -> httpx.Client:
    return httpx.Client(base_url=server.url, headers={"Authorization": "Bearer secret-1"})


def shown_targets_of(server: UpdateServer) -> set[str]:
    text = b"".join(data for name, data in server.images.shown_files().items() if "root" not in name)
    return {path for path in ("digits/1", "digits/2", "faces/1") if path.encode() in text}


def test_a_release_waits_until_an_approver_has_signed_and_is_announced_then(
    server: UpdateServer, waiting: Package, tmp_path: Path
) -> None:
    (one,) = server.approvals.list()
    assert (one.model, one.version, one.package, one.state) == ("digits", "1", waiting.digest, "waiting")
    assert (one.missing, one.threshold, one.signed) == (1, 2, ["publisher/digits"])
    assert one.unsigned == ["approvers/ben/approver", "approvers/dora/approver"]
    assert server.releases == []
    said = approve(server, tmp_path)
    assert '"accuracy": 0.9' in said
    assert waiting.digest in said
    assert server.releases == [], "the server holds no key: the publisher makes it visible"
    assert server.publisher.refresh() is False
    assert [release.digest for release in server.releases] == [waiting.digest]
    assert server.approvals.list() == []
    with as_device(server) as device:
        assert device.get(f"/updates/targets/{waiting.digest}").status_code == 200


def test_the_lists_of_models_say_what_waits_for_whom(
    server: UpdateServer, waiting: Package, fleet: Fleet, tmp_path: Path
) -> None:
    needed = (
        "  signed by publisher/digits; still needed: 1 of ben, dora\n"
        "  shoal models approve digits 1 --key ben/approver.pem\n"
        "  shoal models approve digits 1 --key dora/approver.pem\n"
    )
    server.line.replace["/api/v1/models"] = msgspec.json.encode(fleet.models.list())
    for command in (["list"], ["show", "digits"], ["show", "digits", "1"], ["approvals"]):
        output = shown_by(server, *command)
        assert re.search(r"digits 1 waits for approval since \d+ s ago\n", output), command
        assert needed in output, command
    assert "nothing of digits is released yet" in shown_by(server, "show", "digits")
    assert '"accuracy": 0.9' in shown_by(server, "show", "digits", "1")
    with pytest.raises(ServerRefused):
        shown_by(server, "show", "faces")
    fleet.publish("0")
    server.line.replace["/api/v1/models/digits"] = msgspec.json.encode(fleet.models.get("digits"))
    assert "* the champion\n\ndigits 1 waits for approval" in shown_by(server, "show", "digits")
    approve(server, tmp_path)
    assert "digits 1 has all its signatures since 0 s ago; the worker makes it visible" in shown_by(server, "list")
    server.publisher.refresh()
    assert "digits 1" not in shown_by(server, "list")


def test_nothing_that_waits_is_served_to_a_device(server: UpdateServer, waiting: Package) -> None:
    with as_device(server) as device:
        for sha256 in (waiting.digest, *(entry.sha256 for entry in waiting.manifest.files.values())):
            assert device.get(f"/updates/targets/{sha256}").status_code == 404
        assert device.get("/updates/image/2.digits.json").status_code == 404
        assert device.get(APPROVALS).status_code == 401
        assert device.get(f"{APPROVALS}/digits/1/files/manifest.json").status_code == 401
    assert shown_targets_of(server) == set()


def test_what_waits_survives_other_releases_and_uploads_that_are_refused(
    server: UpdateServer, waiting: Package, client: httpx.Client, tmp_path: Path
) -> None:
    server.publisher.publish(make_package(tmp_path / "built/faces", name="faces"))
    assert client.post("/api/v1/repository/metadata", json={"files": {"timestamp.json": "{}"}}).status_code == 422
    approve(server, tmp_path)
    server.publisher.refresh()
    assert shown_targets_of(server) == {"digits/1", "faces/1"}
    assert server.images.blobs.released(waiting.digest) is not None


def test_of_two_that_wait_the_second_is_signed_anew_on_top_of_the_first(
    server: UpdateServer, waiting: Package, tmp_path: Path
) -> None:
    second = make_package(tmp_path / "built/2", version="2", seed=2)
    assert server.publisher.publish(second) is not None
    approve(server, tmp_path, version="1")
    assert server.publisher.refresh() is True, "the other one still waits"
    assert shown_targets_of(server) == {"digits/1"}
    assert [(one.version, one.missing) for one in server.approvals.list()] == [("2", 1)]
    approve(server, tmp_path, version="2", person="dora")
    server.publisher.refresh()
    assert [release.digest for release in server.releases] == [waiting.digest, second.digest]


def test_a_signature_of_a_key_that_may_not_approve_is_refused(
    server: UpdateServer, waiting: Package, tmp_path: Path
) -> None:
    foreign = KeyFolder(tmp_path / "foreign")
    foreign.make("approvers/eve/approver")
    (tmp_path / "foreign/approvers/eve/root.json").write_bytes((server.keys_folder / "image/1.root.json").read_bytes())
    shutil.copytree(tmp_path / "foreign/approvers/eve", tmp_path / "persons/eve")
    with pytest.raises(Exception, match="not one that is missing"):
        approve(server, tmp_path, person="eve")
    assert server.approvals.list()[0].missing == 1


def test_the_publishers_key_does_not_approve_its_own_release(server: UpdateServer, waiting: Package) -> None:
    details = server.approvals.details("digits", "1")
    signer = server.keys.signer("publisher/digits")
    payload = Metadata.from_bytes(details.proposal.roles["digits"].encode()).signed_bytes
    with pytest.raises(Exception, match="not one that is missing"):
        server.approvals.sign("digits", "1", {"digits": {signer.public_key.keyid: signer.sign(payload).signature}})


def test_an_approver_does_not_believe_the_server(server: UpdateServer, waiting: Package, tmp_path: Path) -> None:
    path = f"{APPROVALS}/digits/1"
    with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {TOKEN}"}) as client:
        honest: dict[str, Any] = client.get(path).json()
    evaluation = f"{path}/files/evaluation.json"
    server.line.replace[evaluation] = b'{"accuracy": 1.0}'
    with pytest.raises(Exception, match=r"evaluation\.json: expected sha256"):
        approve(server, tmp_path)
    del server.line.replace[evaluation]
    other = ImageSigning(KeyFolder(tmp_path / "other"))
    other.create(("digits",))
    shown = {name: data.decode() for name, data in other.files().items()}
    server.line.replace[path] = json.dumps({**honest, "shown": shown}).encode()
    with pytest.raises(Exception, match="not to be trusted"):
        approve(server, tmp_path)
    more = json.loads(honest["proposal"]["roles"]["digits"])
    more["signed"]["targets"]["digits/9/manifest.json"] = {"length": 1, "hashes": {"sha256": "f" * 64}}
    proposal = {**honest["proposal"], "roles": {"digits": json.dumps(more)}}
    server.line.replace[path] = json.dumps({**honest, "proposal": proposal}).encode()
    with pytest.raises(Exception, match="not signed by any key of digits"):
        approve(server, tmp_path)


def test_an_approver_signs_no_other_release_than_the_one_that_was_named(
    server: UpdateServer, waiting: Package, tmp_path: Path
) -> None:
    server.publisher.publish(make_package(tmp_path / "built/2", version="2", seed=2))
    with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {TOKEN}"}) as client:
        server.line.replace[f"{APPROVALS}/digits/1"] = client.get(f"{APPROVALS}/digits/2").content
    with pytest.raises(Exception, match="gave digits 2 to be signed, not digits 1"):
        approve(server, tmp_path, version="1")
    assert [one.missing for one in server.approvals.list()] == [1, 1]


def test_the_rollout_of_a_release_outlives_whoever_lists_before_it_is_told_of(
    server: UpdateServer, waiting: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert server.approvals.roll_out_later(waiting.digest, "a retrain")
    approve(server, tmp_path)
    told: list[tuple[int, str | None]] = []

    def on_release(manifest: Manifest, digest: str, _evaluation: dict[str, Any]) -> None:
        listed = len(server.approvals.list())  # as anybody may at this moment
        told.append((listed, server.approvals.released(manifest.name, manifest.version)))
        assert not server.approvals.roll_out_later(digest, "asked for once more")
        if len(told) == 1:
            raise OSError("the server dies before it has told of it")

    monkeypatch.setattr(server.images, "_on_release", on_release)
    with pytest.raises(ServerRefused):
        server.publisher.refresh()
    server.images.announce()
    assert told == [(0, "a retrain")] * 2
    assert server.approvals.list() == []
    assert server.approvals.released("digits", "1") is None


def test_an_approved_release_whose_rollout_must_wait_for_a_persons_is_told_of_all_the_same(
    server: UpdateServer, waiting: Package, fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    """Else the server would say no to all that is published later, and not even start again."""
    digest = fleet.publish("1")
    fleet.publish("0")
    fleet.join("d0")
    first = fleet.rollouts.create("digits", "0")
    server.approvals.roll_out_later(waiting.digest, "a retrain")
    roll_out_approved(server.approvals, fleet.rollouts, RolloutSettings(), waiting.manifest, digest)
    assert "shoal rollouts create digits 1 --supersede" in caplog.text
    assert [one.id for one in fleet.rollouts.list("digits")] == [first]
    fleet.rollouts.halt(first, "enough")
    roll_out_approved(server.approvals, fleet.rollouts, RolloutSettings(), waiting.manifest, digest)
    assert {one.version for one in fleet.rollouts.list("digits")} == {"1", "0"}


def test_a_release_whose_publisher_never_returns_holds_training_for_a_day_and_no_longer(
    server: UpdateServer, waiting: Package, tmp_path: Path
) -> None:
    at_ms = [1_000]
    approvals = Approvals(tmp_path / "server/repository", server.images, clock=lambda: at_ms[0])
    at_ms[0] += 90 * 86_400_000
    assert approvals.waits("digits"), "as long as nobody has decided"
    signer = read_key(tmp_path / "persons/ben/approver.pem", lambda: "")
    signed = signer.sign(payloads(approvals.details("digits", "1").proposal)["digits"])
    told = approvals.sign("digits", "1", {"digits": {signed.keyid: signed.signature}})
    assert (told.missing, told.complete_since_ms) == (0, at_ms[0])
    at_ms[0] += 3_600_000
    assert approvals.waits("digits"), "the publisher comes every hour"
    at_ms[0] += 86_400_000
    assert not approvals.waits("digits")
    server.publisher.refresh()
    assert [release.digest for release in server.releases] == [waiting.digest], "who returns after all is listened to"


def test_what_has_become_visible_cannot_be_refused_any_more(
    server: UpdateServer, waiting: Package, tmp_path: Path
) -> None:
    approve(server, tmp_path)
    server.publisher.refresh()
    with pytest.raises(Conflict, match="is released already"):
        server.approvals.reject("digits", "1", "too late")


def test_a_release_that_has_all_its_signatures_cannot_be_refused_any_more(
    server: UpdateServer, waiting: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the publisher, who has signed it with the others, would be refused all that it uploads later."""
    approve(server, tmp_path)
    told: list[str] = []

    def verify_while_somebody_refuses(*arguments: Any, **named: Any) -> Any:
        with pytest.raises(Conflict, match="has all its signatures") as refused:
            server.approvals.reject("digits", "1", "at the last moment")
        told.append(str(refused.value))
        return verify_upload(*arguments, **named)

    monkeypatch.setattr("fleet_server.updates.image_repository.verify_upload", verify_while_somebody_refuses)
    server.publisher.refresh()
    assert "shoal models withdraw" in told[0]
    assert shown_targets_of(server) == {"digits/1"}
    assert [release.digest for release in server.releases] == [waiting.digest]


def test_of_an_approval_and_a_refusal_at_the_same_moment_one_wins_and_the_other_is_told(
    server: UpdateServer, waiting: Package, tmp_path: Path
) -> None:
    (path,) = (tmp_path / "server/repository/approvals").glob("*/*.json")
    as_proposed = path.read_bytes()
    proposal = server.approvals.details("digits", "1").proposal
    signer = read_key(tmp_path / "persons/ben/approver.pem", lambda: "")
    signed = signer.sign(payloads(proposal)["digits"])

    def sign() -> Approval:
        return server.approvals.sign("digits", "1", {"digits": {signed.keyid: signed.signature}})

    def refuse() -> Approval:
        return server.approvals.reject("digits", "1", "worse")

    for turn in range(20):
        path.write_bytes(as_proposed)
        begin = threading.Barrier(2)

        def at_once(act: Callable[[], Approval], begin: threading.Barrier = begin) -> str:
            begin.wait(30)
            try:
                return act().state
            except Conflict as error:
                return str(error)

        with concurrent.futures.ThreadPoolExecutor(2) as persons:  # who comes last is mostly first to go on
            found = {act: persons.submit(at_once, act) for act in ((sign, refuse) if turn % 2 else (refuse, sign))}
        approved, refused = found[sign], found[refuse]
        (left,) = server.approvals.list()
        if left.state == "refused":
            assert re.fullmatch(r"digits 1 was refused at [-\d]+ [:\d]+Z: worse", approved.result())
            assert refused.result() == "refused"
        else:
            assert (left.missing, approved.result()) == (0, "waiting")
            assert "has all its signatures" in refused.result()


def test_another_package_of_a_version_does_not_take_over_the_rollout_of_the_first(
    server: UpdateServer, waiting: Package, tmp_path: Path
) -> None:
    server.approvals.roll_out_later(waiting.digest, "a retrain")
    server.signing.releases.waiting.forget("digits", "1")  # the publisher gives it up
    another = make_package(tmp_path / "built/another", version="1", seed=9)
    assert server.publisher.publish(another) is not None
    assert [one.package for one in server.approvals.list()] == [another.digest]
    assert server.approvals.released("digits", "1") is None
    assert server.images.blobs.find(waiting.digest) is None, "nobody can approve it any more"


def test_a_refused_release_is_dropped_by_the_publisher_and_its_files_are_gone(
    server: UpdateServer, waiting: Package, tmp_path: Path
) -> None:
    result = shoal_models(server, "reject", "digits", "1", "--reason", "worse on sevens")
    assert "is refused" in result.output
    assert "worse on sevens" in shoal_models(server, "approvals").output
    assert server.publisher.refresh() is False
    assert server.images.blobs.find(waiting.digest) is None
    with pytest.raises(Exception, match="was refused"):
        approve(server, tmp_path)
    with pytest.raises(PublishRefused, match="worse on sevens"):
        server.publisher.publish(waiting)
    assert shown_targets_of(server) == set()


@pytest.mark.parametrize("reason", ["", " "])
def test_a_refusal_without_a_reason_is_told_what_the_reason_is_for(
    server: UpdateServer, waiting: Package, reason: str
) -> None:
    result = shoal_models(server, "reject", "digits", "1", "--reason", reason)
    assert "say why the release is refused: the publisher" in str(result.exception)
    assert [one.state for one in server.approvals.list()] == ["waiting"]


def test_the_first_refusal_holds_and_the_second_is_told_of_it(server: UpdateServer, waiting: Package) -> None:
    def refuse(reason: str) -> httpx.Response:
        return httpx.post(
            f"{server.url}{APPROVALS}/digits/1/reject",
            json={"reason": reason},
            headers={"Authorization": f"Bearer {TOKEN}"},
        )

    first = refuse("worse on sevens").raise_for_status().json()
    assert (first["reason"], first["refused_by"]) == ("worse on sevens", "line 3")
    second = refuse("I did not look")
    assert second.status_code == 409
    told = r"digits 1 was refused at [-\d]+ [:\d]+Z with the token 'line 3': worse on sevens"
    assert re.fullmatch(told, second.json()["error"])
    (left,) = server.approvals.list()
    assert (left.reason, left.refused_at_ms) == ("worse on sevens", first["refused_at_ms"])


def test_who_asks_for_a_version_that_waits_or_was_refused_is_told_so(
    server: UpdateServer, waiting: Package, tmp_path: Path, fleet: Fleet
) -> None:
    def told(version: str) -> str:
        with pytest.raises(NotFound) as found:
            models.find("digits", version)
        return str(found.value)

    models = ModelService(fleet.db, unreleased=lambda *asked: approving.unreleased(server.approvals.list(), *asked))
    for version in ("1", waiting.digest, waiting.digest[:8]):
        assert told(version) == "digits 1 waits for approval; `shoal models show digits 1` says more"
    assert told("2").startswith("there is no model 'digits'")
    server.approvals.reject("digits", "1", "worse on sevens", by="line 3")
    assert re.fullmatch(r"digits 1 was refused at \S+ \S+Z with the token 'line 3': worse on sevens", told("1"))
    for command in (["show", "digits"], ["show", "digits", "1"]):
        assert told("1") in shown_by(server, *command)
    fleet.publish("0")
    assert told("2").startswith("model 'digits' has no version or package '2'")
    server.publisher.refresh()
    server.publisher.publish(again := make_package(tmp_path / "built/2", version="2", seed=2))
    approve(server, tmp_path, version="2")
    assert told(again.digest).startswith("digits 2 is approved, and not visible yet: the worker makes it visible")


def test_a_version_that_waits_is_taken(server: UpdateServer, waiting: Package, tmp_path: Path) -> None:
    with pytest.raises(PublishRefused, match="waits for approval with other contents"):
        server.publisher.publish(make_package(tmp_path / "built/other", version="1", seed=9))


def test_a_proposal_that_changes_more_than_it_says_is_refused(server: UpdateServer, waiting: Package) -> None:
    proposal = server.approvals.details("digits", "1").proposal
    metadata = Metadata[Targets].from_bytes(proposal.roles["digits"].encode())
    signer = server.keys.signer("publisher/digits")
    metadata.signed.targets[target_name("digits", "7")] = metadata.signed.targets[target_name("digits", "1")]
    metadata.sign(signer)
    sneaky = msgspec.structs.replace(proposal, roles={"digits": metadata.to_bytes().decode()})
    with pytest.raises(Exception, match="changes more than it says"):
        server.approvals.propose(sneaky)


def test_an_upload_without_the_approvers_signature_is_refused(
    server: UpdateServer, waiting: Package, client: httpx.Client
) -> None:
    """A trainer whose publisher's folder was stolen has snapshot and timestamp keys, and no approver's."""
    signing = server.signing
    text = server.approvals.details("digits", "1").proposal.roles["digits"]
    version = Metadata.from_bytes(text.encode()).signed.version
    (server.keys_folder / f"image/{version}.digits.json").write_text(text)
    roles = signing._roles()
    roles["digits"].version = version
    signing._sign_snapshot(roles)
    files = {name: data.decode() for name, data in signing.files().items()}
    answer = client.post("/api/v1/repository/metadata", json={"files": files})
    assert answer.status_code == 422
    assert "digits was signed by 1/2 keys" in answer.json()["error"]


def test_a_models_signatures_are_renewed_with_the_approver_before_they_expire(
    server: UpdateServer, waiting: Package, tmp_path: Path
) -> None:
    approve(server, tmp_path)
    server.publisher.refresh()
    later = dt.datetime.now(dt.UTC) + dt.timedelta(days=50)
    with Publisher(server.keys_folder, server.url, TOKEN, now=lambda: later) as publisher:
        assert publisher.refresh() is True, "it waits for approval"
    assert [one.version for one in server.approvals.list()] == ["_renewal"]
    assert "signed anew, until" in approve(server, tmp_path, version="_renewal")
    with Publisher(server.keys_folder, server.url, TOKEN, now=lambda: later) as publisher:
        assert publisher.refresh() is False
    left = ImageSigning(server.keys).expiries()["digits"] - later
    assert left > dt.timedelta(days=80)
    assert server.approvals.list() == []
