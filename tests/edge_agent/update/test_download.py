"""Downloads that break off, and servers that answer oddly."""

from __future__ import annotations

import hashlib
import socket
from pathlib import Path

import pytest
from starlette.types import Send

from edge_agent.contract.errors import ManifestError, NetworkError, ServerRefused
from edge_agent.contract.messages import UpdateStep
from edge_agent.contract.repository import blob_path
from edge_agent.runtime.package import Package
from edge_agent.update.download import Download
from edge_agent.update.server_files import ServerFiles
from tests.fakes.packages import make_package
from tests.fakes.update_server import SECRETS, UpdateServer
from tests.fakes.updating_device import UpdatingDevice

BIG = bytes(range(256)) * 4000  # 1 MB
SHA = hashlib.sha256(BIG).hexdigest()


@pytest.fixture
def big(server: UpdateServer, tmp_path: Path) -> Package:
    package = make_package(tmp_path / "built/big", version="5", seed=5, extra_files={"big.bin": BIG})
    server.publisher.publish(package)
    return package


def download(server: UpdateServer, folder: Path) -> Download:
    files = ServerFiles(server.url, SECRETS["camera-1"])
    return Download(
        files=files, sha256=SHA, size_bytes=len(BIG), part=folder / "parts" / SHA, between_chunks=lambda: None
    )


def test_a_broken_download_is_resumed_where_it_broke_off(
    server: UpdateServer, device: UpdatingDevice, big: Package
) -> None:
    desired = server.assign(big)
    server.line.cut_after[blob_path(SHA)] = 300_000
    assert not device.apply(desired)
    assert (device.version, device.reported().step) == ("1", UpdateStep.DOWNLOADING)
    assert blob_path(SHA) in device.reported().reason
    kept = (device.state / "packages/.parts" / SHA).stat().st_size
    assert 0 < kept <= 300_000
    before = device.installer.bytes_down
    device.update(desired)
    assert device.version == "5"
    assert server.line.asked(blob_path(SHA)) == ["", f"bytes={kept}-"]
    assert device.installer.bytes_down - before < len(BIG) - kept + 20_000, "what was there did not come again"


def test_a_download_goes_on_after_a_restart(server: UpdateServer, device: UpdatingDevice, big: Package) -> None:
    desired = server.assign(big)
    server.line.cut_after[blob_path(SHA)] = 300_000
    device.apply(desired)
    device.close()
    restarted = UpdatingDevice(device.state, server.enrolment())
    assert restarted.version == "1"
    restarted.update(desired)
    assert restarted.version == "5"
    assert server.line.asked(blob_path(SHA))[1].startswith("bytes=")
    restarted.close()


def test_a_part_with_holes_from_a_power_cut_is_fetched_anew(server: UpdateServer, big: Package, tmp_path: Path) -> None:
    one = download(server, tmp_path)
    one.part.parent.mkdir()
    one.part.write_bytes(bytes(500_000))
    one.to(tmp_path / "place")
    assert (tmp_path / "place").read_bytes() == BIG
    assert server.line.asked(blob_path(SHA)) == ["bytes=500000-", ""]


def test_a_complete_part_is_not_asked_for_again(server: UpdateServer, big: Package, tmp_path: Path) -> None:
    one = download(server, tmp_path)
    one.part.parent.mkdir()
    one.part.write_bytes(BIG)
    one.to(tmp_path / "place")
    assert server.line.asked(blob_path(SHA)) == []


def test_a_server_that_ignores_the_range_is_understood(server: UpdateServer, big: Package, tmp_path: Path) -> None:
    one = download(server, tmp_path)
    one.part.parent.mkdir()
    one.part.write_bytes(BIG[:1000])
    server.line.replace[blob_path(SHA)] = BIG
    one.to(tmp_path / "place")
    assert (tmp_path / "place").read_bytes() == BIG


def test_wrong_bytes_are_deleted_and_named(server: UpdateServer, big: Package, tmp_path: Path) -> None:
    one = download(server, tmp_path)
    server.line.replace[blob_path(SHA)] = BIG[::-1]
    with pytest.raises(NetworkError, match=f"expected sha256 {SHA[:12]}.*asked again after 30 s"):
        one.to(tmp_path / "place")
    assert not one.part.exists()
    assert not (tmp_path / "place").exists()


def test_an_answer_of_another_length_is_not_taken_and_costs_nothing_of_what_came(
    server: UpdateServer, big: Package, tmp_path: Path
) -> None:
    one = download(server, tmp_path)
    one.part.parent.mkdir()
    one.part.write_bytes(BIG[:-10])
    server.line.replace[blob_path(SHA)] = b"<html>log in</html>"
    with pytest.raises(NetworkError, match=f"19 bytes are offered, {len(BIG)} were signed.*asked again"):
        one.to(tmp_path / "place")
    assert one.part.read_bytes() == BIG[:-10]
    server.line.leave()
    one.to(tmp_path / "place")
    assert (tmp_path / "place").read_bytes() == BIG
    assert server.line.asked(blob_path(SHA))[-1] == f"bytes={len(BIG) - 10}-"


def test_a_short_file_whose_length_nobody_announces_is_wrong_bytes_too(
    server: UpdateServer, big: Package, tmp_path: Path
) -> None:
    async def short(_path: str, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": BIG[:-1]})

    server.line.answers[blob_path(SHA)] = short
    with pytest.raises(NetworkError, match=f"{len(BIG) - 1} of {len(BIG)} bytes"):
        download(server, tmp_path).to(tmp_path / "place")
    assert not (tmp_path / "parts" / SHA).exists()


def test_a_device_without_its_secret_gets_nothing(server: UpdateServer, big: Package) -> None:
    files = ServerFiles(server.url, "guessed")
    with pytest.raises(ServerRefused) as caught:
        files.read(files.url(blob_path(SHA)), limit_bytes=10)
    assert caught.value.status == 401


def test_a_server_that_is_away_and_one_that_says_nothing_are_network_errors() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        files = ServerFiles(f"http://127.0.0.1:{silent.getsockname()[1]}", "secret", stall_s=0.2)
        with pytest.raises(NetworkError, match="timed out"):
            files.read(files.url("/x"), limit_bytes=10)
    with pytest.raises(NetworkError):
        files.read(files.url("/x"), limit_bytes=10)


def test_a_body_over_the_limit_is_not_read(server: UpdateServer, big: Package) -> None:
    files = ServerFiles(server.url, SECRETS["camera-1"])
    assert files.read(files.url(blob_path(SHA)), limit_bytes=1000) is None
    assert files.bytes_down < 200_000


def test_a_manifest_of_a_length_that_no_package_needs_is_not_asked_for(
    server: UpdateServer, device: UpdatingDevice
) -> None:
    server.line.requests.clear()
    with pytest.raises(ManifestError, match="1099511627776 bytes"):
        device.installer._store.fetch_manifest("a" * 64, 1 << 40, between_chunks=lambda: None)
    assert (server.line.requests, device.packages() & {f".gathering-{'a' * 64}"}) == ([], set())
