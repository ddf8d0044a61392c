"""One request, however large, exhausts neither the memory of a real agent nor the patience of those beside it."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.e2e.running_agent import PATIENCE_S, Agent, agent, shoal_agent
from tests.fakes.packages import make_package

_INFER = "/v2/models/digits/infer"
_GROWTH_BYTES = 150_000_000


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Agent]:
    package = make_package(tmp_path / "package")
    with agent(tmp_path / "device") as one:
        assert shoal_agent("install", "--config", one.settings, package.folder).returncode == 0
        one.start()
        yield one


def ask(address: str, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    """Status and body of the answer."""
    connection = http.client.HTTPConnection(address, timeout=PATIENCE_S)
    try:
        connection.request(method, path, body)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def request_of(rows: int) -> bytes:
    """A request of that many rows, about 256 bytes each."""
    data = b",".join([b"0.5"] * (64 * rows))
    return b'{"inputs":[{"name":"image","shape":[%d,64],"datatype":"FP32","data":[%s]}]}' % (rows, data)


def resident(device: Agent) -> int:
    """Bytes of the agent's memory now."""
    pid = json.loads((device.state / "agent.json").read_text())["pid"]
    return int(psutil.Process(pid).memory_info().rss)


def peak_while(device: Agent, body: bytes, *, times: int) -> tuple[list[tuple[int, bytes]], int, int]:
    """Answers to ``body`` sent ``times`` at once, the most memory meanwhile, and the health checks answered."""
    address, done = device.address, threading.Event()
    answers: list[tuple[int, bytes]] = []
    peak = healthy = 0

    def send() -> None:
        answers.append(ask(address, "POST", _INFER, body))

    def watch() -> None:
        nonlocal peak, healthy
        while True:
            peak = max(peak, resident(device))
            healthy += ask(address, "GET", "/v2/health/live")[0] == 200
            if done.is_set():
                return

    senders = [threading.Thread(target=send) for _ in range(times)]
    watcher = threading.Thread(target=watch)
    for thread in (watcher, *senders):
        thread.start()
    for thread in senders:
        thread.join()
    done.set()
    watcher.join()
    return answers, peak, healthy


@pytest.mark.parametrize(
    ("rows", "status", "said"),
    [
        (200_000, 413, b"limit of 16777216 bytes"),
        (60_000, 400, b"60000 rows, the limit is 1024 (max_rows under [api] in the agent's settings)"),
    ],
)
def test_a_request_that_is_too_large_is_refused_and_takes_no_memory(
    device: Agent, rows: int, status: int, said: bytes
) -> None:
    assert ask(device.address, "POST", _INFER, request_of(1))[0] == 200
    before = resident(device)
    answers, peak, healthy = peak_while(device, request_of(rows), times=1)
    assert answers[0][0] == status
    assert said in answers[0][1]
    assert healthy >= 1
    assert peak - before < _GROWTH_BYTES


def test_many_large_requests_at_once_are_answered_or_told_to_wait(device: Agent) -> None:
    assert ask(device.address, "POST", _INFER, request_of(1))[0] == 200
    before = resident(device)
    answers, peak, healthy = peak_while(device, request_of(60_000), times=6)
    assert {status for status, _ in answers} <= {400, 503}
    assert healthy >= 1
    assert peak - before < _GROWTH_BYTES
    assert ask(device.address, "POST", _INFER, request_of(1024))[0] == 200


def test_the_limits_are_settings(device: Agent) -> None:
    device.stop()
    settings = device.settings.read_text().replace("port = 0\n", "port = 0\nmax_rows = 2\nmax_body_mib = 1\n")
    device.settings.write_text(settings)
    device.start()
    assert ask(device.address, "POST", _INFER, request_of(2))[0] == 200
    status, text = ask(device.address, "POST", _INFER, request_of(3))
    assert (status, b"the limit is 2" in text) == (400, True)
    assert ask(device.address, "POST", _INFER, request_of(6_000))[0] == 413
