"""What the API tells of itself and its models, over real sockets."""

from __future__ import annotations

import json
from typing import Any

import pytest
import tritonclient.http
from tritonclient.utils import InferenceServerException

from edge_agent.contract.errors import UnknownModel
from edge_agent.contract.messages import ReportedRuntime
from tests.edge_agent.serving.rest.requests import INFER, image
from tests.fakes.packages import LABELS, make_package
from tests.fakes.pipeline_package import make_pipeline_package, make_scaler_package
from tests.fakes.serving_device import Device

_NAMES = "digits, echo, sensor-guard"


def test_server_metadata_lists_the_extensions_that_are_there(shared: Device) -> None:
    status, server = shared.ask_json("GET", "/v2")
    assert (status, server["name"], server["version"]) == (200, "shoal-agent", "1.2.3")
    assert {"binary_tensor_data", "statistics", "model_configuration", "system_shared_memory"} <= {
        *server["extensions"]
    }
    assert "cuda_shared_memory" not in server["extensions"]


def test_health_has_the_keys_that_clients_read(device: Device) -> None:
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/health/ready/?verbose=1"):
        assert device.ask_json("GET", path) == (200, {"live": True, "ready": True})
    device.slots.close()
    assert device.ask_json("GET", "/v2/health/ready") == (503, {"live": True, "ready": False})
    assert device.ask_json("GET", "/v2/health/live") == (200, {"live": True, "ready": False})


@pytest.mark.parametrize("path", ["/v2/models/digits", "/v2/models/digits/versions/1", "/v2/models/digits/?a=b"])
def test_model_metadata_tells_names_datatypes_shapes_and_constraints(shared: Device, path: str) -> None:
    status, metadata = shared.ask_json("GET", path)
    assert status == 200
    assert metadata.pop("parameters") == {
        "default_version": "1",
        "package": shared.slots.get("digits").digest,
        "runtime": "onnxruntime-cpu",
        "precision": "fp32",
    }
    limits = {"minimum": 0.0, "maximum": 1.0}
    assert metadata == {
        "name": "digits",
        "versions": ["1"],
        "platform": "onnx_onnxv1",
        "inputs": [{"name": "image", "datatype": "FP32", "shape": [-1, 64], "parameters": limits}],
        "outputs": [
            {"name": "probabilities", "datatype": "FP32", "shape": [-1, 10], "parameters": {"labels": [*LABELS]}}
        ],
    }


def test_head_is_get_without_its_body(shared: Device) -> None:
    status, headers, body = shared.ask("HEAD", "/v2/models/digits")
    assert (status, body) == (200, b"")
    assert int(headers["content-length"]) == len(shared.ask("GET", "/v2/models/digits")[2])


def test_versions_side_by_side_are_all_listed_and_each_answers_for_itself(device: Device) -> None:
    make_package(device.models / "newer", version="2", seed=5)
    device.repository.load("digits", "2")
    assert device.ask_json("GET", "/v2/models/digits/versions/1")[1]["versions"] == ["1", "2"]
    assert device.ask_json("GET", "/v2/models/digits")[1]["parameters"]["default_version"] == "2"
    packages = [
        device.ask_json("GET", f"/v2/models/digits/versions/{version}")[1]["parameters"]["package"] for version in "12"
    ]
    assert len(set(packages)) == 2
    policy = device.ask_json("GET", "/v2/models/digits/config")[1]["version_policy"]
    assert policy == {"specific": {"versions": ["1", "2"]}}
    assert device.ask_json("GET", "/v2/models/digits/versions/1/ready") == (200, {"name": "digits", "ready": True})
    stats = device.ask_json("GET", "/v2/models/digits/stats")[1]["model_stats"]
    assert [one["version"] for one in stats] == ["1", "2"]


@pytest.mark.parametrize(
    ("method", "path", "status", "text"),
    [
        ("GET", "/v3/models", 404, "no such path: /v3/models; the API begins at /v2"),
        ("POST", "/v1/models/digits:predict", 404, "V2 is: POST /v2/models/digits/infer"),
        ("GET", "/v1/models", 404, "the V1 protocol is not spoken here, V2 is: POST /v2/models/MODEL/infer"),
        ("GET", "/v2/models", 404, "no such path"),
        ("GET", "/v2/models/", 404, "no such path"),
        ("GET", "/v2/models/digits/config/x", 404, "no such path"),
        ("GET", "/v2/models//ready", 404, "model '' is not served here"),
        ("GET", "/v2/models/cats", 404, f"model 'cats' is not served here; served are: {_NAMES}"),
        ("GET", "/v2/models/digits/versions/9", 404, "no version '9' here; it is at version '1'"),
        ("GET", "/v2/models/cats/stats", 404, "model 'cats' is not served here"),
        ("GET", "/v2/models/cats/config", 404, "model 'cats' is not served here"),
        ("GET", "/v2/models/cats/ready", 404, "model 'cats' is not served here"),
        ("GET", "/openapi/examples/cats", 404, "model 'cats' is not served here"),
        ("POST", "/v2/models/cats/infer", 404, "model 'cats' is not served here"),
        ("POST", "/v2/models/digits/versions/9/infer", 404, "no version '9'"),
        ("GET", "/v2/models/digits/infer", 405, "takes POST, not GET"),
        ("POST", "/v2/health/live", 405, "takes GET, not POST"),
        ("GET", "/v2/repository/index", 405, "takes POST, not GET"),
        ("DELETE", "/v2/models/digits", 405, "takes GET, not DELETE"),
        ("OPTIONS", "/v2/models/digits", 405, "takes GET, not OPTIONS"),
        ("GET", "/" + "x" * 3000, 404, "no such path: /xxx"),
    ],
)
def test_paths_and_methods_that_do_not_exist_get_the_protocols_error(
    shared: Device, method: str, path: str, status: int, text: str
) -> None:
    found, headers, body = shared.ask(method, path, b"{}" if method == "POST" else None)
    assert found == status
    answered = json.loads(body)
    assert set(answered) == {"error"}
    assert text in answered["error"]
    if status == 405:
        assert headers["allow"] in {"GET, HEAD", "POST"}


def test_the_configuration_says_what_load_tools_read(shared: Device) -> None:
    config = shared.ask_json("GET", "/v2/models/sensor-guard/versions/1/config")[1]
    assert (config["name"], config["platform"], config["backend"]) == (
        "sensor-guard",
        "onnxruntime_onnx",
        "onnxruntime",
    )
    assert config["max_batch_size"] == 4
    assert [(one["name"], one["data_type"], one["dims"]) for one in config["input"]] == [
        ("temperature", "TYPE_FP32", [3]),
        ("mode", "TYPE_INT64", [1]),
        ("armed", "TYPE_BOOL", [1]),
        ("note", "TYPE_STRING", [1]),
        ("seen-at", "TYPE_STRING", [1]),
        ("loudness", "TYPE_FP32", [-1]),
    ]
    assert config["dynamic_batching"]["preferred_batch_size"] == [2, 4]
    assert config["dynamic_batching"]["max_queue_delay_microseconds"] == 500
    assert config["dynamic_batching"]["default_queue_policy"]["max_queue_size"] == 32
    assert config["instance_group"][0]["kind"] == "KIND_CPU"
    assert config["default_model_filename"] == "model.onnx"
    assert "dynamic_batching" not in shared.ask_json("GET", "/v2/models/digits/config")[1]


def test_a_pipelines_configuration_maps_every_tensor_of_its_steps(device: Device) -> None:
    make_scaler_package(device.models / "scaler")
    make_pipeline_package(device.models / "pipeline")
    device.repository.load("scaler")
    name = device.repository.load(_pipeline(device)).name
    config = device.ask_json("GET", f"/v2/models/{name}/config")[1]
    assert (config["platform"], config["backend"]) == ("ensemble", "")
    scaler, digits = config["ensemble_scheduling"]["step"]
    assert (scaler["model_name"], scaler["input_map"], scaler["output_map"]) == (
        "scaler",
        {"raw": "raw"},
        {"scaled": "scaled"},
    )
    assert digits["input_map"] == {"image": "scaled"}
    assert digits["output_map"] == {"probabilities": "probabilities"}


def _pipeline(device: Device) -> str:
    (name,) = {entry.name for entry in device.repository.index()} - {"digits", "echo", "sensor-guard", "scaler"}
    return name


def test_statistics_count_requests_rows_runs_and_what_was_refused(device: Device) -> None:
    assert device.ask("POST", INFER, image())[0] == 200
    two = image()
    two["inputs"][0].update(shape=[2, 64], data=[0.25] * 128)
    assert device.ask("POST", INFER, two)[0] == 200
    assert device.ask("POST", INFER, image(pixels=7.0))[0] == 400
    assert device.ask("POST", INFER, image(pixels=0.99))[0] == 500
    for path in ("/v2/models/digits/stats", "/v2/models/digits/versions/1/stats"):
        (stats,) = device.ask_json("GET", path)[1]["model_stats"]
        assert (stats["name"], stats["version"], stats["inference_count"]) == ("digits", "1", 3)
        assert stats["execution_count"] == 2
        assert stats["last_inference"] > 1_600_000_000_000
        assert stats["inference_stats"]["success"]["count"] == 2
        assert stats["inference_stats"]["compute_infer"]["ns"] > 0
        assert stats["inference_stats"]["fail"]["count"] == 1
        assert stats["refused"] == {"count": 1, "rules": {"range": 1}}
        assert [(one["batch_size"], one["compute_infer"]["count"]) for one in stats["batch_stats"]] == [(1, 1), (2, 1)]
        assert all(set(one) == {"batch_size", "compute_infer"} for one in stats["batch_stats"])
    every = device.ask_json("GET", "/v2/models/stats")[1]["model_stats"]
    assert [one["name"] for one in every] == ["digits", "echo", "sensor-guard"]


def test_a_model_called_stats_is_found_under_its_name(device: Device) -> None:
    make_package(device.models / "stats", name="stats")
    device.repository.load("stats")
    assert device.ask_json("GET", "/v2/models/stats")[1]["name"] == "stats"
    assert device.ask_json("GET", "/v2/models/stats/stats")[1]["model_stats"][0]["name"] == "stats"


def test_a_model_asleep_is_ready_and_described_and_not_woken(device: Device) -> None:
    loaded = device.slots.get("digits")
    assert device.slots.unload("digits", reason="idle", idle_since=loaded.last_used + 1) is loaded
    assert device.ask_json("GET", "/v2/models/digits/ready") == (200, {"name": "digits", "ready": True})
    assert device.ask_json("GET", "/v2/models/digits")[1]["inputs"][0]["name"] == "image"
    assert device.ask_json("GET", "/v2/health/ready")[0] == 200
    assert "/v2/models/digits/infer" in device.ask_json("GET", "/openapi.json")[1]["paths"]
    assert _state(device) == "UNLOADED"
    assert device.ask_json("POST", INFER, image())[0] == 200  # this wakes it
    assert _state(device) == "READY"


def _state(device: Device) -> str:
    (state,) = {entry.state.value for entry in device.slots.index() if entry.name == "digits"}
    return state


def test_a_model_that_a_person_unloaded_is_not_ready(device: Device) -> None:
    device.repository.unload("digits")
    status, body = device.ask_json("GET", "/v2/models/digits/ready")
    assert status == 503
    assert "unloaded on request" in body["error"]
    assert device.ask_json("GET", "/v2/models/digits")[0] == 503
    assert device.ask_json("GET", "/v2/models/digits/stats")[0] == 503
    assert device.ask("POST", INFER, image())[0] == 503


def test_shared_memorys_status_is_answered_for_both_kinds(shared: Device) -> None:
    for kind in ("system", "cuda"):
        assert shared.ask_json("GET", f"/v2/{kind}sharedmemory/status") == (200, [])
        assert shared.ask_json("POST", f"/v2/{kind}sharedmemory/unregister", b"")[0] == 200
    assert shared.ask_json("GET", "/v2/systemsharedmemory/region/mine/status")[0] == 404
    status, body = shared.ask_json("POST", "/v2/cudasharedmemory/region/mine/register", {"device_id": 0})
    assert (status, "system memory only" in body["error"]) == (501, True)


def test_tritons_client_reads_configuration_statistics_and_shared_memory(shared: Device) -> None:
    client = tritonclient.http.InferenceServerClient(f"127.0.0.1:{shared.port}")
    try:
        assert client.get_model_config("sensor-guard", "1")["max_batch_size"] == 4
        assert [one["name"] for one in client.get_inference_statistics("echo")["model_stats"]] == ["echo"]
        assert len(client.get_inference_statistics()["model_stats"]) == 3
        assert client.get_system_shared_memory_status() == client.get_cuda_shared_memory_status() == []
        client.unregister_system_shared_memory()
        client.unregister_cuda_shared_memory()
        with pytest.raises(InferenceServerException, match="model 'cats' is not served here"):
            client.get_model_config("cats")
    finally:
        client.close()


def test_requests_of_many_paths_do_not_make_the_table_of_paths_grow(shared: Device) -> None:
    router = shared.api._router
    for number in range(600):
        with pytest.raises(UnknownModel):
            shared.slots.get(router._resolve(f"/v2/models/m{number}").model)
    assert len(router._targets) <= 512
    assert _ask_json_twice(shared) == [200, 200]


def _ask_json_twice(device: Device) -> list[Any]:
    return [device.ask_json("GET", "/v2/models/digits")[0] for _ in "ab"]


def test_metadata_and_configuration_tell_of_an_engine_and_why_it_is_used(device: Device) -> None:
    loaded = device.slots.get("digits")
    loaded.runtime = ReportedRuntime(name="tensorrt", precision="fp16", reason="0.9 ms against 6.1 ms")
    loaded.backend.platform = "tensorrt_plan"  # type: ignore[misc]
    metadata = device.ask_json("GET", "/v2/models/digits")[1]
    assert (metadata["platform"], metadata["parameters"]["runtime"]) == ("tensorrt_plan", "tensorrt")
    config = device.ask_json("GET", "/v2/models/digits/config")[1]
    assert (config["platform"], config["backend"]) == ("tensorrt_plan", "tensorrt")
    assert config["instance_group"] == [{"name": "digits_0", "kind": "KIND_GPU", "count": 1, "gpus": [0]}]
    assert config["parameters"]["runtime_reason"] == {"string_value": "0.9 ms against 6.1 ms"}
    index = device.ask_json("POST", "/v2/repository/index")[1]
    assert [each["reason"] for each in index if each["name"] == "digits"] == ["0.9 ms against 6.1 ms"]
