from __future__ import annotations

import json

import pytest

from edge_agent.contract.errors import AcceleratorUnavailable
from edge_agent.runtime.gpu.driver import probe
from tests.fakes.cuda_driver import StubDriver

_PROBE = """
import dataclasses, json
from edge_agent.contract.errors import AcceleratorUnavailable
from edge_agent.runtime.gpu.driver import probe
try:
    print(json.dumps(dataclasses.asdict(probe())))
except AcceleratorUnavailable as error:
    print(json.dumps(str(error)))
"""


def test_a_machine_without_a_driver_says_so() -> None:
    with pytest.raises(AcceleratorUnavailable, match=r"no NVIDIA driver: .*libno-such-driver"):
        probe("libno-such-driver.so.1")


def test_a_library_that_is_no_driver_says_what_it_lacks() -> None:
    with pytest.raises(AcceleratorUnavailable, match="has no cuInit"):
        probe("libm.so.6")


def test_a_gpu_is_described(stub_driver: StubDriver) -> None:
    answer = stub_driver.python("-c", _PROBE, sm=87, integrated=1, total_mib=64, driver_version=12060)
    assert json.loads(answer.stdout) == {
        "index": 0,
        "name": "Stub GPU",
        "compute_capability": [8, 7],
        "integrated": True,
        "memory_bytes": 64 << 20,
        "driver_version": [12, 6],
    }


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"init_error": 803}, ["cuInit", "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH (803)", "restart the machine"]),
        ({"init_error": 4711}, ["cuInit", "4711"]),
        ({"devices": 0}, ["CUDA_ERROR_NO_DEVICE", "CUDA_VISIBLE_DEVICES"]),
        ({"driver_version": 11040}, ["CUDA 11.4", "older than 12.0", "JetPack 6"]),
        ({"fail": "cuDeviceGetName=999"}, ["cuDeviceGetName", "CUDA_ERROR_UNKNOWN"]),
    ],
)
def test_a_driver_that_cannot_be_used_says_why(
    stub_driver: StubDriver, settings: dict[str, object], words: list[str]
) -> None:
    answer = stub_driver.python("-c", _PROBE, **settings)
    reason = json.loads(answer.stdout)
    assert [word for word in words if word not in reason] == [], reason
