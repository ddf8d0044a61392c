"""A device and its fleet's server, both real processes: models come, samples go, and neither depends on the other."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton

from edge_agent.contract.manifest import Probation
from edge_agent.contract.sampling import SamplingPolicy
from edge_agent.runtime.package import Package
from tests.e2e.running_agent import Agent, agent, until
from tests.fakes.packages import answer, make_package, model_weights, reference_images
from tests.fleet_server.running_server import Running, prepared, server
from trainer.publish.image_signing import ImageSigning
from trainer.publish.keys import KeyFolder
from trainer.publish.repository import Publisher

# Every row goes home, so that each can be looked for.
ALL = SamplingPolicy(samples_per_minute=60_000.0, labels_per_minute=0.0, uniform_share=1.0)
SETTINGS = """\
tick_s = 0.2
[rollouts.gate]
soak_s = 0.2
"""


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    folder = tmp_path / "keys"
    ImageSigning(KeyFolder(folder)).create(("digits",))
    return folder


@pytest.fixture
def data(tmp_path: Path, keys: Path) -> Path:
    (tmp_path / "server.toml").write_text(SETTINGS)
    return prepared(tmp_path / "data", keys)


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Agent]:
    with agent(tmp_path / "device") as one:
        yield one


def make(folder: Path, version: str, *, seed: int | None = None, **how: Any) -> Package:
    """A package whose answers tell its version: another version has other weights."""
    chosen = int(version) if seed is None else seed
    return make_package(
        folder / f"package-{version}",
        version=version,
        seed=chosen,
        sampling=ALL,
        probation=Probation(seconds=0.5, max_error_rate=0.01),
        **how,
    )


def release(at: Running, keys: Path, package: Package) -> None:
    """Sign, publish and roll out a package."""
    with Publisher(keys, at.url, at.token) as publisher:
        publisher.publish(package)
    with at.client() as client:
        done = client.post("/api/v1/rollouts", json={"model": "digits", "package": package.digest, "waves": ["100%"]})
        assert done.status_code == 201, done.text


def rolled_out(at: Running) -> None:
    """Wait until the newest rollout is done."""
    with at.client() as client:
        until(lambda: client.get("/api/v1/rollouts").json()[0]["state"] == "done", "the rollout to be done")


def ask(at: Agent, images: np.ndarray[Any, np.dtype[np.float32]]) -> triton.InferResult:
    with triton.InferenceServerClient(at.address) as client:
        tensor = triton.InferInput("image", list(images.shape), "FP32")
        tensor.set_data_from_numpy(images)
        return client.infer("digits", [tensor])


def serves(at: Agent, version: str) -> None:
    """The unchanged client gets exactly the answers of that version's weights."""
    images = reference_images(3, seed=7)
    expected = answer(*model_weights(int(version)), images)
    np.testing.assert_allclose(ask(at, images).as_numpy("probabilities"), expected, atol=1e-5)


def counted(at: Running) -> int:
    with at.client() as client:
        rows = client.get("/api/v1/monitoring/digits/metrics").json()
    return sum(int(row["requests"]) for row in rows)


def options(data: Path) -> tuple[str, ...]:
    return ("--config", str(data.parent / "server.toml"))


def test_models_come_to_the_device_and_swap_under_load_without_a_failed_request(
    tmp_path: Path, data: Path, keys: Path, device: Agent
) -> None:
    failures: list[BaseException] = []
    stop = threading.Event()

    def load() -> None:
        images = reference_images(1, seed=3)
        with triton.InferenceServerClient(device.address) as client:
            tensor = triton.InferInput("image", [1, 64], "FP32")
            tensor.set_data_from_numpy(images)
            while not stop.is_set():
                try:
                    client.infer("digits", [tensor])
                except Exception as error:  # noqa: BLE001 - whatever it is, it is what the test is about
                    failures.append(error)
                time.sleep(0.005)

    with server(data, *options(data)) as running:
        device.enrol(running, "press-7")
        device.start()
        release(running, keys, make(tmp_path, "1"))
        rolled_out(running)
        serves(device, "1")
        thread = threading.Thread(target=load)
        thread.start()
        try:
            second = make(tmp_path, "2")
            release(running, keys, second)
            until(lambda: device.slots.get("last_known_good") == second.digest, "version 2 to be committed")
        finally:
            stop.set()
            thread.join()
        serves(device, "2")
        rolled_out(running)
        assert failures == []


def test_a_killed_server_costs_no_answer_and_no_record(tmp_path: Path, data: Path, keys: Path, device: Agent) -> None:
    with server(data, *options(data)) as running:
        device.enrol(running, "press-7")
        device.start()
        release(running, keys, make(tmp_path, "1"))
        rolled_out(running)
        images = reference_images(20)
        for image in images[:10]:
            ask(device, image[None])
        until(lambda: counted(running) == 10, "the first requests to arrive")
        broker, web = running.broker.rpartition(":")[2], running.url.rpartition(":")[2]
        running.process.kill()
        running.process.wait()
        for image in images[10:]:
            ask(device, image[None])
    with server(data, *options(data), "--port", web, "--broker-port", broker) as again:
        until(lambda: counted(again) >= 20, "what was counted while the server was away")
        until(lambda: samples(data) >= 20, "the samples that were taken while the server was away")
        device.stop()
        time.sleep(1.0)
        assert counted(again) == 20
        assert samples(data) == 20


def samples(data: Path) -> int:
    """Distinct samples in the lake; a row that is there twice fails the test."""
    from deltalake import DeltaTable

    path = data / "lake" / "samples"
    if not DeltaTable.is_deltatable(str(path)):
        return 0
    ids = DeltaTable(str(path)).to_pyarrow_table(columns=["request_id"])["request_id"].to_pylist()
    assert len(ids) == len(set(ids))
    return len(ids)


@pytest.mark.parametrize("attempt", range(4))
def test_an_agent_killed_during_an_update_serves_the_old_or_the_new_model_and_finishes(
    attempt: int, tmp_path: Path, data: Path, keys: Path, device: Agent
) -> None:
    with server(data, *options(data)) as running:
        device.enrol(running, "press-7")
        device.start()
        release(running, keys, make(tmp_path, "1"))
        rolled_out(running)
        second = make(tmp_path, "2", extra_files={"padding.bin": random.Random(0).randbytes(1 << 20)})
        release(running, keys, second)
        time.sleep(random.Random(attempt).uniform(0.05, 1.0))
        device.kill()
        device.start()
        serves(device, "2" if device.slots["active"] == second.digest else "1")
        until(lambda: device.slots.get("last_known_good") == second.digest, "version 2 to be committed after all")
        serves(device, "2")


def test_the_last_known_good_model_starts_without_any_network(
    tmp_path: Path, data: Path, keys: Path, device: Agent
) -> None:
    with server(data, *options(data)) as running:
        device.enrol(running, "press-7")
        device.start()
        release(running, keys, make(tmp_path, "1"))
        rolled_out(running)
    assert device.stop() == 0
    device.start()
    serves(device, "1")


def test_a_model_that_fails_on_live_data_is_rolled_back_by_the_device_itself(
    tmp_path: Path, data: Path, keys: Path, device: Agent
) -> None:
    with server(data, *options(data)) as running:
        device.enrol(running, "press-7")
        device.start()
        first = make(tmp_path, "1")
        release(running, keys, first)
        rolled_out(running)
        release(running, keys, make(tmp_path, "2", fails_above=0.95))
        bright = np.ones((1, 64), np.float32)  # golden samples are darker: only live data shows the fault

        def rolled_back() -> bool:
            with contextlib.suppress(triton.InferenceServerException):  # that version 2 fails makes the device go back
                ask(device, bright)
            return device.slots.get("step") == "failed" and device.slots["active"] == first.digest

        until(rolled_back, "the device to go back to version 1")
        serves(device, "1")
        assert "requests failed on probation" in device.slots["reason"]
        with running.client() as client:
            until(
                lambda: client.get("/api/v1/rollouts").json()[0]["state"] == "halted", "the server to halt the rollout"
            )
            assert "press-7" in client.get("/api/v1/rollouts").json()[0]["note"]
