"""Cameras beside a real agent's local API, and beside one that goes wrong."""

from __future__ import annotations

import contextlib
import queue
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from edge_agent.contract.envelope import Message
from edge_agent.contract.messages import LabelBatch, MetricsReport, SampleBatch
from edge_agent.contract.topics import Stream
from tests.fakes.serving_device import Device
from trainer.demo.camera import Camera, LocalApi
from trainer.demo.camera_process import CameraProcess
from trainer.demo.processes import DemoFailed
from trainer.recipe import Recipe

M = TypeVar("M", bound=Message)
CameraOf = Callable[[int], Camera]


@pytest.fixture
def camera_of(recipe: Recipe) -> Iterator[CameraOf]:
    """Makes cameras that ask a port."""
    apis: list[LocalApi] = []

    def make(port: int) -> Camera:
        apis.append(LocalApi("127.0.0.1", port, "digits"))
        return Camera(apis[-1], recipe.folder, seed=1, per_second=200.0)

    yield make
    for api in apis:
        api.close()


def sent(device: Device, stream: Stream, kind: type[M]) -> list[M]:
    """What waits in the outbox, all that was counted included."""
    device.monitor.flush()
    return device.sent(stream, kind)


def requests_of(device: Device) -> int:
    return sum(model.requests for report in sent(device, Stream.METRICS, MetricsReport) for model in report.models)


def test_what_a_camera_says_it_sent_is_what_the_device_has(device: Device, camera_of: CameraOf) -> None:
    camera = camera_of(device.port)
    for _ in range(30):
        camera.step()
    assert camera.sent["requests"] == requests_of(device) == 30
    assert camera.sent["failed"] == 0
    samples = [sample for batch in sent(device, Stream.SAMPLES, SampleBatch) for sample in batch.samples]
    labels = [label for batch in sent(device, Stream.LABELS, LabelBatch) for label in batch.labels]
    assert camera.labels, "the device asks for labels"
    assert {label.request_id: label.label for label in labels} == camera.labels
    assert camera.labels.keys() <= {sample.request_id for sample in samples}


def test_measuring_is_neither_counted_nor_sampled_and_its_digits_are_those_nothing_trains_on(
    device: Device, camera_of: CameraOf
) -> None:
    found = camera_of(device.port).measure()
    assert found["rows"] == 395
    assert found["accuracy"] > 0.9
    assert found["packages"] == [device.slots.models()[0].digest]
    assert requests_of(device) == 0
    assert sent(device, Stream.SAMPLES, SampleBatch) == []


def test_a_camera_follows_its_orders(device: Device, camera_of: CameraOf, capsys: pytest.CaptureFixture[str]) -> None:
    camera, orders = camera_of(device.port), queue.Queue[dict[str, Any]]()
    world = {"contrast": 0.35, "blur": 0.3, "rotation_deg": 23.0, "noise": 0.3}
    orders.put({"do": "measure", "tag": "before"})
    orders.put({"do": "world", **world})
    orders.put({"do": "measure", "tag": "after"})
    orders.put({"do": "pause"})
    orders.put({"do": "stop"})
    camera.run(orders)
    said = [line.split('"say": ')[1].split('"')[1] for line in capsys.readouterr().out.splitlines()]
    assert said == ["measured", "world", "measured", "paused"]
    clear, drifted = camera_of(device.port).measure(), camera.measure()
    assert drifted["accuracy"] < clear["accuracy"] - 0.1


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_a_request_that_gets_no_answer_is_counted_and_said(
    camera_of: CameraOf, capsys: pytest.CaptureFixture[str]
) -> None:
    camera = camera_of(closed_port())
    camera.step()
    assert camera.sent == {"failed": 1}
    assert "ConnectionRefusedError" in capsys.readouterr().out


def test_a_refusal_that_is_no_json_is_counted_and_said(camera_of: CameraOf, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        camera = camera_of(server.getsockname()[1])
        child = (
            "import socket, sys; s = socket.socket(fileno=int(sys.argv[1])); c, _ = s.accept(); c.recv(65536);"
            "c.sendall(b'HTTP/1.1 502 Bad Gateway\\r\\nContent-Length: 5\\r\\n\\r\\noops!'); c.close()"
        )
        number = server.fileno()
        answering = subprocess.Popen([sys.executable, "-c", child, str(number)], pass_fds=[number])
        camera.step()
        assert answering.wait(30) == 0
    assert camera.sent == {"failed": 1}
    assert "502: oops!" in capsys.readouterr().out


@pytest.fixture
def process(device: Device, recipe: Recipe, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "trainer.demo.camera", "--port", str(device.port), "--seed", "1"]
    with (tmp_path / "camera.log").open("wb") as log:
        running = subprocess.Popen(
            [*command, "--recipe", str(recipe.folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
        )
    yield running
    running.kill()
    running.wait()
    for pipe in (running.stdin, running.stdout):
        assert pipe is not None
        with contextlib.suppress(BrokenPipeError):  # an order that nobody took
            pipe.close()


def test_a_cameras_process_is_told_and_heard_and_ends_with_the_demo(
    device: Device, process: subprocess.Popen[bytes]
) -> None:
    camera = CameraProcess("cam", process)
    camera.hear("ready")
    camera.tell("measure", tag="before")
    assert camera.hear("measured", tag="before")["rows"] == 395
    camera.tell("pause")
    said = camera.hear("paused")
    assert said["requests"] == requests_of(device)
    assert (said["failed"], camera.failed_since(0.0)) == (0, 0)
    device.api.stop()
    camera.tell("resume")
    assert process.stdin is not None
    end = time.monotonic() + 60
    while not camera.failed_since(0.0):
        assert time.monotonic() < end, "no request fails though nobody answers"
        time.sleep(0.05)
    process.stdin.close()  # as when the demo is killed
    assert process.wait(30) == 0


def test_a_camera_that_has_ended_is_not_waited_for(process: subprocess.Popen[bytes]) -> None:
    camera = CameraProcess("cam", process)
    camera.hear("ready")
    process.kill()
    with pytest.raises(DemoFailed, match="camera cam ended before it said 'measured'"):
        camera.hear("measured", timeout_s=60)
    with pytest.raises(DemoFailed, match="ended before it said 'paused'"):
        camera.hear("paused", timeout_s=60)
    process.wait(30)
    with pytest.raises(DemoFailed, match="takes no orders"):
        camera.tell("pause")


def test_a_camera_that_does_not_answer_is_named(process: subprocess.Popen[bytes]) -> None:
    camera = CameraProcess("cam", process)
    with pytest.raises(DemoFailed, match=r"camera cam did not say 'measured' within 0\.1 s"):
        camera.hear("measured", timeout_s=0.1)
