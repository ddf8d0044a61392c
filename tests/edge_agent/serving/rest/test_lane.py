"""Requests that meet in one turn of the event loop run as one, and nobody can tell by the answers."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_agent.config import ApiSettings, AppSettings
from edge_agent.contract.messages import MetricsReport, ProfileReport, SampleBatch
from edge_agent.contract.sampling import SamplingPolicy
from edge_agent.contract.topics import Stream
from edge_agent.runtime.backend import InferenceBackend
from edge_agent.runtime.slots import LoadedModel, load
from edge_agent.serving.rest import lane
from tests.edge_agent.serving.http.device import Client
from tests.fakes.packages import INPUT, make_package, reference_images
from tests.fakes.serving_device import EVERYTHING, Device, serving

_PATH = "/v2/models/digits/infer"
NOTHING = SamplingPolicy(samples_per_minute=0, labels_per_minute=0)


class Gate:
    """Another backend, which notes the rows of its runs, and holds up one run of a row when told to."""

    def __init__(self, backend: InferenceBackend) -> None:
        self._backend = backend
        self.platform, self.signature = backend.platform, backend.signature
        self.cancel, self.close = backend.cancel, backend.close
        self.rows: list[int] = []
        self.holds, self.opened = threading.Event(), threading.Event()
        self.entered = threading.Event()
        self.pause_s = 0.0

    def infer(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        self.rows.append(len(inputs[INPUT]))
        if self.holds.is_set():
            self.holds.clear()
            self.entered.set()
            assert self.opened.wait(20)
        time.sleep(self.pause_s)
        return self._backend.infer(inputs)


def body(image: NDArray[np.float32], outputs: list[dict[str, Any]] | None = None, **parameters: Any) -> bytes:
    tensor = {"name": INPUT, "shape": [1, 64], "datatype": "FP32", "parameters": {"binary_data_size": 256}}
    head: dict[str, Any] = {"inputs": [tensor], "parameters": {"binary_data_output": True, **parameters}}
    if outputs is not None:
        head["outputs"] = outputs
    return json.dumps(head).encode().ljust(300) + image.astype(np.float32).tobytes()


def post(data: bytes) -> bytes:
    length = len(data) - 256
    head = f"POST {_PATH} HTTP/1.1\r\nHost: x\r\nInference-Header-Content-Length: {length}\r\n"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


class Crowd:
    """Connections that send so that all but the first are read in one turn of the loop."""

    def __init__(self, device: Device, count: int, gate: Gate) -> None:
        self._gate = gate
        self.first, *self.clients = [
            Client(socket.create_connection(("127.0.0.1", device.port), timeout=30)) for _ in range(count + 1)
        ]
        for client in (self.first, *self.clients):
            for _ in range(2):
                assert client.ask(post(body(reference_images(1)))).status == 200

    def ask(self, bodies: Sequence[bytes]) -> list[tuple[int, bytes]]:
        """One of each client, all at once: statuses and bodies."""
        gate = self._gate
        gate.entered.clear()
        gate.opened.clear()
        gate.holds.set()
        self.first.send(post(body(reference_images(1))))
        assert gate.entered.wait(20)  # the loop stands still now
        for client, data in zip(self.clients, bodies, strict=True):
            client.send(post(data))
        gate.rows.clear()
        gate.opened.set()
        self.first.answer()
        return [(found.status, found.body) for found in (client.answer() for client in self.clients)]

    def close(self) -> None:
        for client in (self.first, *self.clients):
            client.socket.close()


def gated(device: Device) -> tuple[LoadedModel, Gate]:
    loaded = device.slots.get("digits")
    loaded.backend = gate = Gate(loaded.backend)
    return loaded, gate


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    make_package(tmp_path / "models" / "digits", sampling=NOTHING)
    with serving(tmp_path) as device:
        yield device


def without_id(answer: bytes) -> bytes:
    begin = answer.index(b'"id":"') + 6
    return answer[:begin] + answer[answer.index(b'"', begin) :]


def test_requests_that_meet_run_as_one_and_each_has_the_very_bytes_it_had_alone(device: Device) -> None:
    loaded, gate = gated(device)
    assert loaded.together > 8
    images = reference_images(8, seed=3)
    bodies = [body(images[row : row + 1]) for row in range(8)]
    crowd = Crowd(device, 8, gate)
    alone = [crowd.first.ask(post(data)).body for data in bodies]
    found = crowd.ask(bodies)
    crowd.close()
    assert gate.rows == [8]
    assert [status for status, _ in found] == [200] * 8
    assert [without_id(data) for _, data in found] == [without_id(data) for data in alone]
    assert len({data for _, data in found}) == 8
    counts = loaded.statistics.snapshot()
    assert counts.batches[8][0] == 1
    assert counts.success_count == counts.rows == sum(counts.latency) == 2 * 9 + 8 + 1 + 8
    device.monitor.flush()
    (metrics,) = device.sent(Stream.METRICS, MetricsReport)[0].models
    assert (metrics.requests, metrics.rows, sum(metrics.latency_counts)) == (35, 35, 35)
    assert sum(report.rows for report in device.sent(Stream.PROFILES, ProfileReport)) == 35


def test_one_that_is_wrong_and_one_that_fails_have_their_own_errors(tmp_path: Path) -> None:
    make_package(tmp_path / "models" / "digits", sampling=NOTHING, fails_above=0.95)
    with serving(tmp_path) as device:
        loaded, gate = gated(device)
        crowd = Crowd(device, 4, gate)
        right = body(reference_images(1, seed=4))
        for pixels, status in ((2.0, 400), (0.99, 500)):
            wrong = body(np.full((1, 64), pixels, np.float32))
            assert [each for each, _ in crowd.ask([right, wrong, right, right])] == [200, status, 200, 200]
            assert gate.rows[-3:] == [1, 1, 1]
        bytes_of_no_request = b"{" * (len(right) - 256) + right[-256:]
        assert [each for each, _ in crowd.ask([right, right, bytes_of_no_request, right])] == [200, 200, 400, 200]
        crowd.close()
        counts = loaded.statistics.snapshot()
        assert (counts.refused, counts.fail_count, counts.success_count) == (2, 1, 2 * 5 + 3 + 9)


def test_requests_that_want_other_outputs_run_apart(device: Device) -> None:
    _, gate = gated(device)
    image = reference_images(1, seed=5)
    best = body(image, [{"name": "probabilities", "parameters": {"classification": 1, "binary_data": False}}])
    plain = body(image)
    crowd = Crowd(device, 5, gate)
    for _ in range(2):
        crowd.first.ask(post(best))
    found = crowd.ask([plain, best, plain, best, plain])
    crowd.close()
    assert gate.rows == [3, 2]
    assert without_id(found[0][1]) == without_id(found[2][1]) == without_id(found[4][1])
    assert json.loads(found[1][1])["outputs"] == json.loads(found[3][1])["outputs"] != []


def test_labels_are_asked_for_and_samples_taken_as_of_requests_that_come_alone(tmp_path: Path) -> None:
    make_package(tmp_path / "models" / "digits", sampling=EVERYTHING)
    with serving(tmp_path) as device:
        _, gate = gated(device)
        crowd = Crowd(device, 6, gate)
        images = reference_images(6, seed=6)
        found = crowd.ask([body(images[row : row + 1]) for row in range(6)])
        crowd.close()
        assert gate.rows == [6]
        documents = [json.JSONDecoder().raw_decode(data.decode("latin-1"))[0] for _, data in found]
        assert all(document["parameters"]["label_wanted"] for document in documents)
        device.monitor.flush()
        samples = [sample for batch in device.sent(Stream.SAMPLES, SampleBatch) for sample in batch.samples]
        assert {document["id"] for document in documents} <= {sample.request_id for sample in samples}
        device.monitor.feedback(device.slots.get("digits"), documents[3]["id"], "3", "test")


def test_a_model_that_is_not_the_same_in_company_runs_each_by_itself(device: Device) -> None:
    loaded, gate = gated(device)
    loaded.together = 1
    crowd = Crowd(device, 4, gate)
    crowd.ask([body(reference_images(1))] * 4)
    crowd.close()
    assert gate.rows == [1] * 4


def test_whoever_sends_no_more_is_answered_all_the_same(device: Device) -> None:
    loaded, gate = gated(device)
    loaded.together = 1
    crowd = Crowd(device, 4, gate)
    images = reference_images(4, seed=7)
    alone = [without_id(crowd.first.ask(post(body(images[row : row + 1]))).body) for row in range(4)]
    gate.holds.set()
    crowd.first.send(post(body(images[:1])))
    assert gate.entered.wait(20)  # the loop stands still now
    for row, client in enumerate(crowd.clients):
        client.send(post(body(images[row : row + 1])))
        client.socket.shutdown(socket.SHUT_WR)
    gate.opened.set()
    assert [without_id(client.answer().body) for client in crowd.clients] == alone
    crowd.close()
    counts = loaded.statistics.snapshot()
    assert counts.success_count == 2 * 5 + 4 + 1 + 4


def test_what_finds_no_room_to_wait_is_answered_at_once(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    _, gate = gated(device)
    crowd = Crowd(device, 5, gate)
    monkeypatch.setattr(lane, "_WAITING_BYTES", 3 * len(body(reference_images(1))))
    images = reference_images(5, seed=8)
    bodies = [body(images[row : row + 1]) for row in range(5)]
    alone = [without_id(crowd.first.ask(post(data)).body) for data in bodies]
    found = crowd.ask(bodies)
    crowd.close()
    assert gate.rows == [1, 1, 3]
    assert [without_id(data) for _, data in found] == alone


def test_no_run_is_larger_than_what_was_proven(device: Device) -> None:
    loaded, gate = gated(device)
    loaded.together = 3
    crowd = Crowd(device, 7, gate)
    assert [status for status, _ in crowd.ask([body(reference_images(1))] * 7)] == [200] * 7
    crowd.close()
    assert gate.rows == [2, 2, 3]


def test_a_model_that_was_replaced_this_very_moment_answers_all_of_them(device: Device, tmp_path: Path) -> None:
    _, gate = gated(device)
    crowd = Crowd(device, 3, gate)
    second = load(make_package(tmp_path / "second", seed=1, sampling=NOTHING))
    device.slots.install(second)
    second.backend = gate = crowd._gate = Gate(second.backend)
    found = crowd.ask([body(reference_images(1))] * 3)
    crowd.close()
    assert all(second.digest.encode() in data for _, data in found)
    assert [status for status, _ in found] == [200] * 3


@pytest.mark.parametrize("together", [1, 2])
def test_whose_time_is_over_before_its_turn_is_told_so_and_not_run(device: Device, together: int) -> None:
    loaded, gate = gated(device)
    loaded.together = together
    crowd = Crowd(device, 4, gate)
    images = reference_images(4, seed=9)
    assert crowd.first.ask(post(body(images[:1], timeout=20_000))).status == 200
    gate.pause_s = 0.05
    found = crowd.ask([body(images[row : row + 1], timeout=20_000) for row in range(4)])
    crowd.close()
    assert [status for status, _ in found] == [200] * together + [504] * (4 - together)
    assert b"and the request allows 20 ms; not run" in found[-1][1]
    assert gate.rows == [together]
    assert loaded.statistics.snapshot().fail_count == 4 - together


def test_quota_holds_for_each_of_them(tmp_path: Path) -> None:
    make_package(tmp_path / "models" / "digits", sampling=NOTHING)
    app = AppSettings(name="camera", local=True, models=("digits",), requests_per_s=0.01, burst=2 * 5 + 1 + 2)
    with serving(tmp_path, ApiSettings(port=0, apps=(app,))) as device:
        _, gate = gated(device)
        crowd = Crowd(device, 4, gate)
        found = crowd.ask([body(reference_images(1))] * 4)
        crowd.close()
    assert sorted(status for status, _ in found) == [200, 200, 429, 429]


def test_requests_of_a_model_that_is_gone_are_told_so(device: Device) -> None:
    _, gate = gated(device)
    crowd = Crowd(device, 3, gate)
    device.slots.remove("digits")
    for client in crowd.clients:
        client.send(post(body(reference_images(1))))
    assert [client.answer().status for client in crowd.clients] == [404] * 3
    crowd.close()
