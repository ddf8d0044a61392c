"""Inference over real sockets: answers, errors, limits, models that change meanwhile."""

from __future__ import annotations

import json
import socket
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_agent.config import ApiSettings
from edge_agent.contract.messages import MetricsReport, SampleBatch
from edge_agent.contract.topics import Stream
from edge_agent.runtime.slots import Slots, load
from tests.edge_agent.serving.conftest import Device
from tests.fakes.packages import answer, make_package, model_weights, reference_images
from tests.fakes.serving_device import serving

_INFER = "/v2/models/digits/infer"


def _body(pixels: float | None = None, **changes: Any) -> dict[str, Any]:
    data = reference_images(1).ravel().tolist() if pixels is None else [pixels] * 64
    tensor = {"name": "image", "shape": [1, 64], "datatype": "FP32", "data": data}
    return {"inputs": [{**tensor, **changes}]}


def _body_text(data: str) -> bytes:
    return b'{"inputs": [{"name": "image", "shape": [1, 64], "datatype": "FP32", "data": %b}]}' % data.encode()


_SENT_APART = {"name": "image", "shape": [1, 64], "datatype": "FP32", "parameters": {"binary_data_size": 256}}
_BINARY = json.dumps({"inputs": [_SENT_APART]}).encode()


def test_an_inference_answers_with_package_and_request_id(device: Device) -> None:
    status, body = device.ask_json("POST", f"{_INFER}?x=1", {**_body(), "id": "mine"})
    assert status == 200
    assert (body["model_name"], body["model_version"], body["id"]) == ("digits", "1", "mine")
    assert body["parameters"] == {"package": device.slots.get("digits").digest, "label_wanted": True}
    (output,) = body["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == ("probabilities", "FP32", [1, 10])
    expected = answer(*model_weights(), reference_images(1))
    np.testing.assert_allclose(np.reshape(output["data"], (1, 10)), expected, atol=1e-6)
    fresh = {device.ask_json("POST", _INFER, _body())[1]["id"] for _ in range(3)}
    assert len(fresh) == 3
    assert all(fresh)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"name": "picture"}, "input 'picture': name: the model has no such input; it has: image"),
        ({"shape": [1, 32], "data": [0.5] * 32}, "input 'image': shape: expected [-1, 64], got [1, 32]"),
        ({"datatype": "FP64"}, "input 'image': datatype: expected FP32, got FP64"),
        ({"data": [0.5] * 10 + [2.0] * 54}, "row 0: range: value 2.0 at [0, 10] is above the maximum 1"),
        ({"data": [None] * 64}, "is not nullable"),
        ({"data": [0.5] * 63}, "needs 64 elements, data has 63"),
    ],
)
def test_a_request_that_breaks_the_signature_gets_a_precise_400(
    device: Device, changes: dict[str, Any], text: str
) -> None:
    status, body = device.ask_json("POST", _INFER, _body(**changes))
    assert status == 400
    assert text in body["error"]
    device.monitor.flush()
    (report,) = device.sent(Stream.METRICS, MetricsReport)
    (metrics,) = report.models
    assert (metrics.requests, metrics.refused, metrics.failed) == (0, 1, 0)
    assert device.slots.get("digits").failed == 0


@pytest.mark.parametrize(
    ("body", "headers", "text"),
    [
        (b"", {}, "the body is empty"),
        (_body_text("[NaN, 1]"), {}, "JSON has no NaN and no infinities: send null for NaN"),
        (_body_text("[1, -Infinity]"), {}, "send null for NaN, or the tensor in binary"),
        (_body_text("[[nan]]"), {}, "send null for NaN, or the tensor in binary"),
        (_BINARY, {}, "binary_data_size is 256, but 0 bytes are left: say where the JSON ends, in the header"),
        (_BINARY + bytes(256), {}, "bytes after the JSON need the header Inference-Header-Content-Length"),
        (
            _BINARY + bytes(8),
            {"Inference-Header-Content-Length": str(len(_BINARY))},
            "but 8 bytes are left: tru",
        ),
        (b'{"inputs": [', {}, "the request's JSON"),
        (json.dumps(_body()).encode()[:200], {}, "the request's JSON"),
        (b"{}", {}, "missing required field `inputs`"),
        (b"[]", {}, "the request's JSON"),
        (b"{}", {"Inference-Header-Content-Length": "99"}, "but the body has 2 bytes: truncated?"),
        (b"{}", {"Inference-Header-Content-Length": "-1"}, "must be a length in bytes, got '-1'"),
        (b"{}", {"Inference-Header-Content-Length": "two"}, "must be a length in bytes"),
        (b"{}", {"Content-Encoding": "gzip"}, "the body is no gzip"),
        (b'{"inputs": []}', {}, "input 'image': name: the request lacks this input"),
    ],
)
def test_bytes_that_are_no_request_get_a_precise_400(
    shared: Device, body: bytes, headers: dict[str, str], text: str
) -> None:
    status, _, data = shared.ask("POST", _INFER, body, headers)
    assert status == 400
    assert text in json.loads(data)["error"]


def test_a_body_over_the_limit_is_refused_announced_or_not(shared: Device) -> None:
    status, body = shared.ask_json("POST", _INFER, b"x" * (1 << 20 | 1))
    assert status == 413
    assert "limit of 1048576 bytes" in body["error"]
    with socket.create_connection(("127.0.0.1", shared.port), timeout=30) as raw:
        raw.sendall(b"POST /v2/models/digits/infer HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(11):
            raw.sendall(b"186a0\r\n" + b"x" * 100_000 + b"\r\n")
        assert raw.recv(4096).startswith(b"HTTP/1.1 413")


def test_a_large_request_is_answered_in_json_and_in_binary(device: Device) -> None:
    images = reference_images(700)
    expected = answer(*model_weights(), images)
    tensor = {"name": "image", "shape": [700, 64], "datatype": "FP32"}
    status, body = device.ask_json("POST", _INFER, {"inputs": [{**tensor, "data": images.tolist()}]})
    assert status == 200
    np.testing.assert_allclose(np.reshape(body["outputs"][0]["data"], (700, 10)), expected, atol=1e-6)
    status, _, _ = device.ask("POST", _INFER, images.tobytes(), {"Inference-Header-Content-Length": "0"})
    assert status == 200
    assert device.ask_json("POST", "/v2/models/cats/infer", images.tobytes())[0] == 404


def test_requests_beyond_what_may_wait_are_told_when_to_ask_again(device: Device) -> None:
    """The test's device takes bodies of 1 MiB, and 2 MiB of them at once."""
    begun = f"POST {_INFER} HTTP/1.1\r\nhost: a\r\ncontent-length: 900000\r\n\r\n".encode() + b"{"
    with (
        socket.create_connection(("127.0.0.1", device.port), timeout=30) as first,
        socket.create_connection(("127.0.0.1", device.port), timeout=30) as second,
    ):
        first.sendall(begun)
        second.sendall(begun)
        until_busy = time.monotonic() + 30
        status, headers, data = device.ask("POST", _INFER, b" " * 900_000)
        while status != 503 and time.monotonic() < until_busy:  # the two have not been read yet
            status, headers, data = device.ask("POST", _INFER, b" " * 900_000)
        assert (status, headers["retry-after"]) == (503, "1")
        assert "max_body_mib under [api]" in json.loads(data)["error"]
        assert device.ask_json("POST", _INFER, _body())[0] == 200  # small ones go on
    status = 503
    while status == 503 and time.monotonic() < until_busy + 30:  # until their hanging up has been seen
        status = device.ask("POST", _INFER, b" " * 900_000)[0]
    assert status == 400


def test_only_so_many_requests_wait_for_a_slow_model(tmp_path: Path) -> None:
    make_package(tmp_path / "models" / "digits")
    with serving(tmp_path, ApiSettings(port=0, max_pending=2)) as slow:
        loaded = slow.slots.get("digits")
        loaded.inline = False
        entered, leave = threading.Semaphore(0), threading.Event()
        infer = loaded.backend.infer

        def wait(inputs: Any) -> Any:
            entered.release()
            leave.wait(30)
            return infer(inputs)

        loaded.backend.infer = wait  # type: ignore[method-assign]
        found: list[int] = []
        threads = [
            threading.Thread(target=lambda: found.append(slow.ask_json("POST", _INFER, _body())[0])) for _ in "ab"
        ]
        for thread in threads:
            thread.start()
        assert entered.acquire(timeout=30)
        assert entered.acquire(timeout=30)
        status, headers, data = slow.ask("POST", _INFER, _body())
        leave.set()
        for thread in threads:
            thread.join()
    assert (status, headers["retry-after"], found) == (503, "1", [200, 200])
    assert "2 requests are being worked on, the limit (max_pending under [api]" in json.loads(data)["error"]


def test_an_application_that_hangs_up_midway_leaves_no_trace(device: Device) -> None:
    with socket.create_connection(("127.0.0.1", device.port), timeout=30) as raw:
        raw.sendall(b"POST /v2/models/digits/infer HTTP/1.1\r\nhost: a\r\ncontent-length: 500\r\n\r\n{")
    assert device.ask_json("POST", _INFER, _body())[0] == 200
    assert device.slots.get("digits").requests == 1


def test_a_model_that_fails_is_a_500_and_counted_as_failed(device: Device) -> None:
    status, body = device.ask_json("POST", _INFER, _body(pixels=0.99))
    assert status == 500
    assert "model 'digits' version '1' failed on this input" in body["error"]
    assert device.ask_json("POST", _INFER, {**_body(pixels=0.99), "parameters": {"monitor": False}})[0] == 500
    loaded = device.slots.get("digits")
    assert (loaded.requests, loaded.failed) == (1, 1)
    device.monitor.flush()
    (report,) = device.sent(Stream.METRICS, MetricsReport)
    assert (report.models[0].requests, report.models[0].failed) == (0, 1)


def test_an_answer_does_not_depend_on_who_watches(
    device: Device, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def observe(*_request: Any, **_more: Any) -> bool:
        raise RuntimeError("a bug")

    monkeypatch.setattr(device.monitor, "observe", observe)
    status, body = device.ask_json("POST", _INFER, _body())
    assert (status, body["parameters"]["label_wanted"]) == (200, False)
    assert "RuntimeError: a bug" in caplog.text


def test_a_probe_is_answered_but_neither_counted_nor_sampled(device: Device) -> None:
    status, body = device.ask_json("POST", _INFER, {**_body(), "id": "probe", "parameters": {"monitor": False}})
    assert (status, body["parameters"]["label_wanted"]) == (200, False)
    device.monitor.flush()
    (report,) = device.sent(Stream.METRICS, MetricsReport)
    assert report.models == ()
    assert device.sent(Stream.SAMPLES, SampleBatch) == []
    assert device.slots.get("digits").requests == 0


def test_text_travels_as_json_and_as_binary(shared: Device) -> None:
    tensor = {"name": "text", "shape": [2, 1], "datatype": "BYTES", "data": ["né", "b"]}
    status, body = shared.ask_json("POST", "/v2/models/echo/infer", {"inputs": [tensor]})
    assert status == 200
    assert body["outputs"][0] == {"name": "echo", "datatype": "BYTES", "shape": [2, 1], "data": ["né", "b"]}
    head = {"inputs": [{**tensor, "parameters": {"binary_data_size": 12}}], "parameters": {"binary_data_output": True}}
    del head["inputs"][0]["data"]  # type: ignore[index]
    text = json.dumps(head).encode()
    raw = b"\x03\0\0\0n\xc3\xa9\x01\0\0\0b"
    headers = {"Inference-Header-Content-Length": str(len(text))}
    status, answered, data = shared.ask("POST", "/v2/models/echo/infer", text + raw, headers)
    assert (status, answered["content-type"]) == (200, "application/octet-stream")
    assert data[int(answered["inference-header-content-length"]) :].startswith(raw)


def test_text_that_is_no_utf8_is_the_callers_fault(shared: Device) -> None:
    size = {"binary_data_size": 5}
    head = {"inputs": [{"name": "text", "shape": [1, 1], "datatype": "BYTES", "parameters": size}]}
    text = json.dumps(head).encode()
    headers = {"Inference-Header-Content-Length": str(len(text))}
    status, _, data = shared.ask("POST", "/v2/models/echo/infer", text + b"\x01\0\0\0\xff", headers)
    assert status == 400
    assert "no UTF-8 text" in json.loads(data)["error"]


def test_an_answer_goes_out_in_one_write(shared: Device) -> None:
    """Header and body in two writes would meet delayed acknowledgements: 43 ms instead of 0.1."""
    request = b"GET /v2/models/digits HTTP/1.1\r\nhost: a\r\n\r\n"
    with socket.create_connection(("127.0.0.1", shared.port), timeout=30) as raw:
        for _ in range(50):
            raw.sendall(request)
            head, _, body = raw.recv(65536).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            assert json.loads(body)["name"] == "digits"


def test_models_are_swapped_under_load_with_no_failed_request(device: Device, tmp_path: Path) -> None:
    packages = [make_package(tmp_path / f"swap{n}", version=str(n), seed=n) for n in (2, 3)]
    rows = {"1": 0, "2": 2, "3": 3}
    images = reference_images(1)
    expected = {version: answer(*model_weights(seed), images)[0] for version, seed in rows.items()}
    body = json.dumps(_body()).encode()
    failures: list[str] = []
    seen: set[str] = set()
    done = threading.Event()

    def apply() -> None:
        while not done.is_set():
            status, _, data = device.ask("POST", _INFER, body)
            answered = json.loads(data)
            if status != 200:
                failures.append(answered["error"])
                continue
            version = answered["model_version"]
            seen.add(version)
            if not np.allclose(answered["outputs"][0]["data"], expected[version], atol=1e-5):
                failures.append(f"version {version} gave another version's answer")

    def slow(slots: Slots, turn: int) -> None:
        loaded = load(packages[turn % 2])
        loaded.inline = turn % 3 != 0  # some on the loop's thread, some in the executor
        slots.install(loaded)

    threads = [threading.Thread(target=apply) for _ in range(4)]
    for thread in threads:
        thread.start()
    for turn in range(40):
        slow(device.slots, turn)
    done.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert {"2", "3"} <= seen
