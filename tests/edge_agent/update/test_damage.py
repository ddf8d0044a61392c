"""Metadata on a device's own disk: what is damaged is fetched again, roots go on for ever, one thread owns it."""

from __future__ import annotations

import datetime as dt
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_agent.contract.errors import MetadataRefused, NetworkError
from edge_agent.contract.repository import image_metadata_path
from edge_agent.runtime.package import Package
from edge_agent.update.clock_floor import ClockFloor
from edge_agent.update.durable_updater import LIMITS
from edge_agent.update.owner_thread import WrongThread
from edge_agent.update.server_files import ServerFiles
from edge_agent.update.tuf_client import TrustedClient
from tests.edge_agent.update.attacks.thief import send_body
from tests.edge_agent.update.conftest import NewDevice
from tests.fakes.update_server import SECRETS, UpdateServer
from tests.fakes.updating_device import UpdatingDevice

FILES = ["image/root_history/1.root.json", "image/root_history/anchor", "image/timestamp.json", "image/snapshot.json",
         "image/targets.json", "image/digits.json", "director/timestamp.json", "director/snapshot.json",
         "director/targets.json", "director/root_history/1.root.json", "releases.json", "time"]  # fmt: skip
TARGET = "digits/2/manifest.json"


@pytest.fixture
def files(server: UpdateServer) -> Iterator[ServerFiles]:
    made = ServerFiles(server.url, SECRETS["camera-1"])
    yield made
    made.close()


def client(server: UpdateServer, files: ServerFiles, folder: Path, root: bytes | None = None) -> TrustedClient:
    root = root or server.images.root.encode()
    url = files.url(image_metadata_path())
    return TrustedClient("image", folder, url, files, root=root, now=dt.datetime.now(dt.UTC))


def test_each_damaged_file_is_fetched_again(
    server: UpdateServer, new_device: NewDevice, device: UpdatingDevice, first: Package, second: Package
) -> None:
    device.close()
    trust = device.state / "trust"
    versions = [first, second]
    for number, name in enumerate(FILES):
        path = trust / name
        whole = path.read_bytes()
        middle = len(whole) // 2
        damages = [whole[:middle], b"", whole[:middle] + bytes([whole[middle] ^ 4]) + whole[middle + 1 :]]
        path.write_bytes(damages[number % 3])
        again = new_device()
        package = versions[(number + 1) % 2]
        again.update(server.assign(package))
        assert again.version == package.manifest.version, name
        again.close()
        assert path.read_bytes() not in damages, f"{name} is whole again"


def test_a_folder_in_the_place_of_a_file_and_a_link_that_hangs_are_put_right(
    server: UpdateServer, new_device: NewDevice, device: UpdatingDevice, second: Package
) -> None:
    device.close()
    trust = device.state / "trust/image"
    (trust / "snapshot.json").unlink()
    (trust / "snapshot.json").mkdir()
    (trust / "root.json").unlink()
    (trust / "root.json").symlink_to("nowhere")
    shutil.rmtree(trust / "root_history")
    again = new_device()
    again.update(server.assign(second))
    assert again.version == "2"
    assert (trust / "snapshot.json").is_file()
    assert json.loads((trust / "root.json").read_bytes())["signed"]["version"] == 1


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["timestamp", "snapshot", "targets", "digits", "2.root"]),
    st.tuples(st.floats(0, 1, exclude_max=True), st.binary(max_size=40)),
)  # fmt: skip
def test_whatever_a_server_sends_is_taken_or_refused_and_nothing_worse(
    server: UpdateServer, files: ServerFiles, tmp_path: Path, role: str, change: tuple[float, bytes]
) -> None:
    shown = server.signing.files()  # the newest of each, and every root
    name = next((name for name in shown if name.endswith(f"{role}.json")), f"{role}.json")
    data = shown.get(name, server.images.root.encode())
    place, junk = int(len(data) * change[0]), change[1]
    server.line.replace[image_metadata_path() + name] = data[:place] + junk + data[place + len(junk) :]
    folder = tmp_path / "fuzzed"
    try:
        client(server, files, folder).target(TARGET)
    except (MetadataRefused, NetworkError):
        pass
    finally:
        shutil.rmtree(folder)
        server.line.leave()


def test_a_chain_of_roots_longer_than_one_look_may_follow_is_followed_in_several(
    server: UpdateServer, files: ServerFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LIMITS, "max_root_rotations", 4)
    first = server.images.root.encode()
    rotations = LIMITS.max_root_rotations + 3
    for _ in range(rotations):
        server.signing.renew()
    newest = server.signing.files()

    async def answer(path: str, send: object) -> None:
        await send_body(send, newest.get(path.removeprefix(image_metadata_path())))  # type: ignore[arg-type]

    server.line.answers[image_metadata_path()] = answer
    folder = tmp_path / "trust"
    client(server, files, folder, first).refresh()
    assert json.loads((folder / "root.json").read_bytes())["signed"]["version"] == 1 + LIMITS.max_root_rotations
    client(server, files, folder, first).refresh()
    assert json.loads((folder / "root.json").read_bytes())["signed"]["version"] == 1 + rotations
    kept = {path.name for path in (folder / "root_history").iterdir()}
    assert kept == {f"{rotations}.root.json", f"{1 + rotations}.root.json", "anchor"}
    asked = len(server.line.requests)
    client(server, files, folder, first).refresh()
    assert len(server.line.requests) - asked == 2, "whether there is a newer root, and the timestamp"


def test_another_enrolment_begins_with_its_own_root(
    server: UpdateServer, files: ServerFiles, tmp_path: Path, second: Package
) -> None:
    folder = tmp_path / "trust"
    client(server, files, folder).refresh()
    assert client(server, files, folder).target(TARGET) is not None
    other = json.loads((server.keys_folder / "director/1.root.json").read_bytes())
    with pytest.raises(MetadataRefused):
        client(server, files, folder, json.dumps(other).encode()).refresh()
    assert client(server, files, folder).target(TARGET) is not None


def test_another_thread_is_told_whose_it_is_and_a_successor_may_have_it(
    server: UpdateServer, files: ServerFiles, tmp_path: Path
) -> None:
    made: list[TrustedClient] = []
    stay = threading.Event()

    def own() -> None:
        made.append(client(server, files, tmp_path / "trust"))
        made[0].refresh()
        stay.wait(30)

    owner = threading.Thread(target=own, name="update")
    owner.start()
    while not made:
        stay.wait(0.01)
    with pytest.raises(WrongThread, match="belongs to thread 'update'"):
        made[0].target(TARGET)
    stay.set()
    owner.join()
    assert made[0].target(TARGET) is not None


def test_the_floor_of_time_spares_the_disk_and_rises_all_the_same(tmp_path: Path) -> None:
    clock = [dt.datetime(2030, 1, 1, tzinfo=dt.UTC)]
    floor = ClockFloor(tmp_path / "time", lambda: clock[0])
    floor.rise(floor.now())
    written = (tmp_path / "time").stat().st_mtime_ns
    clock[0] += dt.timedelta(minutes=30)
    floor.rise(floor.now())
    assert (tmp_path / "time").stat().st_mtime_ns == written
    clock[0] += dt.timedelta(days=1)
    floor.rise(floor.now())
    clock[0] = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    assert floor.now() == dt.datetime(2030, 1, 2, 0, 30, tzinfo=dt.UTC)
    (tmp_path / "time").write_text("2031-05-05T00:00:00+00:00\n")  # as earlier versions wrote it
    assert floor.now().year == 2031
