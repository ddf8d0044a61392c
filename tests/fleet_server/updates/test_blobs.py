"""Files over HTTP: upload, range, tag."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import httpx
import pytest

from edge_agent.contract.manifest import digest_of
from edge_agent.runtime.package import Package
from fleet_server.updates.blobs import BlobStore, Receiver
from fleet_server.updates.errors import UploadRefused
from tests.fakes.update_server import UpdateServer

DEVICE = {"Authorization": "Bearer secret-1"}


def test_a_file_that_is_not_what_it_is_called_is_refused_and_forgotten(
    server: UpdateServer, client: httpx.Client
) -> None:
    sha256 = digest_of(b"right")
    answer = client.put(f"/api/v1/repository/blobs/{sha256}", content=b"wrong")
    assert answer.status_code == 422
    assert client.head(f"/api/v1/repository/blobs/{sha256}").status_code == 404
    assert client.put(f"/api/v1/repository/blobs/{sha256}", content=b"right").status_code == 201
    assert client.head(f"/api/v1/repository/blobs/{sha256}").status_code == 200


@pytest.mark.parametrize("name", ["x", "A" * 64, "..%2f..%2fkeys"])
def test_a_name_that_is_no_digest_is_nothing(client: httpx.Client, name: str) -> None:
    assert client.put(f"/api/v1/repository/blobs/{name}", content=b"x").status_code in (404, 422)
    assert client.get(f"/updates/targets/{name}", headers=DEVICE).status_code == 404


def test_a_released_file_comes_whole_or_in_part_with_its_digest_as_tag(
    server: UpdateServer, client: httpx.Client, package: Package
) -> None:
    server.publisher.publish(package)
    path = f"/updates/targets/{package.digest}"
    whole = client.get(path, headers=DEVICE)
    assert digest_of(whole.content) == package.digest
    assert whole.headers["etag"] == f'"{package.digest}"'
    part = client.get(path, headers={**DEVICE, "Range": "bytes=10-", "If-Range": f'"{package.digest}"'})
    assert (part.status_code, part.content) == (206, whole.content[10:])
    assert part.headers["content-range"] == f"bytes 10-{len(whole.content) - 1}/{len(whole.content)}"
    beyond = client.get(path, headers={**DEVICE, "Range": "bytes=99999999-"})
    assert beyond.status_code == 416


def test_a_file_is_for_enrolled_devices(server: UpdateServer, package: Package) -> None:
    server.publisher.publish(package)
    assert httpx.get(f"{server.url}/updates/targets/{package.digest}").status_code == 401


def test_while_a_large_file_is_synced_others_are_answered(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []
    finish = Receiver.finish

    def noting(receiver: Receiver) -> str:
        threads.append(threading.current_thread().name)
        return finish(receiver)

    monkeypatch.setattr(Receiver, "finish", noting)
    data = b"weights"
    sha256 = digest_of(data)
    assert client.put(f"/api/v1/repository/blobs/{sha256}", content=data).status_code == 201
    assert threads[0].startswith("AnyIO worker"), "not the thread in which every request begins"


def staged(store: BlobStore, folder: Path) -> set[bytes]:
    """What is staged, in one letter each."""
    return {path.read_bytes()[:1] for path in (folder / "staged").iterdir() if store.find(path.name) is not None}


def send(store: BlobStore, content: bytes) -> str:
    with store.receive(digest_of(content)) as receiver:
        receiver.write(content)
    return digest_of(content)


def test_of_too_much_that_nobody_signs_the_oldest_goes_that_nobody_asks_for(tmp_path: Path) -> None:
    store = BlobStore(tmp_path, staged_limit_bytes=3_000)
    for age_s, letter in enumerate((b"c", b"b", b"a")):
        path = tmp_path / "staged" / send(store, letter * 1_000)
        os.utime(path, (time.time() - 60 * age_s - 60,) * 2)
    assert store.needed(digest_of(b"a" * 1_000)) is not None, "a publisher will not send it again"
    send(store, b"d" * 1_000)
    assert staged(store, tmp_path) == {b"a", b"c", b"d"}
    send(store, b"e" * 9_000)
    assert staged(store, tmp_path) == {b"e"}, "what has just come stays, whatever it is"


def test_what_nobody_has_signed_for_a_day_goes_with_the_next_file(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    os.utime(tmp_path / "staged" / send(store, b"old"), (time.time() - 90_000,) * 2)
    send(store, b"new")
    assert staged(store, tmp_path) == {b"n"}


def test_all_files_of_a_release_are_had_by_devices_or_none_is(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    here = send(store, b"here")
    with pytest.raises(UploadRefused, match="no longer here: 0000"):
        store.release({here, "0" * 64})
    assert store.released(here) is None
    store.release({here})
    assert store.released(here) is not None
