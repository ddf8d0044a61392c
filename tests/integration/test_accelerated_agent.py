"""An agent process on a machine with a GPU, from the first start over an update to an engine that fails.

The driver is a stub without a GPU and TensorRT its stand-in; all else is real: processes, sockets, pycuda, packages.
"""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest

from edge_agent.contract.manifest import Batching
from tests.e2e.running_agent import Agent, agent, until
from tests.fakes.cuda_driver import StubDriver, can_build
from tests.fakes.packages import INPUT, OUTPUT, answer, make_package, model_weights, reference_images

# `import tensorrt` finds the stand-in.
_SHIM = "from tests.fakes.tensorrt_module import *\nfrom tests.fakes.tensorrt_module import __version__\n"
_SETTINGS = """
[runtime]
models = "{models}"
[accelerator]
use = "tensorrt"
precisions = ["fp32"]
"""


class Device:
    """The agent and what it is asked."""

    def __init__(self, one: Agent, models: Path) -> None:
        self.agent, self.models = one, models

    def add(self, version: str) -> None:
        make_package(self.models / version, version=version, seed=int(version), batching=Batching(max_rows=8))

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        connection = http.client.HTTPConnection(self.agent.address, timeout=30)
        try:
            connection.request(method, path, body=None if body is None else json.dumps(body))
            answered = connection.getresponse()
            text = answered.read()
            assert answered.status == 200, (path, answered.status, text)
            return json.loads(text)
        finally:
            connection.close()

    def reason(self, version: str) -> str:
        index = self.ask("POST", "/v2/repository/index")
        (entry,) = (each for each in index if each["version"] == version)
        assert entry["state"] == "READY"
        return str(entry["reason"])

    def runtime(self, version: str) -> str:
        return str(self.ask("GET", f"/v2/models/digits/versions/{version}")["parameters"]["runtime"])

    def infer(self, version: str, rows: int = 3) -> None:
        """Ask, and check the answer's numbers."""
        images = reference_images(rows)
        tensor = {"name": INPUT, "shape": [rows, 64], "datatype": "FP32", "data": images.ravel().tolist()}
        answered = self.ask("POST", f"/v2/models/digits/versions/{version}/infer", {"inputs": [tensor]})
        (output,) = answered["outputs"]
        assert output["name"] == OUTPUT
        expected = answer(*model_weights(int(version)), images)
        assert np.allclose(np.reshape(output["data"], (rows, 10)), expected, rtol=1e-2, atol=1e-2)

    def requests(self, version: str) -> int:
        (stats,) = self.ask("GET", f"/v2/models/digits/versions/{version}/stats")["model_stats"]
        assert stats["inference_stats"]["fail"]["count"] == 0
        return int(stats["inference_stats"]["success"]["count"])


class Load:
    """A thread that asks without a pause, until it is left."""

    def __init__(self, device: Device, version: str) -> None:
        self.answered, self.failures = 0, list[str]()
        self._device, self._version, self._done = device, version, threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        assert self.failures == []
        assert self.answered > 0

    def _ask(self) -> None:
        while not self._done.wait(0.002):
            try:
                self._device.infer(self._version, rows=1 + self.answered % 20)  # beyond a batch's 8 rows too
            except Exception as error:  # noqa: BLE001 - any failure at all is what this looks for
                self.failures.append(repr(error))
            self.answered += 1


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    if not can_build() or importlib.util.find_spec("pycuda") is None:
        pytest.skip("no gcc or no pycuda here: the agent over the driver without a GPU was NOT run")
    (tmp_path / "driver").mkdir()
    (tmp_path / "modules").mkdir()
    driver = StubDriver.build(tmp_path / "driver")
    (tmp_path / "modules" / "tensorrt.py").write_text(_SHIM)
    repository = Path(__file__).parents[2]
    for name, value in driver.environment(integrated=1).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(tmp_path / "modules"), str(repository))))
    models = tmp_path / "models"
    models.mkdir()
    with agent(tmp_path / "state") as one:
        one.settings.write_text(one.settings.read_text() + _SETTINGS.format(models=models))
        yield Device(one, models)


def test_an_agent_serves_while_it_builds_swaps_starts_on_the_engine_refits_and_falls_back(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    device.add("1")
    monkeypatch.setenv("SHOAL_FAKE_TENSORRT_BUILD_S", "3")
    device.agent.start()
    seen: set[str] = set()

    def runs_on_engine() -> bool:
        seen.add(device.reason("1"))
        return device.runtime("1") == "tensorrt"

    with Load(device, "1") as load:
        until(runs_on_engine, "the engine to take over")
        after = load.answered
        until(lambda: load.answered > after + 20, "requests on the engine")
    assert device.requests("1") == load.answered, "counted through, before and after the swap"
    building = [text for text in seen if text.startswith("building a TensorRT fp32 engine (")]
    assert any(text.endswith(" %") for text in building), seen
    assert "tensorrt fp32: " in device.reason("1")
    config = device.ask("GET", "/v2/models/digits/config")
    assert (config["platform"], config["instance_group"][0]["kind"]) == ("tensorrt_plan", "KIND_GPU")

    # A start: on the engine with the first answer.
    assert device.agent.stop() == 0
    monkeypatch.setenv("SHOAL_FAKE_TENSORRT_BUILD_S", "3600")
    device.agent.start()
    assert device.runtime("1") == "tensorrt"
    device.infer("1")

    # A version with other weights: refitted in seconds, where a build would take an hour.
    device.add("2")
    device.ask("POST", "/v2/repository/models/digits/load", {"parameters": {"version": "2"}})
    with Load(device, "2"):
        until(lambda: device.runtime("2") == "tensorrt", f"the refitted engine; {device.agent.log}")
        device.infer("2")
    assert "digits 2: tensorrt fp32 engine refitted" in device.agent.log

    # A GPU that fails: every request is answered all the same.
    assert device.agent.stop() == 0
    monkeypatch.setenv("SHOAL_FAKE_TENSORRT_EXECUTE", "error")
    device.agent.start()
    assert device.runtime("2") == "onnxruntime-cpu"
    device.infer("2")
    assert "tensorrt fp32 could not be used" in device.agent.log
    assert device.agent.stop() == 0
    assert "Traceback" not in device.agent.log


@pytest.mark.parametrize(
    ("stub", "said"),
    [
        ({"INIT_ERROR": "100"}, "CUDA_ERROR_NO_DEVICE"),
        ({"DRIVER_VERSION": "11040"}, "older than 12.0"),
        ({"CRASH": "cuInit"}, "SIGABRT"),
        ({"FAIL": "cuDevicePrimaryCtxRetain=2"}, "cannot be opened"),
    ],
)
def test_a_driver_that_is_of_no_use_is_said_and_the_agent_serves(
    device: Device, monkeypatch: pytest.MonkeyPatch, stub: dict[str, str], said: str
) -> None:
    for name, value in stub.items():
        monkeypatch.setenv(f"SHOAL_STUB_CUDA_{name}", value)
    device.add("1")
    device.agent.start()
    device.infer("1")
    until(lambda: said in device.reason("1"), "the reason in the index")
    assert device.runtime("1") == "onnxruntime-cpu"
    assert device.agent.log.count("models run on onnxruntime-cpu: ") == 1


def test_a_gpu_that_breaks_down_under_load_fails_no_request_and_the_agent_lives(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOAL_STUB_CUDA_INTEGRATED", "0")
    device.add("1")
    device.agent.start()
    until(lambda: device.runtime("1") == "tensorrt", "the engine to take over")
    assert device.agent.stop() == 0
    monkeypatch.setenv("SHOAL_STUB_CUDA_FAIL_AFTER", "500")
    device.agent.start()
    assert device.runtime("1") == "tensorrt"
    with Load(device, "1") as load:
        until(lambda: device.runtime("1") == "onnxruntime-cpu", "the GPU to break down")
        after = load.answered
        until(lambda: load.answered > after + 20, "requests after it")
    assert device.requests("1") == load.answered
    assert "tensorrt fp32 failed while it served: " in device.reason("1")
    # What is loaded again finds the GPU still broken, and serves all the same.
    device.ask("POST", "/v2/repository/models/digits/load", {})
    device.infer("1")
    assert device.runtime("1") == "onnxruntime-cpu"
    assert device.agent.stop() == 0
    assert "Traceback" not in device.agent.log, device.agent.log


def test_the_real_tensorrt_rtx_on_a_driver_without_a_gpu_says_why_it_builds_nothing(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("TensorRT-RTX is not installed (`make gpu-parts` does): the agent over it was NOT run")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))  # without the stand-in
    device.add("1")
    device.agent.start()
    device.infer("1")
    until(lambda: "tensorrt-rtx fp32 is not used: " in device.reason("1"), "the reason in the index")
    device.infer("1")
    assert device.runtime("1") == "onnxruntime-cpu"
    assert device.agent.stop() == 0
    assert "Traceback" not in device.agent.log
