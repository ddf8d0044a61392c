"""Uploads: what is accepted, what is refused, and what is left afterwards."""

from __future__ import annotations

import contextlib
import datetime as dt
import itertools
import json
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from click.testing import CliRunner
from tuf.api.metadata import TargetFile

from edge_agent.contract.errors import ConfigurationError, ServerRefused
from edge_agent.contract.manifest import MANIFEST_FILE, FileEntry, digest_of, encode_manifest
from edge_agent.contract.repository import target_name
from edge_agent.runtime.package import Package
from fleet_server.updates.image_repository import ImageRepository
from tests.fakes.packages import make_package
from tests.fakes.update_server import UpdateServer
from trainer.publish.cli import keys_commands
from trainer.publish.image_signing import ImageSigning
from trainer.publish.keys import KeyFolder

METADATA = "/api/v1/repository/metadata"


def upload_blobs(client: httpx.Client, package: Package) -> None:
    for name in (MANIFEST_FILE, *package.manifest.files):
        data = (package.folder / name).read_bytes()
        client.put(f"/api/v1/repository/blobs/{digest_of(data)}", content=data).raise_for_status()


def upload_metadata(client: httpx.Client, files: dict[str, bytes]) -> httpx.Response:
    return client.post(METADATA, json={"files": {name: data.decode() for name, data in files.items()}})


def sign(signing: ImageSigning, package: Package) -> None:
    length = (package.folder / MANIFEST_FILE).stat().st_size
    signing.add_target("digits", target_name("digits", package.manifest.version), length, package.digest)


def left_on_disk(server: UpdateServer, tmp_path: Path) -> set[str]:
    return {
        str(path.relative_to(tmp_path / "server/repository"))
        for path in (tmp_path / "server/repository").rglob("*")
        if path.is_file()
    }


def test_a_signed_upload_is_shown_and_announced_once_with_its_evaluation(
    server: UpdateServer, client: httpx.Client, package: Package
) -> None:
    upload_blobs(client, package)
    sign(server.signing, package)
    answer = upload_metadata(client, server.signing.files())
    assert answer.json() == {"released": ["digits/1/manifest.json"]}
    (release,) = server.releases
    assert (release.digest, release.manifest, release.evaluation) == (
        package.digest, package.manifest, {"accuracy": 0.9},
    )  # fmt: skip
    assert client.get("/updates/image/timestamp.json").content == server.signing.files()["timestamp.json"]
    assert upload_metadata(client, server.signing.files()).json() == {"released": []}
    server.signing.renew()
    assert upload_metadata(client, server.signing.files()).json() == {"released": []}
    assert len(server.releases) == 1


def test_an_upload_signed_by_other_keys_is_refused_and_leaves_only_files_that_nobody_is_served(
    server: UpdateServer, client: httpx.Client, package: Package, tmp_path: Path
) -> None:
    before = left_on_disk(server, tmp_path)
    foreign = ImageSigning(KeyFolder(tmp_path / "foreign"))
    foreign.create(("digits",))
    sign(foreign, package)
    upload_blobs(client, package)
    answer = upload_metadata(client, foreign.files())
    assert answer.status_code == 422
    assert "not accepted" in answer.json()["error"]
    files = {package.digest, *(entry.sha256 for entry in package.manifest.files.values())}
    assert left_on_disk(server, tmp_path) == before | {f"staged/{sha256}" for sha256 in files}
    assert server.releases == []
    assert client.get("/updates/image/timestamp.json").status_code == 404


def test_an_upload_whose_signatures_were_stripped_is_refused(
    server: UpdateServer, client: httpx.Client, package: Package
) -> None:
    upload_blobs(client, package)
    sign(server.signing, package)
    files = server.signing.files()
    for name in [name for name in files if "root" not in name]:
        stripped: dict[str, Any] = json.loads(files[name]) | {"signatures": []}
        answer = upload_metadata(client, {**files, name: json.dumps(stripped).encode()})
        assert answer.status_code == 422, name


def test_staged_files_are_served_to_nobody_before_signed_metadata_names_them(
    server: UpdateServer, client: httpx.Client, package: Package
) -> None:
    upload_blobs(client, package)
    answer = client.get(f"/updates/targets/{package.digest}", headers={"Authorization": "Bearer secret-1"})
    assert answer.status_code == 404


def test_a_rolled_back_upload_is_refused(server: UpdateServer, client: httpx.Client, package: Package) -> None:
    old = server.signing.files()
    assert upload_metadata(client, old).status_code == 200
    upload_blobs(client, package)
    sign(server.signing, package)
    assert upload_metadata(client, server.signing.files()).status_code == 200
    answer = upload_metadata(client, old)
    assert answer.status_code == 422
    assert "version" in answer.json()["error"]
    assert client.get("/updates/image/timestamp.json").content == server.signing.files()["timestamp.json"]


def test_expired_metadata_is_refused(server: UpdateServer, client: httpx.Client, tmp_path: Path) -> None:
    past = dt.datetime.now(dt.UTC) - dt.timedelta(days=30)
    signing = ImageSigning(KeyFolder(tmp_path / "server/keys"), now=lambda: past)
    signing.renew()
    answer = upload_metadata(client, signing.files())
    assert answer.status_code == 422
    assert "expired" in answer.json()["error"]


def test_a_models_role_that_is_new_and_has_expired_is_refused(server: UpdateServer, client: httpx.Client) -> None:
    past = dt.datetime.now(dt.UTC) - dt.timedelta(days=100)
    signing = ImageSigning(server.keys, now=lambda: past)
    roles = signing._roles()
    signing._sign_targets("digits", roles["digits"], "publisher/digits", roles)
    server.signing._sign_snapshot(roles)
    answer = upload_metadata(client, server.signing.files())
    assert answer.status_code == 422
    assert "digits is expired" in answer.json()["error"]


def test_metadata_whose_files_were_not_uploaded_is_refused(
    server: UpdateServer, client: httpx.Client, package: Package
) -> None:
    sign(server.signing, package)
    answer = upload_metadata(client, server.signing.files())
    assert answer.status_code == 422
    assert "was not uploaded before" in answer.json()["error"]
    assert client.get("/updates/image/timestamp.json").status_code == 404


def test_after_an_upload_that_was_refused_only_what_is_damaged_is_sent_again(
    server: UpdateServer, client: httpx.Client, package: Package, tmp_path: Path
) -> None:
    def publish() -> set[str]:
        """Gives what was sent."""
        server.line.requests.clear()
        with contextlib.suppress(ServerRefused):
            server.publisher.publish(package)
        return {path.rpartition("/")[2] for method, path, _ in server.line.requests if method == "PUT"}

    upload_blobs(client, package)
    staged = tmp_path / "server/repository/staged"
    evaluation, model = (package.manifest.files[name].sha256 for name in ("evaluation.json", "model.onnx"))
    (staged / evaluation).write_bytes(b"x" * package.manifest.files["evaluation.json"].size_bytes)
    (staged / model).write_bytes(b"half")
    assert publish() == {evaluation, model}
    assert [release.digest for release in server.releases] == [package.digest]


@pytest.mark.parametrize("lost", [*itertools.product(["model.onnx", "manifest.json"], ["overwritten", "removed"])])
def test_a_released_file_that_the_disk_lost_is_told_of_and_put_back_by_publishing_again(
    server: UpdateServer, package: Package, lost: tuple[str, str], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    name, damage = lost
    server.publisher.publish(package)
    sha256 = package.digest if name == MANIFEST_FILE else package.manifest.files[name].sha256
    blob = tmp_path / "server/repository/blobs" / sha256
    whole = blob.read_bytes()
    if damage == "removed":
        blob.unlink()
    else:
        blob.write_bytes(b"8 bytes!" + whole[8:])
    server.publisher.publish(package)
    assert blob.read_bytes() == whole
    assert not list(blob.parent.glob("*.damaged"))
    told = f"released file {sha256[:12]} is damaged on this disk" in caplog.text
    assert told is (damage == "overwritten")
    assert ("shoal trainer publish PACKAGE" in caplog.text) is told
    assert [release.digest for release in server.releases] == [package.digest], "told of once"


def test_a_file_that_no_visible_package_names_is_not_had_by_devices_because_it_is_sent(
    server: UpdateServer, client: httpx.Client, package: Package
) -> None:
    server.publisher.publish(package)
    other = digest_of(b"other")
    client.put(f"/api/v1/repository/blobs/{other}", content=b"other").raise_for_status()
    assert server.images.blobs.released(other) is None


def test_who_signs_a_wrong_size_does_not_remove_what_others_have_sent(
    server: UpdateServer, client: httpx.Client, package: Package
) -> None:
    upload_blobs(client, package)
    model = package.manifest.files["model.onnx"].sha256
    server.images.blobs.hold({model})
    files = {**package.manifest.files, "model.onnx": FileEntry(sha256=model, size_bytes=1)}
    lie = encode_manifest(msgspec.structs.replace(package.manifest, files=files))
    client.put(f"/api/v1/repository/blobs/{digest_of(lie)}", content=lie).raise_for_status()
    server.signing.add_target("digits", target_name("digits", "1"), len(lie), digest_of(lie))
    answer = upload_metadata(client, server.signing.files())
    assert answer.status_code == 422
    assert "bytes, the manifest says 1" in answer.json()["error"]
    assert server.images.blobs.find(model) is not None


def test_a_signed_release_whose_files_are_gone_is_named_and_its_package_sent_again(
    server: UpdateServer, package: Package, tmp_path: Path
) -> None:
    faces = make_package(tmp_path / "built/faces", name="faces")
    sign(server.signing, package)
    with pytest.raises(ServerRefused, match=r"digits/1/manifest\.json: .* `shoal trainer publish PACKAGE`"):
        server.publisher.publish(faces)
    server.publisher.publish(package)
    assert {release.digest for release in server.releases} == {package.digest, faces.digest}


def test_a_signed_release_whose_package_is_lost_is_dropped_with_the_key_that_signed_it(
    server: UpdateServer, package: Package, tmp_path: Path
) -> None:
    faces = make_package(tmp_path / "built/faces", name="faces")
    sign(server.signing, package)
    with pytest.raises(ServerRefused):
        server.publisher.publish(faces)
    assert server.releases == []
    arguments = ["revoke", str(server.keys_folder), "publisher/digits", "--drop", "1"]
    done = CliRunner().invoke(keys_commands, arguments)
    assert done.exit_code == 0, done.output
    assert server.publisher.publish(faces) is None
    assert [release.digest for release in server.releases] == [faces.digest]


def test_an_evaluation_that_is_no_text_is_refused_and_not_an_error_of_the_servers(
    server: UpdateServer, client: httpx.Client, package: Package
) -> None:
    evaluation = b'{"note": "\xff"}'
    client.put(f"/api/v1/repository/blobs/{digest_of(evaluation)}", content=evaluation).raise_for_status()
    upload_blobs(client, package)
    entry = FileEntry(sha256=digest_of(evaluation), size_bytes=len(evaluation))
    files = {**package.manifest.files, "evaluation.json": entry}
    manifest = encode_manifest(msgspec.structs.replace(package.manifest, files=files))
    client.put(f"/api/v1/repository/blobs/{digest_of(manifest)}", content=manifest).raise_for_status()
    server.signing.add_target("digits", target_name("digits", "1"), len(manifest), digest_of(manifest))
    answer = upload_metadata(client, server.signing.files())
    assert answer.status_code == 422
    assert "digits 1: evaluation.json: " in answer.json()["error"]


def test_a_released_version_never_gets_other_contents(
    server: UpdateServer, client: httpx.Client, package: Package, tmp_path: Path
) -> None:
    server.publisher.publish(package)
    other = make_package(tmp_path / "built/other", version="1", seed=9)
    roles = server.signing._roles()
    path = target_name("digits", "1")
    length = (other.folder / MANIFEST_FILE).stat().st_size
    roles["digits"].targets[path] = TargetFile(length, {"sha256": other.digest}, path)
    server.signing._sign_targets("digits", roles["digits"], "publisher/digits", roles)
    server.signing._sign_snapshot(roles)
    upload_blobs(client, other)
    answer = upload_metadata(client, server.signing.files())
    assert answer.status_code == 422
    assert "released already with other contents" in answer.json()["error"]


def test_a_models_key_signs_that_model_alone(server: UpdateServer, client: httpx.Client, package: Package) -> None:
    roles = server.signing._roles()
    path = target_name("digits", "1")
    length = (package.folder / MANIFEST_FILE).stat().st_size
    roles["faces"].targets[path] = TargetFile(length, {"sha256": package.digest}, path)
    server.signing._sign_targets("faces", roles["faces"], "publisher/faces", roles)
    server.signing._sign_snapshot(roles)
    upload_blobs(client, package)
    answer = upload_metadata(client, server.signing.files())
    assert answer.status_code == 422
    assert "another model's key" in answer.json()["error"]


def test_a_release_whose_announcement_failed_is_announced_at_the_next_start(
    server: UpdateServer, client: httpx.Client, package: Package, tmp_path: Path
) -> None:
    def unlucky(*_told: object) -> None:
        raise ConnectionError("the database is away")

    server.images._on_release = unlucky
    upload_blobs(client, package)
    sign(server.signing, package)
    with pytest.raises(ConnectionError):
        server.images.accept(server.signing.files())
    told: list[str] = []
    root = (tmp_path / "server/keys/image/1.root.json").read_bytes()
    restarted = ImageRepository(
        tmp_path / "server/repository", root=root, on_release=lambda _manifest, digest, _evaluation: told.append(digest)
    )
    restarted.announce()
    restarted.announce()
    assert told == [package.digest]


def test_an_unknown_file_and_a_path_outside_are_not_found(client: httpx.Client) -> None:
    for path in ("/updates/image/9.root.json", "/updates/image/..%2fblobs", "/updates/image/image-root.pem"):
        assert client.get(path).status_code == 404


def test_only_a_publisher_uploads(server: UpdateServer) -> None:
    with httpx.Client(base_url=server.url, headers={"Authorization": "Bearer secret-1"}) as device:
        assert device.put(f"/api/v1/repository/blobs/{'a' * 64}", content=b"x").status_code == 401
        assert device.post(METADATA, json={"files": {}}).status_code == 401


def test_a_body_that_is_no_upload_is_a_400(client: httpx.Client) -> None:
    answer = client.post(METADATA, content=b'{"files": 3}')
    assert answer.status_code == 400


def test_a_root_that_is_none_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="shoal keys init"):
        ImageRepository(tmp_path, root=b"{}", on_release=lambda *_: None)
