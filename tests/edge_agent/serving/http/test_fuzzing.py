"""Nothing that comes in stops the server, holds its rooms or confuses its next request."""

from __future__ import annotations

import random
import socket
import threading
from pathlib import Path

import pytest

from tests.edge_agent.serving.http.device import Client, Device, chunked, get, post, serving, wait_until

_SEEDS = (
    get("/echo?a=b", "Accept: */*"),
    post("/echo", b"x" * 60, "Content-Type: application/json"),
    post("/later", b"x" * 20, "Expect: 100-continue"),
    chunked("/echo", b"hello", b"w" * 30, trailer=b"A: b\r\n"),
    post("/forbidden", b"y" * 30) + get("/broken") + post("/refused", b"z"),
    b"POST / HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 3\r\n\r\nabc",
)
_TOKENS = (
    b"\r\n", b"\n", b"\r", b"\0", b" ", b":", b"\r\n\r\n", b"Content-Length: 9\r\n", b"Transfer-Encoding: chunked\r\n",
    b"HTTP/1.1", b"0\r\n\r\n", b"ffffffff\r\n", b"%", b"Connection: close\r\n",
    b"Upgrade: x\r\nConnection: upgrade\r\n",
)  # fmt: skip


def _mutated(source: random.Random) -> bytes:
    if source.random() < 0.1:
        return source.randbytes(source.randrange(1, 400))
    data = bytearray(b"".join(source.choices(_SEEDS, k=source.randrange(1, 4))))
    for _ in range(source.randrange(0, 6)):
        at = source.randrange(len(data) + 1)
        kind = source.randrange(4)
        if kind == 0:
            data[at : at + 1] = source.randbytes(1)
        elif kind == 1:
            del data[at : at + source.randrange(1, 30)]
        elif kind == 2:
            data[at:at] = source.choice(_TOKENS)
        else:
            data[at:at] = data[at : at + source.randrange(1, 60)]
        if not data:
            return b"\r\n"
    return bytes(data)


def _send(device: Device, data: bytes, source: random.Random) -> None:
    connect = device.connect if source.random() < 0.7 else device.connect_unix
    with connect() as client:
        cut = source.randrange(len(data) + 1)
        client.send(data[:cut])
        client.send(data[cut:])
        if source.random() < 0.3:
            return  # vanishes
        _half_close(client)
        for answer in client.answers_until_closed():
            assert answer.status in (100, 200, 400, 403, 408, 413, 417, 431, 500, 501, 505), data
            if answer.status >= 400:
                assert answer.error


def _half_close(client: Client) -> None:
    try:
        client.socket.shutdown(socket.SHUT_WR)
    except OSError:
        return  # the server has closed it already


def _fuzz(device: Device, seed: int, count: int) -> None:
    source = random.Random(seed)
    for number in range(count):
        data = _mutated(source)
        _send(device, data, source)
        if number % 50 == 0:
            device.assert_serves()


# What mistakes of ours look like in the handler is logged; no such line may come from the transport.
def _assert_only_the_handlers_mistakes(caplog: pytest.LogCaptureFixture) -> None:
    for record in caplog.records:
        if record.levelname in ("ERROR", "CRITICAL"):
            assert record.exc_info is not None, record.getMessage()
            assert record.exc_info[0] is ZeroDivisionError, record.getMessage()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_random_and_mutated_requests_are_survived(device: Device, seed: int, caplog: pytest.LogCaptureFixture) -> None:
    _fuzz(device, seed, 300)
    wait_until(lambda: len(device.connections) == 0)
    device.routes.wait_released()
    _assert_only_the_handlers_mistakes(caplog)


@pytest.mark.slow
def test_random_and_mutated_requests_are_survived_for_long(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with serving(tmp_path) as device:
        threads = [threading.Thread(target=_fuzz, args=(device, 1000 + number, 20_000)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wait_until(lambda: len(device.connections) == 0)
        device.assert_serves()
    _assert_only_the_handlers_mistakes(caplog)
