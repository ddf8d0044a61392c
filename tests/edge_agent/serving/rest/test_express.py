"""A head that comes again and again: what may change between two requests is looked at each time."""

from __future__ import annotations

import hashlib
import http.client
import json
import secrets
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_agent.config import ApiSettings, AppSettings
from edge_agent.contract.messages import MetricsReport
from edge_agent.contract.topics import Stream
from edge_agent.runtime.slots import load
from tests.fakes.noting_backend import NotingBackend
from tests.fakes.packages import answer, make_package, model_weights, reference_images
from tests.fakes.serving_device import EVERYTHING, Device, serving

_PATH = "/v2/models/digits/infer"
_HEAD = json.dumps({
    "inputs": [{"name": "image", "shape": [1, 64], "datatype": "FP32", "parameters": {"binary_data_size": 256}}],
    "outputs": [{"name": "probabilities", "parameters": {"binary_data": True}}],
}).encode()  # fmt: skip
_BINARY = {"Inference-Header-Content-Length": str(len(_HEAD))}


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    make_package(tmp_path / "models" / "digits", sampling=EVERYTHING, fails_above=0.95)
    with serving(tmp_path) as device:
        yield device


class Repeats:
    """One connection that sends one head over and over."""

    def __init__(self, port: int, headers: dict[str, str] | None = None) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        self._headers = headers if headers is not None else _BINARY

    def ask(self, body: bytes, path: str = _PATH) -> tuple[int, dict[str, str], bytes]:
        self._connection.request("POST", path, body, self._headers)
        response = self._connection.getresponse()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()

    def close(self) -> None:
        self._connection.close()


def _row(pixels: float | None = None) -> bytes:
    image = reference_images(1) if pixels is None else np.full((1, 64), pixels, np.float32)
    return _HEAD + image.astype(np.float32).tobytes()


def _taken_apart(headers: dict[str, str], data: bytes) -> tuple[dict[str, Any], Any]:
    length = int(headers["inference-header-content-length"])
    return json.loads(data[:length]), np.frombuffer(data[length:], np.float32)


def test_every_answer_is_as_the_first_one_but_for_its_id(device: Device) -> None:
    repeats = Repeats(device.port)
    found = [repeats.ask(_row()) for _ in range(5)]
    repeats.close()
    ids = set()
    for status, headers, data in found:
        document, probabilities = _taken_apart(headers, data)
        ids.add(document.pop("id"))
        first, _ = _taken_apart(*found[0][1:])
        del first["id"]
        assert (status, headers, document) == (200, found[0][1], first)
        np.testing.assert_allclose(probabilities, answer(*model_weights(), reference_images(1))[0], atol=1e-6)
    assert len(ids) == 5


def test_json_that_repeats_its_head_is_answered_in_json(device: Device) -> None:
    tensor = {"name": "image", "shape": [1, 64], "datatype": "FP32", "data": [0.5] * 64}
    repeats = Repeats(device.port, {})
    found = [repeats.ask(json.dumps({"inputs": [tensor]}).encode()) for _ in range(3)]
    repeats.close()
    assert [status for status, _, _ in found] == [200] * 3
    assert {headers["content-type"] for _, headers, _ in found} == {"application/json"}
    assert len({json.dumps(json.loads(data)["outputs"]) for _, _, data in found}) == 1


def test_requests_are_counted_refused_and_failed_as_ever(device: Device) -> None:
    repeats = Repeats(device.port)
    statuses = [repeats.ask(_row(pixels))[0] for pixels in (0.5, 0.5, 2.0, 0.99, 0.5)]
    repeats.close()
    assert statuses == [200, 200, 400, 500, 200]
    device.monitor.flush()
    (metrics,) = device.sent(Stream.METRICS, MetricsReport)[0].models
    assert (metrics.requests, metrics.refused, metrics.failed) == (3, 1, 1)
    text = device.ask("GET", "/metrics")[2].decode()
    assert 'shoal_http_errors_total{status="400"} 1' in text
    assert device.slots.get("digits").leases == []


def test_bytes_that_are_no_request_are_refused_and_counted(device: Device) -> None:
    repeats = Repeats(device.port)
    for _ in range(2):
        assert repeats.ask(_row())[0] == 200
    wrong = _row().replace(b'"image"', b'"igame"')
    status, _, data = repeats.ask(wrong)
    assert (status, repeats.ask(_row())[0]) == (400, 200)
    repeats.close()
    assert "the model has no such input" in json.loads(data)["error"]
    assert device.slots.get("digits").statistics.snapshot().refused == 1


def test_a_swapped_model_answers_the_next_request_and_the_old_one_is_let_go(device: Device, tmp_path: Path) -> None:
    repeats = Repeats(device.port)
    for _ in range(3):
        repeats.ask(_row())
    old = device.slots.get("digits")
    device.slots.install(load(make_package(tmp_path / "second", seed=1)))
    document, probabilities = _taken_apart(*repeats.ask(_row())[1:])
    assert document["parameters"]["package"] == device.slots.get("digits").digest != old.digest
    np.testing.assert_allclose(probabilities, answer(*model_weights(1), reference_images(1))[0], atol=1e-6)
    assert old.retired
    device.slots.remove("digits")
    assert repeats.ask(_row())[0] == 404
    repeats.close()


def test_a_body_that_is_refused_once_it_is_whole_leaves_the_connection_in_order(device: Device) -> None:
    request = b"POST %b HTTP/1.1\r\nHost: x\r\nInference-Header-Content-Length: %d\r\nContent-Length: %d\r\n\r\n"
    whole = request % (_PATH.encode(), len(_HEAD), len(_row())) + _row()
    with (
        socket.create_connection(("127.0.0.1", device.port), timeout=30) as connection,
        connection.makefile("rb") as got,
    ):

        def answered() -> bytes:
            status = got.readline().split()[1]
            lengths = [line for line in iter(got.readline, b"\r\n") if line.startswith(b"content-length")]
            got.read(int(lengths[0].split()[1]))
            return status

        for _ in range(2):
            connection.sendall(whole)
            assert answered() == b"200"
        connection.sendall(whole[:-20])
        time.sleep(0.2)  # until the head is read, and what there is of the body
        device.slots.remove("digits")
        connection.sendall(whole[-20:])
        assert answered() == b"404"
        connection.sendall(whole)
        assert answered() == b"404"


def test_a_model_that_is_not_quick_any_more_is_answered_from_a_thread(device: Device) -> None:
    repeats = Repeats(device.port)
    for _ in range(2):
        repeats.ask(_row())
    device.slots.get("digits").inline = False
    assert [repeats.ask(_row())[0] for _ in range(2)] == [200, 200]
    repeats.close()


def test_quota_and_permission_hold_for_every_request(tmp_path: Path) -> None:
    make_package(tmp_path / "models" / "digits")
    app = AppSettings(name="camera", local=True, models=("digits",), requests_per_s=0.01, burst=3)
    with serving(tmp_path, ApiSettings(port=0, apps=(app,))) as device:
        repeats = Repeats(device.port)
        found = [repeats.ask(_row()) for _ in range(5)]
        repeats.close()
    assert [status for status, _, _ in found] == [200, 200, 200, 429, 429]
    assert "retry-after" in found[-1][1]


def test_many_rows_in_shared_memory_do_not_hold_the_event_loop_and_take_of_the_quota_once(tmp_path: Path) -> None:
    make_package(tmp_path / "models" / "digits")
    app = AppSettings(name="camera", local=True, control=True, requests_per_s=0.01, burst=6)
    path = Path("/dev/shm") / f"shoal-test-{secrets.token_hex(6)}"  # noqa: S108 - where shm_open(3) keeps its objects
    path.write_bytes(bytes(20 * 256))
    place = {"shared_memory_region": "r", "shared_memory_byte_size": 20 * 256}
    tensor = {"name": "image", "shape": [20, 64], "datatype": "FP32", "parameters": place}
    body = json.dumps({"inputs": [tensor]}).encode()
    try:
        with serving(tmp_path, ApiSettings(port=0, apps=(app,))) as device:
            region = {"key": path.name, "byte_size": 20 * 256}
            assert device.ask("POST", "/v2/systemsharedmemory/region/r/register", region)[0] == 200
            loaded = device.slots.get("digits")
            loaded.run_us = 1000.0  # quick for ten rows, not for twenty
            backend = loaded.backend = NotingBackend(loaded.backend)
            repeats = Repeats(device.port, {})
            found = [repeats.ask(body)[0] for _ in range(6)]
            repeats.close()
    finally:
        path.unlink()
    assert found == [200] * 5 + [429]  # registering was the first of six
    assert {name.partition("_")[0] for name in backend.threads} == {"errand"}


def test_a_stranger_that_repeats_itself_is_counted_once_each_time(tmp_path: Path) -> None:
    make_package(tmp_path / "models" / "digits")
    app = AppSettings(name="camera", token_sha256=hashlib.sha256(b"s3cret").hexdigest())
    with serving(tmp_path, ApiSettings(port=0, apps=(app,))) as device:
        repeats = Repeats(device.port)
        found = [repeats.ask(_row())[0] for _ in range(3)]
        repeats.close()
        text = device.ask("GET", "/metrics", headers={"Authorization": "Bearer s3cret"})[2].decode()
    assert found == [401] * 3
    assert "shoal_unknown_apps_total 3\n" in text
