"""What a device refuses and takes, with the reason it reports; attacks by their names are in ``attacks/``."""

from __future__ import annotations

import datetime as dt
import json
import logging
import socket
from pathlib import Path

import pytest
from starlette.types import Send

from edge_agent.contract.errors import NetworkError
from edge_agent.contract.messages import EventKind, UpdateStep
from edge_agent.contract.repository import blob_path, director_metadata_path
from edge_agent.runtime.package import Package
from edge_agent.update.server_files import ServerFiles
from tests.edge_agent.update.attacks.thief import send_body
from tests.edge_agent.update.conftest import NewDevice
from tests.fakes.packages import make_package
from tests.fakes.update_server import UpdateServer, hint
from tests.fakes.updating_device import UpdatingDevice

DIRECTOR_PATH = director_metadata_path("camera-1")


def assert_metadata_refused(device: UpdatingDevice, *words: str) -> None:
    """Refused, reported, and version 1 serves on."""
    (event,) = device.told(EventKind.METADATA_REFUSED)
    for word in words:
        assert word in event.reason
    assert device.reported().step is UpdateStep.FAILED
    assert device.reported().reason == event.reason
    assert device.version == "1"
    assert device.infer().shape == (1, 10)


@pytest.mark.parametrize("sent", ["page", "bytes"])
def test_wrong_bytes_are_thrown_away_and_asked_for_again_ever_later_until_they_are_right(
    server: UpdateServer, device: UpdatingDevice, second: Package, sent: str
) -> None:
    """A login page where a file should be, as behind a captive portal: it says nothing about the release."""
    desired = server.assign(second)
    model = second.manifest.files["model.onnx"]
    path = blob_path(model.sha256)
    page = b"<html>log in</html>"
    server.line.replace[path] = page if sent == "page" else page.ljust(model.size_bytes)
    waits_s: list[int] = []
    for asked in range(1, 10):
        assert not device.apply(desired)
        assert not device.apply(desired), "it is asked for no more for a while, and the reason stays"
        assert len(server.line.asked(path)) == asked
        reported = device.reported()
        assert (device.version, reported.step) == ("1", UpdateStep.DOWNLOADING)
        assert path in reported.reason
        wait, unit = reported.reason.rpartition("asked again after ")[2].split()
        waits_s.append(int(wait) * (60 if unit == "min" else 1))
        device.rest(waits_s[-1])
    assert waits_s == [30, 60, 120, 240, 480, 960, 1920, 3600, 3600]
    server.line.leave()
    device.update(desired)
    assert device.version == "2"
    assert len(server.line.asked(path)) == 10


def test_what_an_update_waits_for_is_logged_once_while_it_stays_the_same(
    server: UpdateServer, device: UpdatingDevice, second: Package, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    desired = server.assign(second)
    server.line.replace[blob_path(second.manifest.files["model.onnx"].sha256)] = b"<html>log in</html>"
    for wait_s in (30, 60):
        for _ in range(4):
            assert not device.apply(desired)
        said = [one.message for one in caplog.records if f"asked again after {wait_s} s" in one.message]
        assert sum("update waits" in each for each in said) == 1
        device.rest(wait_s)


def test_a_server_that_is_away_is_named_by_its_url_alone(device: UpdatingDevice) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(NetworkError, match=f"^{url}/x: Failed to establish"), ServerFiles(url, "s").get(f"{url}/x"):
        pass


def test_a_page_where_metadata_should_be_is_no_word_about_an_update_under_way(
    server: UpdateServer, device: UpdatingDevice, second: Package
) -> None:
    """Else the fleet would take it for a failure of the release, and halt its rollout."""
    desired = server.assign(second)
    path = blob_path(second.manifest.files["model.onnx"].sha256)
    server.line.cut_after[path] = 100
    assert not device.apply(desired)

    async def page(_path: str, send: Send) -> None:
        await send_body(send, b"<html>log in</html>")

    server.line.answers["/updates/"] = page
    for _ in range(2):
        assert not device.apply(desired)
        reported = device.reported()
        assert (reported.step, reported.target) == (UpdateStep.DOWNLOADING, second.digest)
        assert "what came is no metadata" in reported.reason
    assert device.told(EventKind.METADATA_REFUSED) == []
    server.line.leave()
    device.update(desired)
    assert device.version == "2"


def test_wrong_bytes_of_one_update_do_not_keep_another_model_waiting(
    server: UpdateServer, device: UpdatingDevice, second: Package, tmp_path: Path
) -> None:
    third = make_package(tmp_path / "built/3", version="3")
    server.publisher.publish(third)
    server.line.replace[blob_path(second.digest)] = b"<html>log in</html>"
    assert not device.apply(server.assign(second))
    device.update(server.assign(third))
    assert device.version == "3"


@pytest.mark.parametrize("file", ["timestamp.json", "2.snapshot.json", "2.targets.json"])
def test_tampered_director_metadata_is_refused(
    server: UpdateServer, device: UpdatingDevice, second: Package, file: str
) -> None:
    desired = server.assign(second)
    data = server.director.metadata("camera-1", file)
    assert data is not None
    tampered = json.loads(data)
    tampered["signed"]["expires"] = "2099-01-01T00:00:00Z"
    server.line.replace[DIRECTOR_PATH + file] = json.dumps(tampered).encode()
    assert not device.apply(desired)
    assert_metadata_refused(device, "director")


def test_tampered_image_metadata_is_refused(
    server: UpdateServer, device: UpdatingDevice, second: Package, tmp_path: Path
) -> None:
    third = make_package(tmp_path / "built/3", version="3")
    server.publisher.publish(third)
    desired = server.assign(third)
    data = server.images.metadata("timestamp.json")
    assert data is not None
    tampered = json.loads(data)
    tampered["signed"]["version"] += 1
    server.line.replace["/updates/image/timestamp.json"] = json.dumps(tampered).encode()
    assert not device.apply(desired)
    assert_metadata_refused(device, "image")
    server.line.replace.clear()
    device.update(desired)
    assert device.version == "3", "when the tampering ends, the update goes on by itself"


def test_expired_metadata_is_refused_and_told_once(
    server: UpdateServer, new_device: NewDevice, device: UpdatingDevice, second: Package
) -> None:
    desired = server.assign(second)
    device.close()
    later = new_device(utc_now=lambda: dt.datetime.now(dt.UTC) + dt.timedelta(days=8))
    assert not later.apply(desired)
    assert not later.apply(desired)
    assert_metadata_refused(later, "director", "expired")


def test_a_hint_ahead_of_the_director_waits_and_is_no_failure(
    server: UpdateServer, device: UpdatingDevice, second: Package
) -> None:
    device.events.clear()
    assert not device.apply(hint(second, 2))
    assert device.events == []
    assert (device.version, device.reported().step) == ("1", UpdateStep.COMMITTED)
    assert "the director has signed 1 so far" in device.reported().reason
    device.update(server.assign(second))
    assert device.version == "2"


def test_the_keys_of_the_image_root_can_be_renewed_while_devices_are_away(
    server: UpdateServer, device: UpdatingDevice, second: Package
) -> None:
    server.signing.renew()
    server.signing.renew()
    server.publisher.refresh()
    assert json.loads(server.images.root)["signed"]["version"] == 3
    device.update(server.assign(second))
    assert device.version == "2"
    root = device.state / "trust/image/root.json"
    assert root.is_symlink()
    assert json.loads(root.read_bytes())["signed"]["version"] == 3
