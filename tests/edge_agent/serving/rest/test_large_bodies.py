"""Large bodies: raw numbers for a quick model are answered on the event loop's thread, all else in others."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import http.client
import json
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_agent.config import ApiSettings
from edge_agent.contract.manifest import Batching
from edge_agent.serving.admission import Admission, HeldRoom
from edge_agent.serving.codec import encode_response
from edge_agent.serving.compression import unpack
from edge_agent.serving.http.message import HttpRequest, HttpResponse
from edge_agent.serving.inference import Inference
from edge_agent.serving.peer import Peer, Transport
from edge_agent.serving.request import InferenceRequest
from edge_agent.serving.rest import infer
from edge_agent.serving.shared_memory import Regions
from tests.edge_agent.serving.http.device import wait_until
from tests.fakes.noting_backend import NotingBackend
from tests.fakes.packages import INPUT, OUTPUT, make_package, reference_images
from tests.fakes.serving_device import Device, serving
from tests.fakes.text_package import make_text_package

_PATH = "/v2/models/digits/infer"
_ROWS = 1024  # of 256 bytes


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    make_package(tmp_path / "models" / "digits")
    with serving(tmp_path, ApiSettings(port=0, max_body_mib=2)) as device:
        yield device


def body(images: NDArray[np.float32], *, binary_out: bool = True, datatype: str = "FP32") -> tuple[bytes, int]:
    tensor = {
        "name": INPUT, "shape": list(images.shape), "datatype": datatype,
        "parameters": {"binary_data_size": images.nbytes},
    }  # fmt: skip
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": binary_out}}).encode()
    return head + images.tobytes(), len(head)


def ask(device: Device, data: bytes, json_length: int, **headers: str) -> tuple[int, bytes]:
    told = {"Inference-Header-Content-Length": str(json_length)} | headers
    status, _, answer = device.ask("POST", _PATH, data, told)
    return status, answer


@pytest.mark.parametrize("rows", [300, _ROWS])
def test_raw_numbers_are_answered_where_they_come_in(device: Device, rows: int) -> None:
    loaded = device.slots.get("digits")
    images = reference_images(rows, seed=2)
    expected = loaded.backend.infer({INPUT: images})[OUTPUT]
    loaded.backend = noting = NotingBackend(loaded.backend)
    loaded.run_us = 1.0
    data, length = body(images)
    assert len(data) > 64 * 1024
    status, answer = ask(device, data, length)
    assert status == 200
    assert answer.endswith(expected.tobytes())
    (thread,) = noting.threads
    assert not thread.startswith(("inference", "errand"))
    status, answer = ask(device, *body(images, binary_out=False))
    assert status == 200
    found = np.array(json.loads(answer)["outputs"][0]["data"], np.float32).reshape(expected.shape)
    np.testing.assert_array_equal(found, expected)


def test_a_large_answer_in_json_is_written_by_another_thread(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    device.slots.get("digits").run_us = 1.0
    writers: list[str] = []
    write = encode_response

    def noted(*about: Any, **more: Any) -> Any:
        writers.append(threading.current_thread().name)
        return write(*about, **more)

    monkeypatch.setattr(infer, "encode_response", noted)
    assert ask(device, *body(reference_images(_ROWS), binary_out=False))[0] == 200
    assert [writer.split("_")[0] for writer in writers] == ["errand"]


def test_json_and_packed_bodies_are_read_by_other_threads(device: Device) -> None:
    loaded = device.slots.get("digits")
    loaded.backend = noting = NotingBackend(loaded.backend)
    loaded.run_us = 1.0
    images = reference_images(300, seed=2)
    data, length = body(images)
    assert ask(device, gzip.compress(data), length, **{"Content-Encoding": "gzip"})[0] == 200
    text = {"inputs": [{"name": INPUT, "shape": [300, 64], "datatype": "FP32", "data": images.ravel().tolist()}]}
    assert device.ask("POST", _PATH, json.dumps(text).encode())[0] == 200
    assert [thread.split("_")[0] for thread in noting.threads] == ["errand", "errand"]


def test_numbers_that_are_called_text_are_refused_before_they_are_taken_apart(device: Device) -> None:
    data, length = body(reference_images(_ROWS), datatype="BYTES")
    status, answer = ask(device, data, length)
    assert status == 400
    assert json.loads(answer)["error"].endswith("is BYTES, the model takes FP32")


def test_large_bodies_that_never_come_keep_no_request_out(tmp_path: Path) -> None:
    make_package(tmp_path / "models" / "digits")
    data, length = body(reference_images(1))
    with contextlib.ExitStack() as stack:
        device = stack.enter_context(serving(tmp_path, ApiSettings(port=0, max_pending=2)))
        for _ in range(5):
            slow = stack.enter_context(socket.create_connection(("127.0.0.1", device.port), timeout=30))
            slow.sendall(b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 65537\r\n\r\n{" % _PATH.encode())
        page = "shoal_pending_bytes 327685\n"  # bytes they hold, and no places
        wait_until(lambda: page in device.ask("GET", "/metrics")[2].decode())
        assert ask(device, gzip.compress(data), length, **{"Content-Encoding": "gzip"})[0] == 200


def test_a_packed_request_that_is_unpacked_too_late_is_not_run(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*about: Any, **more: Any) -> Any:
        time.sleep(0.05)
        return unpack(*about, **more)

    monkeypatch.setattr(infer, "unpack", slow)
    loaded = device.slots.get("digits")
    loaded.backend = noting = NotingBackend(loaded.backend)
    tensor = {"name": INPUT, "shape": [1, 64], "datatype": "FP32", "data": [1.0] * 64}
    for timeout_us, status in ((1000, 504), (30_000_000, 200)):
        asked = json.dumps({"inputs": [tensor], "parameters": {"timeout": timeout_us}}).encode()
        assert device.ask("POST", _PATH, gzip.compress(asked), {"Content-Encoding": "gzip"})[0] == status
    assert len(noting.threads) == 1


def test_a_row_much_longer_than_those_that_were_measured_does_not_hold_the_event_loop(device: Device) -> None:
    loaded = device.slots.get("digits")
    inference = Inference(device.monitor, threads=1)
    loaded.run_us = 20.0
    for times, is_long in ((1, False), (400, False), (600, True)):
        request = InferenceRequest("", {INPUT: np.zeros((1, 64 * times), np.float32)})
        assert inference.is_long(loaded, request) is is_long
    inference.close()


@pytest.mark.parametrize("name", ["shared_memory_region", "shared\\u005fmemory_region"])
def test_text_in_shared_memory_is_read_by_another_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    make_text_package(tmp_path / "models" / "echo")
    readers: list[str] = []
    read = Regions.read

    def noted(*about: Any, **more: Any) -> Any:
        readers.append(threading.current_thread().name.split("_")[0])
        return read(*about, **more)

    monkeypatch.setattr(Regions, "read", noted)
    path = Path("/dev/shm") / f"shoal-test-{secrets.token_hex(6)}"  # noqa: S108 - where shm_open(3) keeps its objects
    path.write_bytes(b"\x03\x00\x00\x00one")
    inputs = '{"inputs": [{"name": "text", "shape": [1, 1], "datatype": "BYTES", "parameters": {"'
    asked = inputs + name + '": "r", "shared_memory_byte_size": 7}}]}'
    try:
        with serving(tmp_path) as device:
            loaded = device.slots.get("echo")
            loaded.run_us, loaded.inline = 1.0, True
            region = {"key": path.name, "byte_size": 7}
            assert device.ask("POST", "/v2/systemsharedmemory/region/r/register", region)[0] == 200
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", device.port, timeout=30)) as connection:
                for _ in range(4):  # the later ones with a head that is known
                    connection.request("POST", "/v2/models/echo/infer", asked)
                    answer = connection.getresponse()
                    assert json.loads(answer.read())["outputs"][0]["data"] == ["one"]
    finally:
        path.unlink()
    assert readers == ["errand"] * 4


def test_what_the_model_has_answered_is_not_refused_for_want_of_a_place(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold = Admission.hold

    def taken_meanwhile(self: Admission, size: int, *, limit_bytes: int | None = None) -> HeldRoom:
        self.requests = 0
        room = hold(self, size, limit_bytes=limit_bytes)
        self.requests = 64
        return room

    monkeypatch.setattr(Admission, "hold", taken_meanwhile)
    loaded = device.slots.get("digits")
    loaded.run_us = 1.0
    assert ask(device, *body(reference_images(_ROWS), binary_out=False))[0] == 200
    loaded.inline = False  # what is still to run needs one
    status, answer = ask(device, *body(reference_images(_ROWS)))
    assert (status, "64 requests are being worked on" in json.loads(answer)["error"]) == (503, True)
    assert loaded.statistics.snapshot().success_count == 1


def test_loading_a_sleeping_model_is_no_waiting_for_a_turn(tmp_path: Path) -> None:
    make_package(tmp_path / "models" / "digits", batching=Batching(timeout_us=100_000))
    tensor = {"name": INPUT, "shape": [1, 64], "datatype": "FP32", "data": [0.5] * 64}
    with serving(tmp_path) as device:
        load = device.repository.wake

        def slow(model: str, version: str | None = None) -> Any:
            time.sleep(0.5)
            return load(model, version)

        device.repository.wake = slow  # type: ignore[method-assign]
        assert device.slots.unload("digits", reason="idle", idle_since=time.monotonic()) is not None
        assert device.ask("POST", _PATH, {"inputs": [tensor]})[0] == 200


def test_a_request_that_ends_before_it_began_leaves_no_place_taken(tmp_path: Path) -> None:
    """A connection is lost as its next request begins: the task is cancelled before its first step."""
    make_package(tmp_path / "models" / "digits")
    tensor = {"name": INPUT, "shape": [1, 64], "datatype": "FP32", "data": [0.5] * 64}
    packed = gzip.compress(json.dumps({"inputs": [tensor]}).encode())
    with serving(tmp_path, start=False) as device:
        router = device.api._router

        async def lost() -> int:
            peer = Peer(Transport.TCP, loopback=True)
            request = HttpRequest("POST", _PATH, "", {b"content-encoding": b"gzip"}, peer, packed)
            answer = router.handle(request)
            assert not isinstance(answer, HttpResponse)
            task = asyncio.ensure_future(answer)
            taken = router._admission.requests
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
            return taken

        assert asyncio.run(lost()) == 1
        assert (router._admission.requests, router._admission.bytes) == (0, 0)
