"""Whoever asks again at once is waited for awake, whatever the model takes, and however the request comes."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest
from numpy.typing import NDArray

from edge_agent.config import ApiSettings
from edge_agent.runtime.backend import InferenceBackend
from edge_agent.serving.busy_poll import BusyPoll
from tests.edge_agent.serving.http.device import Client
from tests.fakes.packages import INPUT, make_package, reference_images
from tests.fakes.serving_device import serving


class Slow:
    """A backend that takes longer than the pause within which somebody is waited for."""

    def __init__(self, backend: InferenceBackend) -> None:
        self._backend = backend
        self.platform, self.signature = backend.platform, backend.signature
        self.cancel, self.close = backend.cancel, backend.close

    def infer(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        time.sleep(0.025)
        return self._backend.infer(inputs)


def request(spaces: int) -> bytes:
    numbers = ",".join(str(round(float(value), 3)) for value in reference_images(1).ravel())
    tensor = f'{{"name":"{INPUT}","shape":[1,64],"datatype":"FP32","data":[{numbers}]}}'
    body = f'{{"inputs":[{tensor}]}}{" " * spaces}'.encode()
    head = f"POST /v2/models/digits/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


@pytest.mark.parametrize("idle_beside", [False, True])
@pytest.mark.parametrize("lengths_differ", [False, True])
def test_the_loop_stays_awake_for_who_asks_again_at_once(
    tmp_path: Path, idle_beside: bool, lengths_differ: bool
) -> None:
    make_package(tmp_path / "models" / "digits")
    with serving(tmp_path, ApiSettings(port=0, busy_poll_us=10_000)) as device:
        poll = cast(BusyPoll, cast(Any, device.api)._connections.heard.__self__)
        loaded = device.slots.get("digits")
        loaded.backend = Slow(loaded.backend)
        address = ("127.0.0.1", device.port)
        beside = socket.create_connection(address) if idle_beside else None
        with socket.create_connection(address, timeout=30) as connection:
            client = Client(connection)
            for number in range(100):
                assert client.ask(request(number % 2 if lengths_differ else 0)).status == 200
                if poll.awake:
                    break
            assert poll.awake or poll.missed
        if beside is not None:
            beside.close()
