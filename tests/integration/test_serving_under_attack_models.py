"""Models of a real agent that break, hang, move and fall asleep while applications ask for them on every way in."""

from __future__ import annotations

import collections
import contextlib
import json
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fakes.hanging_package import FOREVER, make_hanging_package
from tests.fakes.large_package import make_large_package
from tests.fakes.packages import OUTPUT, answer, make_package, model_weights
from tests.fakes.small_disk import fill, on_small_disk
from tests.integration.applications import Applications
from tests.integration.attacked_agent import TRANSPORTS, AttackedAgent, attacked
from tests.integration.hostile_requests import EXPECTED, IMAGES, Request, Tensor

_SECONDS = 2.0
_LOAD = "/v2/repository/models/{}/load"
_UNLOAD = "/v2/repository/models/{}/unload"


def post(device: AttackedAgent, path: str, body: bytes = b"") -> tuple[int, Any]:
    status, text = device.ask_http("POST", path, body)
    return status, json.loads(text)


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AttackedAgent]:
    with attacked(tmp_path_factory.mktemp("models")) as one:
        yield one


def test_reloading_under_load_fails_no_request(device: AttackedAgent) -> None:
    end = time.monotonic() + _SECONDS
    with Applications(device, ("digits", "queued")) as applications:
        while time.monotonic() < end:
            for model in ("digits", "queued"):
                assert post(device, _LOAD.format(model))[0] == 200
    assert applications.wrong == []
    assert applications.refused == 0
    device.assert_rests()


def test_unloading_under_load_refuses_and_never_fails(device: AttackedAgent) -> None:
    end = time.monotonic() + _SECONDS
    with Applications(device, ("digits", "queued")) as applications:
        while time.monotonic() < end:
            for model in ("digits", "queued"):
                assert post(device, _UNLOAD.format(model))[0] == 200
                assert post(device, _LOAD.format(model))[0] == 200
    assert applications.wrong == []
    assert {transport for transport, status in applications.statuses if status == 200} == set(TRANSPORTS)
    device.assert_rests()


def test_models_that_fall_asleep_under_load_are_woken_for_every_request(tmp_path: Path) -> None:
    with attacked(tmp_path, runtime="idle_unload_s = 0.05") as device:
        with Applications(device, ("digits", "queued", "sleeper"), pause_s=0.3) as applications:
            time.sleep(2 * _SECONDS)
        assert applications.wrong == []
        assert applications.refused == 0
        assert device.device.log.count("unloaded: idle") > 5
        device.assert_no_mistake()


def test_a_package_that_is_half_copied_is_served_whole_or_not_at_all(device: AttackedAgent, tmp_path: Path) -> None:
    newer = make_package(tmp_path / "newer", version="2", seed=3).folder
    place, over = device.models / "digits-2", threading.Event()

    def copy_again_and_again() -> None:
        while not over.is_set():
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            files = list(newer.iterdir())
            random.shuffle(files)
            for file in files:
                data = file.read_bytes()
                with (place / file.name).open("wb") as out:
                    for at in range(0, len(data), len(data) // 5 + 1):
                        out.write(data[at : at + len(data) // 5 + 1])
                        out.flush()
                        time.sleep(0.001)
            time.sleep(random.random() * 0.05)

    right = (EXPECTED, answer(*model_weights(3), IMAGES))
    copier, end = threading.Thread(target=copy_again_and_again), time.monotonic() + _SECONDS
    copier.start()
    try:
        while time.monotonic() < end:
            status, told = post(device, _LOAD.format("digits"))
            assert status == 200 or (status == 400 and "was not loaded" in told["error"]), told
            assert post(device, "/v2/repository/index")[0] == 200
            for transport in TRANSPORTS:
                outcome = device.ask(transport, Request())
                assert any(np.allclose(outcome.outputs[OUTPUT], one, atol=1e-4) for one in right), outcome
    finally:
        over.set()
        copier.join()
        shutil.rmtree(place)
    assert post(device, _LOAD.format("digits")) == (200, {"name": "digits", "version": "1", "state": "READY"})
    device.assert_rests()


@pytest.mark.parametrize("damage", ["model.onnx", "golden.npz", "reference.profile", "manifest.json"])
@pytest.mark.parametrize("how", ["flipped", "truncated", "removed", "a folder"])
def test_a_file_that_breaks_while_its_model_serves_is_named_and_the_model_serves_on(
    device: AttackedAgent, tmp_path: Path, damage: str, how: str
) -> None:
    file, whole = device.models / "digits" / damage, tmp_path / "whole"
    shutil.copy(file, whole)
    data = bytearray(whole.read_bytes())
    data[len(data) // 2] ^= 0xFF
    file.unlink()
    if how == "a folder":
        file.mkdir()
    elif how != "removed":
        file.write_bytes(bytes(data) if how == "flipped" else bytes(data[: len(data) // 2]))
    status, told = post(device, _LOAD.format("digits"))
    for transport in TRANSPORTS:
        device.assert_serves(transport)
    shutil.rmtree(file) if how == "a folder" else file.unlink(missing_ok=True)
    shutil.copy(whole, file)
    assert (status in (400, 404), "digits" in told["error"]) == (True, True), told
    assert post(device, _LOAD.format("digits"))[0] == 200
    device.assert_no_mistake()


def test_what_the_disk_does_not_give_is_one_broken_package(device: AttackedAgent) -> None:
    strange = [device.models / name for name in ("a-file", "loop", "empty", "odd-\udcff")]
    strange[0].write_bytes(b"x")
    strange[1].symlink_to("loop")
    strange[2].mkdir()
    strange[3].mkdir()
    (strange[3] / "manifest.json").write_bytes(b"[" * 100_000)
    try:
        status, index = post(device, "/v2/repository/index")
        assert status == 200
        assert {one["name"] for one in index if one["state"] == "READY"} == {"digits", "echo", "queued", "sleeper"}
        assert post(device, _LOAD.format("digits"))[0] == 200
    finally:
        strange[0].unlink()
        strange[1].unlink()
        shutil.rmtree(strange[2])
        shutil.rmtree(strange[3])
    device.assert_rests()


def test_a_model_that_hangs_when_it_is_loaded_is_refused_and_stops_no_other(device: AttackedAgent) -> None:
    make_hanging_package(device.models / "stuck", name="stuck", max_run_s=1.0, golden_hangs=True)
    try:
        with ThreadPoolExecutor(1) as operator:
            loading = operator.submit(post, device, _LOAD.format("stuck"))
            for transport in TRANSPORTS:
                device.assert_serves(transport)
            status, told = loading.result()
        assert (status, "hangs on its golden samples" in told["error"]) == (400, True), told
        assert post(device, _LOAD.format("digits"))[0] == 200
    finally:
        shutil.rmtree(device.models / "stuck")
    device.assert_rests()


_SLOW = pytest.mark.slow  # the whole grace of a stop, and a second or two


@pytest.mark.parametrize("where", ["thread", pytest.param("inline", marks=_SLOW), pytest.param("load", marks=_SLOW)])
def test_a_signal_ends_an_agent_whose_model_may_hang_for_a_day(tmp_path: Path, where: str) -> None:
    with attacked(tmp_path) as device:
        make_hanging_package(tmp_path / "models/stuck", name="stuck", max_run_s=86_400.0, golden_hangs=where == "load")
        begin = time.monotonic()
        with ThreadPoolExecutor(8) as others:
            asked: list[Future[Any]]
            if where == "load":
                asked = [others.submit(post, device, _LOAD.format("stuck")) for _ in range(4)]
            else:
                assert post(device, _LOAD.format("stuck"))[0] == 200
                hanging = Request(model="stuck", inputs=(Tensor.of(np.full((1, 64), FOREVER, np.float32)),))
                if where == "thread":  # broken off once, it is known to be slow
                    assert device.ask("tcp", hanging).status == 503
                asked = [others.submit(device.ask, transport, hanging) for transport in TRANSPORTS]
            time.sleep(0.5)
            assert device.device.stop() == 0
            for one in asked:
                with contextlib.suppress(Exception):  # answered or cut off: the agent has gone
                    one.result()
        assert time.monotonic() - begin < 45
        device.assert_no_mistake()


def test_loads_that_nobody_waits_for_are_not_begun(device: AttackedAgent) -> None:
    make_hanging_package(device.models / "stuck", name="stuck", max_run_s=1.0, golden_hangs=True)
    try:
        for _ in range(40):  # three seconds each, were they done one after the other
            with device.connect("tcp") as connection:
                connection.sendall(b"POST %b HTTP/1.1\r\nHost: localhost\r\n\r\n" % _LOAD.format("stuck").encode())
        begin = time.monotonic()
        device.until(lambda: post(device, _LOAD.format("digits"))[0] == 200, lambda: "a load to get its turn")
        assert time.monotonic() - begin < 30
    finally:
        shutil.rmtree(device.models / "stuck")
    device.assert_rests()


def test_what_does_not_fit_in_memory_is_refused_with_the_reason_and_the_rest_serves(tmp_path: Path) -> None:
    with attacked(tmp_path, runtime="memory_mib = 24") as device:
        make_large_package(tmp_path / "models/large", name="large", weights_mib=25)
        before = device.rss
        with Applications(device, ("digits",)) as applications:
            for _ in range(5):
                status, told = post(device, _LOAD.format("large"))
                assert (status, "runtime.memory_mib" in told["error"]) == (503, True), told
        assert (applications.wrong, applications.refused) == ([], 0)
        assert device.rss - before < 40_000_000
        device.assert_rests()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_shared_memory_that_shrinks_and_goes_during_use_harms_nobody(device: AttackedAgent, transport: str) -> None:
    size = IMAGES.nbytes
    memory = shared_memory.SharedMemory(create=True, size=2 * size)
    file = Path("/dev/shm") / memory.name.lstrip("/")  # noqa: S108 - where it lies
    try:
        region = f"/v2/systemsharedmemory/region/{transport}"
        told = json.dumps({"key": memory.name, "offset": 0, "byte_size": 2 * size}).encode()
        request = Request(inputs=(Tensor(region=(transport, 0, size)),), outputs={OUTPUT: (transport, size, 80)})
        outside = Request(inputs=(Tensor(region=(transport, size + 4, size)),))
        over = threading.Event()

        def disturb() -> None:
            while not over.is_set():
                post(device, f"{region}/register", told)
                with file.open("r+b") as open_file:
                    open_file.truncate(random.choice((0, size // 2, 2 * size)))
                    open_file.truncate(2 * size)
                    open_file.write(IMAGES.tobytes())
                if random.random() < 0.5:
                    post(device, f"{region}/unregister")

        disturber = threading.Thread(target=disturb)
        disturber.start()
        statuses: collections.Counter[int] = collections.Counter()
        try:
            for _ in range(150):
                statuses[device.ask(transport, request).status] += 1
                statuses[device.ask(transport, outside).status] += 1
        finally:
            over.set()
            disturber.join()
        assert set(statuses) <= {200, 400, 404}
        assert post(device, f"{region}/unregister")[0] == 200
    finally:
        memory.close()
        memory.unlink()
    device.assert_rests()


def test_weights_that_are_cut_short_in_place_do_not_end_the_process(tmp_path: Path) -> None:
    """Nothing of theirs may be mapped, not even where the optimised form cannot be kept."""
    package = make_package(tmp_path / "models/digits", external_data=True)
    (tmp_path / "state").mkdir()
    (tmp_path / "state/optimised").write_bytes(b"a file where a folder should be")
    program = """
import sys
from pathlib import Path
from edge_agent.runtime.onnx import OnnxBackend
from edge_agent.runtime.optimised import OptimisedModels
from edge_agent.runtime.package import Package
from edge_agent.runtime.selftest import self_test
package = Package.open(Path(sys.argv[1]), verify=True)
golden = package.golden()
backend = OnnxBackend(package, cache=OptimisedModels(Path(sys.argv[2]) / "optimised", own=Path(sys.argv[2])))
with (package.folder / "model.onnx.data").open("r+b") as weights:
    weights.truncate(0)
self_test(backend, golden)
"""
    command = [sys.executable, "-c", program, str(package.folder), str(tmp_path / "state")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_disk_that_fills_up_costs_labels_and_no_answer(tmp_path: Path) -> None:
    with attacked(tmp_path, within=on_small_disk(tmp_path / "device", "4m")) as device:
        assert device.ask("tcp", Request(id="mine")).status == 200
        told = json.dumps({"request_id": "mine/0", "label": "3"}).encode()
        assert post(device, "/v2/models/digits/feedback", told)[0] == 200
        filler = fill(device.device.state)
        statuses = set()
        for _ in range(30):
            for transport in TRANSPORTS:
                device.assert_serves(transport)
            statuses.add(post(device, "/v2/models/digits/feedback", told)[0])
        assert 503 in statuses
        assert post(device, _LOAD.format("digits"))[0] == 200
        filler.unlink()
        assert post(device, "/v2/models/digits/feedback", told)[0] == 200
        device.assert_rests()
