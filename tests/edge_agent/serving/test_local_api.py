"""The local API as a whole: where it listens, and what becomes of an address that it cannot have."""

from __future__ import annotations

import os
import secrets
import socket
import stat
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from numpy.typing import NDArray

from edge_agent.client import Client
from edge_agent.config import ApiSettings
from edge_agent.contract.errors import AddressInUse, ConfigurationError
from edge_agent.runtime.backend import InferenceBackend
from tests.edge_agent.serving.conftest import make_models
from tests.fakes.packages import reference_images
from tests.fakes.serving_device import Device, serving


def test_every_way_in_answers_at_the_address_that_is_told(tmp_path: Path) -> None:
    make_models(tmp_path)
    settings = ApiSettings(
        port=0, unix_socket=str(tmp_path / "api.sock"), frames_socket=str(tmp_path / "frames.sock"), socket_mode="600"
    )
    with serving(tmp_path, settings) as device:
        addresses = device.api.addresses
        assert addresses == {
            "api": f"http://127.0.0.1:{device.port}",
            "unix": f"unix:{settings.unix_socket}",
            "frames": f"unix:{settings.frames_socket}",
        }
        assert device.ask("GET", "/v2")[0] == device.ask_unix("GET", "/v2")[0] == 200
        for path in (settings.unix_socket, settings.frames_socket):
            assert stat.S_IMODE(os.stat(path).st_mode) == 0o600  # noqa: PTH116 - one call
        with Client(settings.frames_socket) as frames:
            assert frames.infer("digits", {"image": reference_images(1)}).model == "digits"
    assert not Path(settings.unix_socket).exists()


class _Watched:
    """A backend that says in which threads it ran."""

    def __init__(self, backend: InferenceBackend) -> None:
        self._backend, self.signature, self.platform = backend, backend.signature, backend.platform
        self.threads: list[str] = []

    def infer(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        self.threads.append(threading.current_thread().name.partition("_")[0])
        return self._backend.infer(inputs)

    def cancel(self) -> None:
        self._backend.cancel()

    def close(self) -> None:
        self._backend.close()


@pytest.mark.parametrize("by", ["http", "frames", "grpc"])
def test_many_rows_of_a_quick_model_do_not_hold_up_the_event_loop(tmp_path: Path, by: str) -> None:
    make_models(tmp_path)
    settings = ApiSettings(port=0, frames_socket=str(tmp_path / "frames.sock"), grpc_port=0)
    with serving(tmp_path, settings) as device:
        loaded = device.slots.get("digits")
        watched = loaded.backend = _Watched(loaded.backend)
        loaded.inline, loaded.run_us = True, 900.0
        for rows in (1, 12, 2):
            assert _answered_rows(device, by, reference_images(rows)) == rows
        first, second, third = watched.threads
        assert first == third == "serving"
        assert second in {"inference", "errand"}


def _answered_rows(device: Device, by: str, images: NDArray[np.float32]) -> int:
    if by == "frames":
        with Client(device.api.addresses["frames"].removeprefix("unix:")) as frames:
            return len(frames.infer("digits", {"image": images}).outputs["probabilities"])
    module = tritonclient.http if by == "http" else tritonclient.grpc
    given = module.InferInput("image", list(images.shape), "FP32")
    given.set_data_from_numpy(images)
    address = f"127.0.0.1:{device.port}" if by == "http" else device.api.addresses["grpc"]
    client = module.InferenceServerClient(address)
    try:
        return len(client.infer("digits", [given]).as_numpy("probabilities"))
    finally:
        client.close()


def test_a_tensor_in_shared_memory_may_be_as_long_as_a_body(tmp_path: Path) -> None:
    make_models(tmp_path)
    size = 2 * 1024 * 1024
    path = Path("/dev/shm") / f"shoal-test-{secrets.token_hex(6)}"  # noqa: S108 - where shm_open(3) keeps its objects
    path.write_bytes(bytes(size))
    place = {"shared_memory_region": "r", "shared_memory_byte_size": size}
    body = {"inputs": [{"name": "image", "datatype": "FP32", "shape": [size // 256, 64], "parameters": place}]}
    try:
        for mib, status in ((1, 400), (2, 200)):
            with serving(tmp_path, ApiSettings(port=0, max_body_mib=mib, max_rows=size)) as device:
                region = {"key": path.name, "byte_size": size}
                assert device.ask("POST", "/v2/systemsharedmemory/region/r/register", region)[0] == 200
                found, answer = device.ask_json("POST", "/v2/models/digits/infer", body)
                assert found == status
                assert status == 200 or "of one tensor, the limit is 1048576 (max_body_mib" in answer["error"]
    finally:
        path.unlink()


def test_without_tcp_the_unix_socket_is_the_address(tmp_path: Path) -> None:
    make_models(tmp_path)
    settings = ApiSettings(host="", unix_socket=str(tmp_path / "api.sock"))
    with serving(tmp_path, settings) as device:
        assert device.api.addresses == {"api": f"unix:{settings.unix_socket}", "unix": f"unix:{settings.unix_socket}"}
        assert device.ask_unix("GET", "/v2/health/ready")[0] == 200


def test_a_taken_address_gives_back_those_that_were_free(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(AddressInUse, match=f"127.0.0.1:{port}"), serving(tmp_path, ApiSettings(port=port)):
            pass
    wrong = ApiSettings(port=0, unix_socket=str(tmp_path / "models"))
    with pytest.raises(ConfigurationError, match="no socket"), serving(tmp_path, wrong):
        pass
    same = str(tmp_path / "one.sock")
    with (
        pytest.raises(ConfigurationError, match=r"unix_socket and frames_socket are the same path, .*one\.sock: give"),
        serving(tmp_path, ApiSettings(port=0, unix_socket=same, frames_socket=f"{tmp_path}/./one.sock")),
    ):
        pass
    with serving(tmp_path, ApiSettings(port=port)) as device:
        assert device.port == port
