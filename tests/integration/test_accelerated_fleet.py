"""What the fleet's server gets to see of a device whose models move to an engine: both are real processes.

The driver is a stub without a GPU and TensorRT its stand-in, as in ``test_accelerated_agent``.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from edge_agent.contract.manifest import Batching, Probation
from tests.e2e.running_agent import Agent, agent, until
from tests.fakes.cuda_driver import StubDriver, can_build
from tests.fakes.packages import make_package
from tests.fleet_server.running_server import Running, prepared, server, shoal
from trainer.publish.image_signing import ImageSigning
from trainer.publish.keys import KeyFolder
from trainer.publish.repository import Publisher

# `import tensorrt` finds the stand-in.
_SHIM = "from tests.fakes.tensorrt_module import *\nfrom tests.fakes.tensorrt_module import __version__\n"
_SERVER = "tick_s = 0.2\n[rollouts.gate]\nsoak_s = 0.2\n"
_AGENT = '[accelerator]\nuse = "tensorrt"\nprecisions = ["fp32"]\n'


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Agent]:
    if not can_build() or importlib.util.find_spec("pycuda") is None:
        pytest.skip("no gcc or no pycuda here: the fleet of a device with a driver without a GPU was NOT run")
    for folder in ("driver", "modules"):
        (tmp_path / folder).mkdir()
    (tmp_path / "modules" / "tensorrt.py").write_text(_SHIM)
    with agent(tmp_path / "device") as one:
        one.settings.write_text(one.settings.read_text() + _AGENT)
        for name, value in StubDriver.build(tmp_path / "driver").environment(integrated=1).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(tmp_path / "modules"), str(Path(__file__).parents[2]))))
        monkeypatch.setenv("SHOAL_FAKE_TENSORRT_BUILD_S", "8")
        yield one


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    keys = tmp_path / "keys"
    ImageSigning(KeyFolder(keys)).create(("digits",))
    settings = tmp_path / "server.toml"
    settings.write_text(_SERVER)
    with server(prepared(tmp_path / "data", keys), "--config", str(settings)) as one:
        package = make_package(
            tmp_path / "package",
            version="1",
            seed=1,
            batching=Batching(max_rows=8),
            probation=Probation(seconds=0.5, max_error_rate=0.01),
        )
        with Publisher(keys, one.url, one.token) as publisher:
            publisher.publish(package)
        with one.client() as client:
            asked = {"model": "digits", "package": package.digest, "waves": ["100%"]}
            assert client.post("/api/v1/rollouts", json=asked).status_code == 201
        yield one


def runtime(client: httpx.Client) -> dict[str, Any]:
    reported = client.get("/api/v1/devices/press-7").json()["reported"]
    return dict(reported.get("digits", {}).get("runtime") or {})


def test_the_server_follows_an_engine_from_its_build_to_its_first_answers(device: Agent, running: Running) -> None:
    device.enrol(running, "press-7")
    device.start()
    with running.client() as client:
        building = until(lambda: _while_building(client), f"a build under way; {device.log}")
        assert building["name"] == "onnxruntime-cpu"
        assert building["building"].startswith("building a TensorRT fp32 engine (")
        until(lambda: runtime(client).get("name") == "tensorrt", f"the engine to take over; {device.log}")
        serving = runtime(client)
        assert (serving["precision"], serving["building"], serving["building_percent"]) == ("fp32", "", None)
        assert " against " in serving["reason"]
        events = until(lambda: _changes(client), "the event")
        assert events[0]["detail"] == {"version": "1", "runtime": "tensorrt", "precision": "fp32"}
        assert [one["device"] for one in client.get("/api/v1/machines").json()] == ["press-7"]
    shown = shoal("devices", "show", "press-7", "--data", running.data).stdout
    assert "digits  tensorrt  fp32       -              tensorrt fp32: " in shown
    assert "runtime-changed" in shown
    assert "digits 1 on tensorrt fp32" in shoal("devices", "list", "--data", running.data).stdout


def _while_building(client: httpx.Client) -> dict[str, Any]:
    found = runtime(client)
    return found if found.get("building_percent") else {}


def _changes(client: httpx.Client) -> list[dict[str, Any]]:
    events = client.get("/api/v1/devices/press-7/events").json()
    return [event for event in events if event["kind"] == "runtime-changed"]
