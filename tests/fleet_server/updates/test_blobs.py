"""Files over HTTP: upload, range, tag."""

from __future__ import annotations

import threading

import httpx
import pytest

from edge_agent.contract.manifest import digest_of
from edge_agent.runtime.package import Package
from fleet_server.updates.blobs import Receiver
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
