"""What Prometheus reads of the board."""

from __future__ import annotations

import http.client
from urllib.parse import urlsplit

import pytest

from edge_agent.config import ApiSettings
from edge_agent.contract.messages import DeviceMetrics, GpuMetrics
from edge_agent.monitor.board.board import Board, Source
from edge_agent.serving.local_api import LocalApi
from tests.fakes.serving_device import Device

pytest.importorskip("prometheus_client")

from prometheus_client.parser import text_string_to_metric_families


def board_with(*samples: DeviceMetrics) -> Board:
    """A board that holds these samples, of which no thread reads more."""

    def unopened() -> Source:
        raise AssertionError("nobody starts it")

    board = Board(unopened, clock=lambda: 100.0)
    for index, sample in enumerate(samples):
        board.keep(100.0 + index, sample)
    return board


def scrape(device: Device, board: Board | None) -> dict[str, list[tuple[dict[str, str], float]]]:
    api = LocalApi(
        ApiSettings(port=0),
        slots=device.slots,
        repository=device.repository,
        watcher=device.monitor,
        threads=1,
        agent_version="1",
        board=board,
    )
    api.start()
    try:
        connection = http.client.HTTPConnection("127.0.0.1", urlsplit(api.addresses["api"]).port, timeout=30)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
    finally:
        api.stop()
    return {
        sample.name: [(dict(each.labels), each.value) for each in family.samples if each.name == sample.name]
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith(("shoal_board", "shoal_gpu"))
    }


def test_a_board_is_shown_with_its_gpus(device: Device) -> None:
    gpu = GpuMetrics(
        name="Orin",
        busy_percent=63.0,
        memory_used_bytes=6,
        memory_total_bytes=8,
        temperature_c=53.5,
        clock_mhz=621.0,
        max_clock_mhz=1020.0,
        throttled=("SW power cap",),
    )
    full = DeviceMetrics(
        gpus=(gpu,), power_w=12.0, temperature_c=54.0, power_mode="25W", throttled=("over-current", "under-voltage")
    )
    found = scrape(device, board_with(DeviceMetrics(power_w=8.0), full))
    of_gpu = {"gpu": "0", "name": "Orin"}
    assert found == {
        "shoal_board_power_mode": [({"mode": "25W"}, 1.0)],
        "shoal_board_power_watts": [({}, 12.0)],
        "shoal_board_energy_joules_total": [({}, 10.0)],
        "shoal_board_temperature_celsius": [({}, 54.0)],
        "shoal_board_throttled": [({"reason": "over-current"}, 1.0), ({"reason": "under-voltage"}, 1.0)],
        "shoal_gpu_busy_ratio": [(of_gpu, 0.63)],
        "shoal_gpu_memory_used_bytes": [(of_gpu, 6.0)],
        "shoal_gpu_memory_bytes": [(of_gpu, 8.0)],
        "shoal_gpu_temperature_celsius": [(of_gpu, 53.5)],
        "shoal_gpu_clock_hertz": [(of_gpu, 621e6)],
        "shoal_gpu_clock_limit_hertz": [(of_gpu, 1020e6)],
        "shoal_gpu_throttled": [({**of_gpu, "reason": "SW power cap"}, 1.0)],
    }


def test_a_machine_that_tells_nothing_shows_nothing(device: Device) -> None:
    assert scrape(device, None) == {}
    assert scrape(device, board_with()) == {}
