"""Large bodies: raw numbers for a quick model are answered on the event loop's thread, all else in others."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_agent.config import ApiSettings
from edge_agent.serving.codec import encode_response
from edge_agent.serving.rest import infer
from tests.fakes.noting_backend import NotingBackend
from tests.fakes.packages import INPUT, OUTPUT, make_package, reference_images
from tests.fakes.serving_device import Device, serving

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
