"""Inference over real sockets: every form that tensors may travel in, and what goes wrong on the way."""

from __future__ import annotations

import gzip
import json
import secrets
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http
import tritonclient.utils.shared_memory as shm
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from edge_agent.serving.compression import SMALLEST_BYTES
from tests.edge_agent.serving.conftest import Device, make_models
from tests.fakes.packages import answer, make_package, model_weights, reference_images
from tests.fakes.serving_device import serving

INFER = "/v2/models/digits/infer"


@pytest.fixture
def client(shared: Device) -> Iterator[Any]:
    client = tritonclient.http.InferenceServerClient(f"127.0.0.1:{shared.port}")
    yield client
    client.close()


@pytest.fixture
def region() -> Iterator[tuple[str, Any]]:
    """The key of 8,192 bytes of shared memory, and tritonclient's handle of them."""
    key = f"/shoal-test-{secrets.token_hex(6)}"
    handle = shm.create_shared_memory_region("r", key, 8192)
    yield key, handle
    shm.destroy_shared_memory_region(handle)


def _expected(images: NDArray[np.float32]) -> NDArray[np.float32]:
    return answer(*model_weights(), images)


def _images(rows: int) -> tuple[NDArray[np.float32], Any]:
    images = np.resize(reference_images(100), (rows, 64))
    given = tritonclient.http.InferInput("image", [rows, 64], "FP32")
    given.set_data_from_numpy(images)
    return images, given


def _asking(rows: int = 1, **changes: Any) -> dict[str, Any]:
    data = np.resize(reference_images(100), (rows, 64)).ravel().tolist()
    return {"inputs": [{"name": "image", "shape": [rows, 64], "datatype": "FP32", "data": data}], **changes}


@pytest.mark.parametrize("rows", [1, 500])
@pytest.mark.parametrize("packed", ["gzip", "deflate", None])
@pytest.mark.parametrize("answered", ["gzip", "deflate", None])
def test_tritonclient_packs_requests_and_unpacks_answers(
    client: Any, rows: int, packed: str | None, answered: str | None
) -> None:
    images, given = _images(rows)
    result = client.infer(
        "digits", [given], request_compression_algorithm=packed, response_compression_algorithm=answered
    )
    np.testing.assert_allclose(result.as_numpy("probabilities"), _expected(images), atol=1e-6)


@pytest.mark.parametrize(("rows", "binary"), [(2, True), (500, True), (500, False)])
def test_answers_are_packed_only_where_it_is_asked_for_and_worth_it(shared: Device, rows: int, binary: bool) -> None:
    body = _asking(rows, id="i", parameters={"binary_data_output": binary})
    _, plain, data = shared.ask("POST", INFER, body)
    status, headers, packed = shared.ask("POST", INFER, body, {"Accept-Encoding": "gzip;q=0.8"})
    assert status == 200
    assert "content-encoding" not in plain
    assert headers.get("content-encoding") == ("gzip" if len(data) > SMALLEST_BYTES else None)
    unpacked = gzip.decompress(packed) if len(data) > SMALLEST_BYTES else packed
    length = int(headers.get("inference-header-content-length", 0))
    assert unpacked[length:] == data[len(data) - len(unpacked[length:]) :]
    assert headers["content-type"] == ("application/octet-stream" if binary else "application/json")
    # What HTTP libraries offer by themselves is no wish, where the application is on the same machine.
    assert "content-encoding" not in shared.ask("POST", INFER, body, {"Accept-Encoding": "gzip, deflate"})[1]


def test_encodings_that_are_not_known_are_a_415_that_names_those_that_are(shared: Device) -> None:
    status, headers, body = shared.ask("POST", INFER, _asking(), {"Content-Encoding": "br"})
    assert (status, headers["accept-encoding"]) == (415, "gzip, deflate")
    assert "'br' is not known here; send one of: gzip, deflate, identity" in json.loads(body)["error"]


def test_a_bomb_is_a_413_and_damage_a_400(shared: Device) -> None:
    bomb = gzip.compress(b" " * 50_000_000)
    status, _, body = shared.ask("POST", INFER, bomb, {"Content-Encoding": "gzip"})
    assert status == 413
    assert "more than 1048576 bytes once it is unpacked" in json.loads(body)["error"]
    packed = zlib.compress(json.dumps(_asking()).encode())
    status, _, body = shared.ask("POST", INFER, packed[:-5], {"Content-Encoding": "deflate"})
    assert (status, "truncated" in json.loads(body)["error"]) == (400, True)


@pytest.mark.parametrize("rows", [1, 100])  # 1 KB as JSON, and 130 KB
def test_many_packed_bodies_at_once_are_all_answered(shared: Device, rows: int) -> None:
    body = gzip.compress(json.dumps(_asking(rows)).encode())
    with ThreadPoolExecutor(24) as threads:
        asked = [threads.submit(shared.ask, "POST", INFER, body, {"Content-Encoding": "gzip"}) for _ in range(96)]
    assert {answered.result()[0] for answered in asked} == {200}


@pytest.mark.parametrize("rows", [1, 20, 1000])
def test_a_raw_body_of_one_tensor_is_answered_in_binary(shared: Device, rows: int) -> None:
    images, _ = _images(rows)
    status, headers, body = shared.ask("POST", INFER, images.tobytes(), {"Inference-Header-Content-Length": "0"})
    assert status == 200
    found = np.frombuffer(body[int(headers["inference-header-content-length"]) :], np.float32)
    np.testing.assert_allclose(found.reshape(rows, 10), _expected(images), atol=1e-6)


@pytest.mark.parametrize(
    ("length", "text"),
    [
        ("99999", "truncated"),
        ("-1", "must be a length in bytes, got '-1'"),
        ("1e3", "must be a length in bytes"),
        ("5", "the request's JSON"),
        ("9" * 30, "must be a length in bytes"),
    ],
)
def test_a_lying_header_length_is_a_400(shared: Device, length: str, text: str) -> None:
    status, _, body = shared.ask("POST", INFER, _asking(), {"Inference-Header-Content-Length": length})
    assert status == 400
    assert text in json.loads(body)["error"]


def test_json_and_binary_inputs_and_outputs_mix(shared: Device) -> None:
    body = _asking(3, outputs=[{"name": "probabilities", "parameters": {"binary_data": True}}])
    data = json.dumps(body).encode()
    status, headers, found = shared.ask("POST", INFER, data, {"Inference-Header-Content-Length": str(len(data))})
    assert status == 200
    raw = np.frombuffer(found[int(headers["inference-header-content-length"]) :], np.float32)
    np.testing.assert_allclose(raw.reshape(3, 10), _expected(_images(3)[0]), atol=1e-6)


@pytest.mark.parametrize("wrong", ["NaN", "Infinity", "-Infinity", "null", '"nan"'])
def test_numbers_that_are_none_are_refused(shared: Device, wrong: str) -> None:
    body = json.dumps(_asking()).encode().replace(b'"data": [', b'"data": [' + wrong.encode() + b", ", 1)
    body = body[: body.rindex(b",")] + b"]}]}"
    status, answered = shared.ask_json("POST", INFER, body)
    assert status == 400, answered


def test_nan_in_binary_is_refused_by_row(shared: Device) -> None:
    images = _images(3)[0].copy()
    images[2, 5] = np.nan
    status, _, body = shared.ask("POST", INFER, images.tobytes(), {"Inference-Header-Content-Length": "0"})
    assert status == 400
    assert "input 'image', row 2" in json.loads(body)["error"]


def test_tritonclient_uses_shared_memory_both_ways(client: Any, region: tuple[str, Any]) -> None:
    key, handle = region
    images, given = _images(4)
    client.unregister_system_shared_memory()
    client.register_system_shared_memory("r", key, 8192)
    assert client.get_system_shared_memory_status() == [{"name": "r", "key": key, "offset": 0, "byte_size": 8192}]
    assert client.get_system_shared_memory_status("r") == client.get_system_shared_memory_status()
    shm.set_shared_memory_region(handle, [images], offset=100)
    given.set_shared_memory("r", images.nbytes, offset=100)
    wanted = tritonclient.http.InferRequestedOutput("probabilities")
    wanted.set_shared_memory("r", 160, offset=4000)
    result = client.infer("digits", [given], outputs=[wanted])
    assert result.get_output("probabilities")["shape"] == [4, 10]
    found = shm.get_contents_as_numpy(handle, np.float32, [4, 10], offset=4000)
    np.testing.assert_allclose(found, _expected(images), atol=1e-6)
    wanted.set_shared_memory("r", 159)
    with pytest.raises(InferenceServerException, match="takes 160 bytes, the request gives it 159 in shared memory"):
        client.infer("digits", [given], outputs=[wanted])
    given.set_shared_memory("r", images.nbytes, offset=8000)
    with pytest.raises(InferenceServerException, match="the region has 8192"):
        client.infer("digits", [given])
    client.unregister_system_shared_memory("r")
    with pytest.raises(InferenceServerException, match="'r' is not registered"):
        client.infer("digits", [given])
    with pytest.raises(InferenceServerException, match="'r' is not registered") as caught:
        client.get_system_shared_memory_status("r")
    assert caught.value.status() == "404"


@pytest.mark.parametrize("key", ["/../etc/passwd", "etc/passwd", "/gone"])
def test_keys_that_lead_elsewhere_are_refused(client: Any, key: str) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.register_system_shared_memory("r", key, 1)
    assert caught.value.status() == "400"


def test_cuda_shared_memory_is_answered_though_there_is_none(client: Any) -> None:
    client.unregister_cuda_shared_memory()
    client.unregister_cuda_shared_memory("r")
    assert client.get_cuda_shared_memory_status() == []
    with pytest.raises(InferenceServerException, match="system memory only"):
        client.register_cuda_shared_memory("r", "aGFuZGxl", 0, 8)


def test_a_classifier_tells_its_best_classes(client: Any) -> None:
    images, given = _images(2)
    wanted = tritonclient.http.InferRequestedOutput("probabilities", class_count=2)
    found = client.infer("digits", [given], outputs=[wanted]).as_numpy("probabilities")
    for row, expected in zip(found, _expected(images), strict=True):
        best = np.argsort(-expected, kind="stable")[:2]
        assert [text.decode().split(":")[1:] for text in row] == [[str(index), str(index)] for index in best]
        assert float(row[0].decode().split(":")[0]) == pytest.approx(expected[best[0]], abs=1e-5)


def test_priority_and_timeout_are_taken_and_sequences_are_not(client: Any) -> None:
    _, given = _images(1)
    client.infer("digits", [given], priority=1, timeout=10_000_000)
    with pytest.raises(InferenceServerException, match="stateful sequences") as caught:
        client.infer("digits", [given], sequence_id=4, sequence_start=True)
    assert caught.value.status() == "501"


@pytest.mark.parametrize("rows", [1, 100])
def test_a_model_that_sleeps_is_woken_by_the_requests_for_it(tmp_path: Path, rows: int) -> None:
    make_models(tmp_path)
    with serving(tmp_path) as device, ThreadPoolExecutor(8) as threads:
        assert device.slots.unload("digits", reason="idle", idle_since=time.monotonic() + 1) is not None
        answers = list(threads.map(lambda _: device.ask_json("POST", INFER, _asking(rows)), range(8)))
        assert [status for status, _ in answers] == [200] * 8
        device.repository.unload("digits")
        status, body = device.ask_json("POST", INFER, _asking(rows))
        assert status == 503, body


def test_a_slower_model_answers_every_form_in_threads(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    make_package(tmp_path / "models" / "digits")
    with serving(tmp_path) as device:
        device.slots.get("digits").inline = False
        small = device.ask_json("POST", INFER, _asking(2, id="i"))[1]
        large = device.ask_json("POST", INFER, _asking(400, id="i"))[1]
        assert large["outputs"][0]["shape"] == [400, 10]
        assert large["outputs"][0]["data"][:20] == pytest.approx(small["outputs"][0]["data"], abs=1e-6)
        images = _images(400)[0]
        status, headers, body = device.ask(
            "POST", INFER, gzip.compress(images.tobytes()),
            {"Inference-Header-Content-Length": "0", "Content-Encoding": "gzip", "Accept-Encoding": "deflate"},
        )  # fmt: skip
        raw = zlib.decompress(body)[int(headers["inference-header-content-length"]) :]
        np.testing.assert_allclose(np.frombuffer(raw, np.float32).reshape(-1, 10), _expected(images), atol=1e-6)
        status, body_ = device.ask_json("POST", INFER, b"[" * 100_000)
        assert status == 400, body_
