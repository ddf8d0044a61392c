"""NVML through ctypes, over a stub library in C: what it tells, what it cannot, and how it fails."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from edge_agent.contract.errors import AcceleratorUnavailable
from edge_agent.monitor.board.nvml import Nvml


def test_a_gpu_tells_everything(stub_nvml: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_STUB_NVML_GPUS", "2")
    nvml = Nvml(stub_nvml)
    first, second = nvml.gpus()
    nvml.close()
    assert first == second
    assert (first.name, first.busy_percent, first.temperature_c, first.power_w) == ("NVIDIA Stub", 42.0, 51.0, 215.5)
    assert (first.clock_mhz, first.max_clock_mhz) == (1410.0, 1980.0)
    assert (first.memory_used_bytes, first.memory_total_bytes) == (3 << 30, 80 << 30)
    assert first.throttled == ()  # it idles
    assert ctypes.CDLL(stub_nvml).stub_opened() == 0


def test_reasons_for_throttling_are_in_the_vendors_words(stub_nvml: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_STUB_NVML_REASONS", hex(0x4 | 0x20 | 0x2 | 0x100))
    nvml = Nvml(stub_nvml)
    assert nvml.gpus()[0].throttled == ("SW power cap", "SW thermal slowdown")
    nvml.close()


def test_what_a_gpu_does_not_have_is_not_asked_for_again(
    stub_nvml: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SHOAL_STUB_NVML_UNSUPPORTED", "nvmlDeviceGetTemperature nvmlDeviceGetMemoryInfo")
    nvml = Nvml(stub_nvml)
    before = ctypes.CDLL(stub_nvml).stub_temperature_calls()
    for _ in range(3):
        gpu = nvml.gpus()[0]
    nvml.close()
    assert (gpu.temperature_c, gpu.memory_used_bytes, gpu.busy_percent) == (None, None, 42.0)
    assert ctypes.CDLL(stub_nvml).stub_temperature_calls() == before + 1
    assert not caplog.records


def test_a_lost_gpu_is_told_once_by_reading(
    stub_nvml: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SHOAL_STUB_NVML_LOST", "nvmlDeviceGetPowerUsage")
    nvml = Nvml(stub_nvml)
    assert [nvml.gpus()[0].power_w for _ in range(3)] == [None] * 3
    monkeypatch.delenv("SHOAL_STUB_NVML_LOST")
    assert nvml.gpus()[0].power_w == 215.5  # it may come back
    nvml.close()
    assert [record.getMessage() for record in caplog.records] == [
        "GPU 0: nvmlDeviceGetPowerUsage: GPU is lost (15); reported as unknown"
    ]


def test_without_library_or_driver_it_is_unavailable(stub_nvml: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AcceleratorUnavailable, match=r"libnone\.so"):
        Nvml("libnone.so")
    monkeypatch.setenv("SHOAL_STUB_NVML_INIT", "9")
    with pytest.raises(AcceleratorUnavailable, match="Driver Not Loaded"):
        Nvml(stub_nvml)


def test_a_library_that_is_no_nvml_is_unavailable() -> None:
    with pytest.raises(AcceleratorUnavailable, match="nvmlInit_v2"):
        Nvml("libc.so.6")


@pytest.mark.gpu
def test_a_real_gpu_tells_what_is_possible() -> None:
    if not Path("/dev/nvidiactl").exists():
        pytest.skip("NOT RUN: no NVIDIA driver on this machine")
    nvml = Nvml()
    gpus = nvml.gpus()
    nvml.close()
    assert gpus
    for gpu in gpus:
        assert gpu.name
        assert gpu.busy_percent is None or 0 <= gpu.busy_percent <= 100
        assert 0 < (gpu.memory_used_bytes or 0) < (gpu.memory_total_bytes or 0)
        assert gpu.temperature_c is None or 10 < gpu.temperature_c < 110
        assert gpu.power_w is None or 1 < gpu.power_w < 2000
        assert gpu.clock_mhz is None or gpu.max_clock_mhz is None or gpu.clock_mhz <= gpu.max_clock_mhz
