"""Publishing to a real server."""

from __future__ import annotations

import datetime as dt
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec
import pytest

from edge_agent.contract.errors import DigestMismatch, NetworkError
from edge_agent.contract.repository import blob_path
from edge_agent.runtime.package import Package
from tests.fakes.packages import make_package
from tests.fakes.update_server import TOKEN, UpdateServer, update_server
from trainer.errors import TokenRefused
from trainer.publish.errors import PublishRefused, SigningKeyError
from trainer.publish.repository import Publisher


@pytest.fixture
def server(tmp_path: Path) -> Iterator[UpdateServer]:
    with update_server(tmp_path / "server") as running:
        yield running


@pytest.fixture
def package(tmp_path: Path) -> Package:
    return make_package(tmp_path / "built/1", version="1", seed=1)


def test_publishing_the_same_package_again_signs_and_sends_nothing(server: UpdateServer, package: Package) -> None:
    server.publisher.publish(package)
    before = server.signing.files()
    server.line.requests.clear()
    server.publisher.publish(package)
    assert server.signing.files() == before
    assert {method for method, _, _ in server.line.requests} == {"HEAD", "GET"}
    assert len(server.releases) == 1


def test_only_files_that_the_server_lacks_are_sent(server: UpdateServer, package: Package, tmp_path: Path) -> None:
    server.publisher.publish(package)
    second = make_package(tmp_path / "built/2", version="2", seed=1)
    server.line.requests.clear()
    server.publisher.publish(second)
    sent = {path.rpartition("/")[2] for method, path, _ in server.line.requests if method == "PUT"}
    assert sent == {second.digest, second.manifest.files["card.md"].sha256}
    assert blob_path(package.digest) not in sent


def sent_metadata(server: UpdateServer) -> list[set[str]]:
    """The names of the metadata files in each upload from now on."""
    uploads: list[set[str]] = []

    def remember(request: httpx.Request) -> None:
        if request.method == "POST" and request.url.path.endswith("/metadata"):
            uploads.append(set(msgspec.json.decode(request.content)["files"]))

    server.publisher._client.event_hooks = {"request": [remember]}
    return uploads


def test_only_metadata_that_the_server_lacks_is_sent(server: UpdateServer, package: Package, tmp_path: Path) -> None:
    uploads = sent_metadata(server)
    server.publisher.publish(package)
    assert "1.root.json" in uploads[0], "a server that shows nothing gets everything"
    server.publisher.publish(make_package(tmp_path / "built/2", version="2", seed=1))
    assert {name.partition(".")[2] or name for name in uploads[1]} == {"digits.json", "snapshot.json", "json"}
    server.signing.renew()
    server.publisher.refresh()
    assert "2.root.json" in uploads[2]
    assert not any(name.endswith("digits.json") for name in uploads[2])


def test_a_server_that_holds_other_bytes_of_the_same_name_gets_them_all(
    server: UpdateServer, package: Package, tmp_path: Path
) -> None:
    server.publisher.publish(package)
    held = next((tmp_path / "server/repository").rglob("*.digits.json"))
    held.write_bytes(held.read_bytes() + b" ")
    server.signing.renew()
    uploads = sent_metadata(server)
    server.publisher.refresh()
    assert [held.name in one for one in uploads] == [False, True]


def test_publishing_does_not_need_the_offline_keys(server: UpdateServer, package: Package) -> None:
    shutil.rmtree(server.keys_folder / "offline")
    server.publisher.publish(package)
    assert len(server.releases) == 1
    with pytest.raises(SigningKeyError, match="bring it from where it is kept"):
        server.signing.add_model("faces")


def test_a_version_that_is_taken_by_another_package_is_refused(
    server: UpdateServer, package: Package, tmp_path: Path
) -> None:
    server.publisher.publish(package)
    other = make_package(tmp_path / "built/other", version="1", seed=2)
    with pytest.raises(PublishRefused, match="give the package a new version"):
        server.publisher.publish(other)


def test_a_model_without_a_key_is_refused_until_it_gets_one(server: UpdateServer, tmp_path: Path) -> None:
    faces = make_package(tmp_path / "built/faces", name="faces")
    with pytest.raises(PublishRefused, match="add-model"):
        server.publisher.publish(faces)
    server.signing.add_model("faces")
    server.publisher.publish(faces)
    assert server.releases[0].manifest.name == "faces"


def test_a_damaged_package_is_not_signed(server: UpdateServer, package: Package) -> None:
    (package.folder / "model.onnx").write_bytes(b"rotten")
    before = server.signing.files()
    with pytest.raises(DigestMismatch):
        server.publisher.publish(package)
    assert server.signing.files() == before


def test_what_was_signed_while_the_server_was_away_is_sent_when_it_is_back(
    server: UpdateServer, package: Package, tmp_path: Path
) -> None:
    away = Publisher(server.keys_folder, "http://127.0.0.1:1", TOKEN)
    with away, pytest.raises(NetworkError, match=r"127\.0\.0\.1:1"):
        away.publish(package)
    server.publisher.publish(package)
    assert len(server.releases) == 1


def test_that_a_token_was_refused_is_said(server: UpdateServer, package: Package) -> None:
    with (
        Publisher(server.keys_folder, server.url, "guessed") as other,
        pytest.raises(TokenRefused, match=r"the token was refused \(401: .*SHOAL_TOKEN or --token"),
    ):
        other.publish(package)


def test_refreshing_signs_anew_only_what_has_lived_half_of_its_time(server: UpdateServer, package: Package) -> None:
    server.publisher.publish(package)
    before = server.signing.files()
    server.publisher.refresh()
    assert server.signing.files() == before
    later = dt.datetime.now(dt.UTC) + dt.timedelta(days=5)
    with Publisher(server.keys_folder, server.url, TOKEN, now=lambda: later) as publisher:
        publisher.refresh()
    assert server.images.metadata("timestamp.json") != before["timestamp.json"]
    assert len(server.releases) == 1
