"""Index, load and unload, over real sockets and through Triton's client."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.http
from tritonclient.utils import InferenceServerException

from tests.edge_agent.serving.rest.requests import INFER, image
from tests.fakes.packages import make_package
from tests.fakes.pipeline_package import make_pipeline_package, make_scaler_package
from tests.fakes.serving_device import Device

_LOAD, _UNLOAD = "/v2/repository/models/digits/load", "/v2/repository/models/digits/unload"


@pytest.fixture
def client(device: Device) -> Iterator[Any]:
    client = tritonclient.http.InferenceServerClient(f"127.0.0.1:{device.port}")
    yield client
    client.close()


def _index(device: Device, body: bytes | dict[str, Any] = b"") -> dict[str, str]:
    status, entries = device.ask_json("POST", "/v2/repository/index", body)
    assert status == 200
    return {f"{one['name']} {one['version']}": one["state"] for one in entries}


def test_the_index_lists_every_package_and_on_request_only_what_serves(device: Device) -> None:
    make_package(device.models / "newer", version="2", seed=5)
    ready = {"digits 1": "READY", "echo 1": "READY", "sensor-guard 1": "READY"}
    assert _index(device) == {**ready, "digits 2": "UNLOADED"}
    assert _index(device, {"ready": True}) == ready
    assert device.ask_json("POST", "/v2/repository/index", b"{")[0] == 400


def test_a_client_unloads_and_loads(client: Any, device: Device) -> None:
    client.unload_model("digits", unload_dependents=True)
    assert not client.is_model_ready("digits")
    assert {one["name"]: one["reason"] for one in client.get_model_repository_index()}["digits"]
    client.load_model("digits")
    assert client.is_model_ready("digits")
    assert device.ask("POST", INFER, image())[0] == 200


def test_a_version_may_be_named(device: Device) -> None:
    make_package(device.models / "newer", version="2", seed=5)
    status, body = device.ask_json("POST", _LOAD, {"parameters": {"version": "2"}})
    assert (status, body) == (200, {"name": "digits", "version": "2", "state": "READY"})
    assert _index(device)["digits 1"] == _index(device)["digits 2"] == "READY"
    assert device.ask_json("POST", _UNLOAD, {"parameters": {"version": 1}})[0] == 200
    assert (_index(device)["digits 1"], _index(device)["digits 2"]) == ("UNLOADED", "READY")


def test_what_cannot_be_loaded_says_why_and_the_old_one_goes_on(device: Device) -> None:
    make_package(device.models / "wrong", version="3", golden_is_wrong=True)
    status, body = device.ask_json("POST", _LOAD, {"parameters": {"version": "3"}})
    assert status == 400
    assert "model 'digits' was not loaded" in body["error"]
    assert _index(device)["digits 3"] == "UNAVAILABLE"
    assert device.ask_json("POST", INFER, image())[1]["model_version"] == "1"
    status, body = device.ask_json("POST", _LOAD, {"parameters": {"version": "9"}})
    assert (status, "version '9' is not on this device" in body["error"]) == (404, True)
    assert device.ask_json("POST", "/v2/repository/models/cats/unload", b"")[0] == 404


@pytest.mark.parametrize(
    ("parameters", "status", "text"),
    [
        ({"config": "{}"}, 501, "parameter 'config': a device serves signed packages as they are"),
        ({"file:1/model.onnx": "AAAA" * 50_000}, 501, "parameter 'file:1/model.onnx'"),
        ({"versoin": "1"}, 400, "no such parameter: 'versoin'; there are: version"),
        ({"version": True}, 400, "parameter 'version'"),
        ({"version": ["1"]}, 400, "parameter 'version'"),
    ],
)
def test_models_and_configurations_of_the_callers_own_are_refused(
    shared: Device, parameters: dict[str, Any], status: int, text: str
) -> None:
    found, body = shared.ask_json("POST", _LOAD, {"parameters": parameters})
    assert found == status
    assert text in body["error"]


def test_a_member_beside_the_parameters_is_refused_and_nothing_is_loaded(device: Device) -> None:
    make_package(device.models / "newer", version="2", seed=5)
    status, body = device.ask_json("POST", _LOAD, {"version": "1"})
    assert status == 400
    assert 'unknown field `version`; it takes {"parameters": {...}}' in body["error"]
    status, body = device.ask_json("POST", "/v2/repository/index", {"redy": True})
    assert (status, "`redy`" in body["error"]) == (400, True)
    assert _index(device)["digits 2"] == "UNLOADED"


def test_a_client_that_brings_a_model_of_its_own_is_told_that_this_is_not_how_it_works(client: Any) -> None:
    with pytest.raises(InferenceServerException, match="signed packages"):
        client.load_model("digits", config="{}", files={"file:1/model.onnx": b"\x08\x07"})


def test_a_wrong_unload_is_refused(shared: Device) -> None:
    assert shared.ask_json("POST", _UNLOAD, {"parameters": {"unload_dependents": "yes"}})[0] == 400
    assert shared.ask_json("POST", _UNLOAD, b'{"parameters": 1}')[0] == 400
    assert _index(shared)["digits 1"] == "READY"


def test_a_pipeline_takes_its_steps_along_where_asked_to(device: Device) -> None:
    make_scaler_package(device.models / "scaler")
    make_pipeline_package(device.models / "pipeline")
    device.repository.load("scaler")
    (name,) = {entry.name for entry in device.repository.index()} - {"digits", "echo", "sensor-guard", "scaler"}
    device.repository.load(name)
    path = f"/v2/repository/models/{name}/unload"
    assert device.ask_json("POST", path, {"parameters": {"unload_dependents": True}})[0] == 200
    states = _index(device)
    assert states.pop("echo 1") == states.pop("sensor-guard 1") == "READY"
    assert set(states.values()) == {"UNLOADED"}


def test_reloading_under_load_leaves_no_gap(device: Device) -> None:
    failures: list[int] = []
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            status = device.ask("POST", INFER, image())[0]
            if status != 200:
                failures.append(status)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(5):
        assert device.ask_json("POST", _LOAD, b"")[0] == 200
    done.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert np.isfinite(device.slots.get("digits").run_us)
