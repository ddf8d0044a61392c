"""Attacks that Uptane names beside TUF's: two repositories, many devices, clocks of little worth."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest
from tuf.api.metadata import TargetFile

from edge_agent.contract.messages import Hardware
from edge_agent.contract.repository import AssignedHardware, Assignment, target_name
from edge_agent.runtime.package import Package
from edge_agent.update.preparing import Device
from fleet_server.updates.director import load_signer
from tests.edge_agent.update.attacks.thief import (
    DIRECTOR_PATH,
    IMAGE_PATH,
    director_files,
    gone,
    recovers,
    retaken,
    target,
    unharmed,
)
from tests.edge_agent.update.conftest import NewDevice
from tests.fakes.update_server import UpdateServer, hint, update_server
from tests.fakes.updating_device import UpdatingDevice
from trainer.publish.keys import DIRECTOR

ORIN = Hardware(architecture="aarch64", system="Linux", accelerator="orin")


@pytest.mark.parametrize(("length", "digest"), [(1234, ""), (0, "ab" * 32)])
def test_director_and_image_repository_must_say_the_same(
    server: UpdateServer, device: UpdatingDevice, second: Package, length: int, digest: str
) -> None:
    real = target(second)
    wrong = TargetFile(
        length or real.length, {"sha256": digest or second.digest}, real.path,
        unrecognized_fields=real.unrecognized_fields,
    )  # fmt: skip
    server.line.replace |= director_files(load_signer(server.keys.path(DIRECTOR)), 2, wrong)
    assert not device.apply(hint(second, 2))
    unharmed(device, "disagree on 'digits/2/manifest.json'")
    retaken(server, device, second)


def test_another_devices_metadata_is_refused(
    server: UpdateServer, device: UpdatingDevice, first: Package, second: Package
) -> None:
    server.assign(first, device="camera-2")
    server.assign(second, device="camera-2")
    for name in ("timestamp.json", "2.snapshot.json", "2.targets.json"):
        data = server.director.metadata("camera-2", name)
        assert data is not None
        server.line.replace[DIRECTOR_PATH + name] = data
    assert not device.apply(hint(second, 2))
    unharmed(device, "for device 'camera-2', this is 'camera-1'")
    server.line.leave()
    server.assign(first, release=5)  # versions go on past the other device's
    recovers(server, device, server.assign(second, release=6))


@pytest.mark.parametrize(
    "assigned",
    [
        AssignedHardware(architecture="x86_64", accelerator="orin"),
        AssignedHardware(architecture="aarch64", accelerator="cpu"),
        AssignedHardware(architecture="aarch64", accelerator="thor"),
    ],
)
def test_what_was_assigned_for_other_hardware_is_refused(
    server: UpdateServer,
    new_device: NewDevice,
    device: UpdatingDevice,
    second: Package,
    assigned: AssignedHardware,
) -> None:
    device.close()
    board = new_device(device=Device(hardware=ORIN))
    length = target(second).length
    assignment = Assignment(device="camera-1", release=2, hardware=assigned)
    server.director.assign("camera-1", target_name("digits", "2"), length, second.digest, assignment)
    assert not board.apply(hint(second, 2))
    unharmed(board, f"for {assigned.architecture} with {assigned.accelerator}", "this device is aarch64 with orin")
    right = AssignedHardware(architecture="aarch64", accelerator="orin", runtimes={"onnxruntime": "other"})
    assert server.director.readdress({"camera-1": right}) == {}
    recovers(server, board, hint(second, 2))


@pytest.mark.parametrize(("path", "status"), [("/updates/", 503), (DIRECTOR_PATH, 404), (IMAGE_PATH, 503)])
def test_dropped_requests_stop_updates_and_nothing_else(
    server: UpdateServer, device: UpdatingDevice, second: Package, path: str, status: int
) -> None:
    desired = server.assign(second)
    server.line.answers[path] = gone(status)
    assert not device.apply(desired)
    unharmed(device, str(status), refused=False)
    recovers(server, device, desired)


def test_a_clock_set_back_does_not_make_expired_metadata_fresh(tmp_path: Path, first: Package, second: Package) -> None:
    start = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)
    clock = [start]
    with update_server(tmp_path / "server", utc_now=lambda: clock[0]) as server:
        for package in (first, second):
            server.publisher.publish(package)
        device = UpdatingDevice(tmp_path / "device", server.enrolment(), utc_now=lambda: clock[-1])
        old = server.assign(first)
        stale = {name: server.director.metadata("camera-1", name) for name in ("timestamp.json", "1.snapshot.json")}
        clock[0] = start + dt.timedelta(days=6)
        device.update(old)
        server.director.refresh(start + dt.timedelta(days=20))
        server.publisher.refresh()
        # The device's clock battery is empty; the attacker shows what expired on the 8th.
        clock.append(dt.datetime(2000, 1, 1, tzinfo=dt.UTC))
        server.line.replace |= {DIRECTOR_PATH + name: data for name, data in stale.items() if data is not None}
        desired = server.assign(second)
        device.apply(desired)
        assert device.version == "1"
        server.line.leave()
        device.update(desired)
        assert device.version == "2", "six days after signing is still fresh"
        assert (device.state / "trust/time").read_text().startswith("2030-01-07"), "the floor did not sink"
        device.close()


def test_a_clock_set_ahead_stops_updates_until_it_is_right_again(
    server: UpdateServer, new_device: NewDevice, device: UpdatingDevice, second: Package
) -> None:
    device.close()
    desired = server.assign(second)
    now = [dt.datetime.now(dt.UTC) + dt.timedelta(days=4000)]
    ahead = new_device(utc_now=lambda: now[0])
    assert not ahead.apply(desired)
    unharmed(ahead, "expired")
    now[0] = dt.datetime.now(dt.UTC)
    recovers(server, ahead, desired)


def test_a_bit_that_flipped_in_the_time_floor_does_not_end_all_updates(
    server: UpdateServer, new_device: NewDevice, device: UpdatingDevice, second: Package
) -> None:
    device.close()
    floor = device.state / "trust/time"
    written = floor.read_bytes()
    floor.write_bytes(b"6" + written[1:])  # the year 6026 instead of 2026
    again = new_device()
    again.update(server.assign(second))
    assert again.version == "2"
    assert floor.read_bytes()[:1] == b"2"
