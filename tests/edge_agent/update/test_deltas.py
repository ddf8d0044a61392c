"""Weights come as differences from those that are here, and whole where anything is wrong with that."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edge_agent.config import UpdateSettings
from edge_agent.contract.delta.make import make_delta
from edge_agent.contract.errors import NetworkError, StorageFull
from edge_agent.contract.repository import blob_path, delta_path
from edge_agent.runtime.package import Package
from edge_agent.update.package_store import PackageStore
from edge_agent.update.server_files import ServerFiles
from edge_agent.update.sources import Progress
from tests.fakes.mirror import mirror_of
from tests.fakes.update_server import SECRETS, UpdateServer, update_server
from tests.fakes.weight_packages import WEIGHTS, make_weighty, sha256, weights

OLD, NEW = weights().tobytes(), weights(updates=1).tobytes()
DELTA = delta_path(sha256(OLD), sha256(NEW))
WHOLE = blob_path(sha256(NEW))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("built")


@pytest.fixture(scope="module")
def shared(built: Path) -> Iterator[UpdateServer]:
    """Shows two versions with weights that differ by a fine-tune."""
    with update_server(built / "server") as running:
        first = make_weighty(built / "1", version="1", content=OLD)
        running.publisher.publish(first)
        running.publisher.publish(make_weighty(built / "2", version="2", content=NEW, parent=first.digest))
        yield running


@pytest.fixture
def server(shared: UpdateServer) -> Iterator[UpdateServer]:
    """The shared one, with an honest line."""
    shared.line.requests.clear()
    yield shared
    shared.line.replace.clear()
    shared.line.cut_after.clear()


@pytest.fixture
def store(server: UpdateServer, built: Path, tmp_path: Path) -> PackageStore:
    """Has the first version."""
    return new_store(server, built, tmp_path)


def new_store(server: UpdateServer, built: Path, folder: Path, **settings: object) -> PackageStore:
    files = ServerFiles(server.url, SECRETS["camera-1"])
    made = PackageStore(folder / "packages", files, UpdateSettings(**settings))  # type: ignore[arg-type]
    made.add(Package.open(built / "1", verify=False))
    return made


def fetch(store: PackageStore, built: Path, between_chunks: Callable[[], None] = lambda: None) -> Package:
    """The second version, as the installer fetches it."""
    wanted = Package.open(built / "2", verify=False)
    manifest = store.fetch_manifest(
        wanted.digest, (wanted.folder / "manifest.json").stat().st_size, between_chunks=between_chunks
    )
    store.fetch_files(wanted.digest, manifest, between_chunks=between_chunks)
    store.stage(wanted.digest)
    return store.open(wanted.digest, verify=True)


def received(server: UpdateServer) -> set[str]:
    return {path for method, path, _ in server.line.requests if method == "GET"}


def test_weights_come_as_a_delta_of_those_that_are_here(
    server: UpdateServer, store: PackageStore, built: Path, tmp_path: Path
) -> None:
    package = fetch(store, built)
    assert package.path(WEIGHTS).read_bytes() == NEW
    assert DELTA in received(server)
    assert WHOLE not in received(server)
    assert not [path for path in (tmp_path / "packages/.parts").iterdir() if path.suffix in {".delta", ".made"}]


def test_a_device_that_wants_none_asks_for_none(server: UpdateServer, built: Path, tmp_path: Path) -> None:
    fetch(new_store(server, built, tmp_path, deltas=False), built)
    assert WHOLE in received(server)
    assert not any(path.startswith("/updates/deltas/") for path in received(server))


@pytest.mark.parametrize(
    "answer",
    [b"", b"no delta at all", os.urandom(20_000), bytes(len(NEW))],
    ids=["nothing", "text", "noise", "as long as the file"],
)
def test_whatever_else_comes_the_whole_file_is_fetched(
    server: UpdateServer, store: PackageStore, built: Path, answer: bytes
) -> None:
    server.line.replace[DELTA] = answer
    assert fetch(store, built).path(WEIGHTS).read_bytes() == NEW
    assert {DELTA, WHOLE} <= received(server)


def test_a_delta_of_right_form_that_makes_another_file_changes_nothing(
    server: UpdateServer, store: PackageStore, built: Path
) -> None:
    evil = io.BytesIO()
    make_delta(io.BytesIO(OLD), io.BytesIO(bytes(len(NEW))), evil)
    forged = bytearray(evil.getvalue())
    forged[64:96] = bytes.fromhex(sha256(NEW))  # its head says what was asked for
    server.line.replace[DELTA] = bytes(forged)
    assert fetch(store, built).path(WEIGHTS).read_bytes() == NEW
    assert WHOLE in received(server)


def test_a_delta_that_failed_is_not_tried_again_in_the_same_update(
    server: UpdateServer, store: PackageStore, built: Path, tmp_path: Path
) -> None:
    server.line.replace[DELTA] = b"damaged"
    server.line.cut_after[WHOLE] = 100_000
    with pytest.raises(NetworkError):
        fetch(store, built)
    again = PackageStore(tmp_path / "packages", ServerFiles(server.url, SECRETS["camera-1"]))
    fetch(again, built)
    assert len(server.line.asked(DELTA)) == 1
    assert server.line.asked(WHOLE)[1].startswith("bytes="), "what came of the whole file was kept"


def test_a_server_that_is_away_for_a_moment_is_asked_for_the_delta_again(
    server: UpdateServer, store: PackageStore, built: Path
) -> None:
    server.line.cut_after[DELTA] = 0
    server.line.cut_after[WHOLE] = 0
    with pytest.raises(NetworkError):
        fetch(store, built)
    server.line.requests.clear()
    fetch(store, built)
    assert DELTA in received(server)
    assert WHOLE not in received(server)


def test_a_delta_that_broke_off_goes_on_where_it_did(server: UpdateServer, store: PackageStore, built: Path) -> None:
    server.line.cut_after[DELTA] = 50_000
    with pytest.raises(NetworkError):
        fetch(store, built)
    fetch(store, built)
    asked = server.line.asked(DELTA)
    assert asked[0] == ""
    assert asked[1].startswith("bytes=")
    assert WHOLE not in received(server)


def test_holes_of_a_power_cut_in_a_delta_are_fetched_anew(
    server: UpdateServer, store: PackageStore, built: Path, tmp_path: Path
) -> None:
    server.line.cut_after[DELTA] = 50_000
    with pytest.raises(NetworkError):
        fetch(store, built)
    (part,) = (tmp_path / "packages/.parts").glob("*.delta")
    part.write_bytes(bytes(part.stat().st_size))
    fetch(store, built)
    assert server.line.asked(DELTA)[-1] == ""
    assert WHOLE not in received(server)


def test_a_base_that_the_disk_has_spoilt_makes_no_delta(
    server: UpdateServer, store: PackageStore, built: Path, tmp_path: Path
) -> None:
    (weights_file,) = (tmp_path / "packages").glob(f"*/{WEIGHTS}")
    with weights_file.open("r+b") as file:
        file.write(b"x")
    assert fetch(store, built).path(WEIGHTS).read_bytes() == NEW
    assert DELTA not in received(server)


def test_a_delta_begins_only_where_there_is_room_for_it_beside_the_file(
    server: UpdateServer, store: PackageStore, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": (4 << 20) + len(NEW) + 60_000})
    monkeypatch.setattr("edge_agent.update.package_store.shutil.disk_usage", lambda _: usage)
    assert fetch(store, built).path(WEIGHTS).read_bytes() == NEW
    assert WHOLE in received(server)


def test_what_a_killed_attempt_left_is_no_reason_for_a_full_disk(
    server: UpdateServer, store: PackageStore, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = tmp_path / "packages/.parts"
    parts.mkdir()
    (parts / "a-b.made").write_bytes(b"half")
    (parts / "a-b.delta").write_bytes(b"half")
    monkeypatch.setattr("edge_agent.update.package_store.shutil.disk_usage", lambda _: type("Usage", (), {"free": 9}))
    with pytest.raises(StorageFull):
        fetch(store, built)
    assert list(parts.glob("*.*")) == []


def test_a_memory_that_is_too_small_for_the_delta_fetches_the_file(
    server: UpdateServer, store: PackageStore, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("edge_agent.contract.delta.apply.apply_delta", no_memory)
    assert fetch(store, built).path(WEIGHTS).read_bytes() == NEW
    assert WHOLE in received(server)


def test_the_agent_may_stop_while_a_delta_comes(server: UpdateServer, store: PackageStore, built: Path) -> None:
    def stop() -> None:
        if server.line.asked(DELTA):
            raise NetworkError("the agent stops")

    with pytest.raises(NetworkError, match="the agent stops"):
        fetch(store, built, stop)
    fetch(store, built)
    assert WHOLE not in received(server)


def test_a_mirror_may_have_the_delta_and_one_that_lies_is_asked_no_more(
    server: UpdateServer, built: Path, tmp_path: Path
) -> None:
    out = io.BytesIO()
    make_delta(io.BytesIO(OLD), io.BytesIO(NEW), out)
    with mirror_of({DELTA: b"a lie"}) as liar, mirror_of({DELTA: out.getvalue()}) as honest:
        fetch(new_store(server, built, tmp_path, mirrors=(liar.url, honest.url)), built)
        assert honest.asked(DELTA) == [""]
        after = [path for path, _ in liar.requests]
        assert after[after.index(DELTA) + 1 :] == []
    assert {DELTA, WHOLE}.isdisjoint(received(server))


def test_how_far_an_update_has_come_can_be_seen_meanwhile(
    server: UpdateServer, store: PackageStore, built: Path
) -> None:
    seen: list[Progress] = []

    def look() -> None:
        if store.progress is not None:
            seen.append(store.progress)

    fetch(store, built, look)
    assert store.progress is None
    assert seen[-1].wanted_bytes > len(NEW)
    assert [each.received_bytes for each in seen] == sorted(each.received_bytes for each in seen)
    assert seen[-1].received_bytes < seen[-1].wanted_bytes, "a delta is smaller than its file"
    assert seen[-1].done_bytes > 0
