"""What Prometheus reads, parsed by Prometheus' own library."""

from __future__ import annotations

from typing import Any

import pytest

from edge_agent.serving.rest.metrics import Exposition
from tests.edge_agent.serving.rest.requests import INFER, image
from tests.fakes.serving_device import Device

pytest.importorskip("prometheus_client")

from prometheus_client.parser import text_string_to_metric_families


class Scraped:
    """The samples of one scrape."""

    def __init__(self, text: str) -> None:
        self.families = {family.name: family for family in text_string_to_metric_families(text)}

    def value(self, name: str, **labels: str) -> float:
        """The one sample with this name and at least these labels."""
        (found,) = [
            sample.value
            for family in self.families.values()
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]
        return float(found)


def _scrape(device: Device) -> Scraped:
    status, headers, body = device.ask("GET", "/metrics")
    assert (status, headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    return Scraped(body.decode())


def test_requests_times_batches_and_errors_are_counted(device: Device) -> None:
    for request in (image(), image(), image(pixels=7.0), image(pixels=0.99)):
        device.ask("POST", INFER, request)
    device.ask("GET", "/v2/models/cats")
    found = _scrape(device)
    digits = {"model": "digits", "version": "1"}
    outcomes = {one: found.value("shoal_model_requests_total", **digits, outcome=one) for one in _OUTCOMES}
    assert outcomes == {"success": 2, "failure": 1, "refused": 1}
    assert found.value("shoal_model_latency_seconds_count", **digits) == 2
    assert found.value("shoal_model_latency_seconds_bucket", **digits, le="+Inf") == 2
    assert 0 < found.value("shoal_model_latency_seconds_sum", **digits) < 60
    assert found.value("shoal_model_batch_rows_bucket", **digits, le="1") == 2
    assert found.value("shoal_model_batch_rows_sum", **digits) == 2
    assert found.value("shoal_model_rows_total", **digits) == 2
    assert found.value("shoal_model_stage_seconds_total", **digits, stage="compute_infer") > 0
    assert found.value("shoal_model_contract_refused_total", **digits, rule="range") == 1
    assert {status: found.value("shoal_http_errors_total", status=status) for status in ("400", "404", "500")} == {
        "400": 1,
        "404": 1,
        "500": 1,
    }


_OUTCOMES = ("success", "failure", "refused")


def test_violations_states_applications_and_the_process_are_told(device: Device) -> None:
    request = device.ask_json("GET", "/openapi/examples/sensor-guard")[1]
    del request["parameters"]
    for tensor in request["inputs"]:
        if tensor["name"] == "loudness":
            tensor["data"][0] = 5.0
    assert device.ask_json("POST", "/v2/models/sensor-guard/infer", request)[0] == 200
    device.repository.unload("echo")
    found = _scrape(device)
    violation = {"tensor": "loudness", "rule": "range", "policy": "clip"}
    assert found.value("shoal_model_violations_total", model="sensor-guard", **violation) == 1
    assert found.value("shoal_model_state", model="echo", state="UNLOADED") == 1
    assert found.value("shoal_model_state", model="digits", state="READY") == 1
    assert found.value("shoal_app_requests_total", app="local") == 3
    assert found.value("shoal_connections") == 1
    assert found.value("process_resident_memory_bytes") > 1e6
    assert found.value("shoal_agent_info", version="1.2.3") == 1
    assert found.value("shoal_model_memory_bytes", model="digits") >= 0
    runtime = {"runtime": "onnxruntime-cpu", "precision": "fp32"}
    assert found.value("shoal_model_runtime", model="digits", version="1", **runtime) == 1


def test_every_family_has_a_type_and_a_text(shared: Device) -> None:
    for family in _scrape(shared).families.values():
        assert family.documentation.endswith(".")
        assert family.type in {"gauge", "counter", "histogram"}


@pytest.mark.parametrize(("value", "text"), [('a"b', 'a\\"b'), ("a\\b", "a\\\\b"), ("a\nb", "a\\nb"), ("é", "é")])
def test_values_of_labels_are_escaped(value: str, text: str) -> None:
    page = Exposition()
    page.family("x", "gauge", "X.", [({"name": value}, 1.5)])
    page.family("none", "gauge", "No samples, no family.", [])
    encoded = page.encode().decode()
    assert encoded == f'# HELP x X.\n# TYPE x gauge\nx{{name="{text}"}} 1.5\n'
    samples: list[Any] = next(iter(text_string_to_metric_families(encoded))).samples
    assert samples[0].labels == {"name": value}
