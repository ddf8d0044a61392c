"""Clients of a real agent that are slow, vanish, never read, or come in crowds: they harm nobody but themselves."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import resource
import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from edge_agent.contract.frame_messages import Inferred
from edge_agent.contract.frames import decode_answer
from edge_agent.serving.grpc import oip_pb2 as oip
from tests.integration.attacked_agent import TRANSPORTS, AttackedAgent, attacked
from tests.integration.hostile_requests import Request, Tensor, frame_of, grpc_message, http_body

_SOCKETS = ("tcp", "unix", "frames")
# The models' own and SQLite's files, listeners, event loop, gRPC: some room beyond what rests.
_FEW_FILES = 150


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AttackedAgent]:
    with attacked(tmp_path_factory.mktemp("crowded")) as one:
        yield one


@pytest.fixture
def held(device: AttackedAgent) -> Iterator[list[socket.socket]]:
    """Connections to close in the end, after which the agent must rest."""
    connections: list[socket.socket] = []
    yield connections
    for connection in connections:
        connection.close()
    device.assert_rests()


def whole_request(transport: str, request: Request) -> bytes:
    """The bytes of a request on a connection."""
    if transport == "frames":
        return frame_of(request)
    head, raw = http_body(request)
    lines = [
        f"POST /v2/models/{request.model}/infer HTTP/1.1",
        "Host: localhost",
        f"Inference-Header-Content-Length: {len(head)}",
        f"Content-Length: {len(head + raw)}",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + head + raw


def long_text(size: int) -> Request:
    """A request whose answer is as long as itself."""
    data = size.to_bytes(4, "little") + b"x" * size
    return Request(model="echo", inputs=(Tensor("text", "BYTES", (1, 1), data),))


def reset(connection: socket.socket) -> None:
    """Go away without a word."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@pytest.mark.parametrize("transport", _SOCKETS)
@pytest.mark.parametrize("model", ["digits", "queued", "echo"])
def test_clients_that_vanish_anywhere_in_a_request_leave_nothing_behind(
    device: AttackedAgent, transport: str, model: str
) -> None:
    request = long_text(100_000) if model == "echo" else Request(model=model)
    data = whole_request(transport, request)
    for cut in (*range(1, len(data), max(1, len(data) // 25)), len(data)):
        connection = device.connect(transport)
        connection.sendall(data[:cut])
        reset(connection)
    device.assert_rests()


def test_calls_that_are_given_up_leave_nothing_behind(device: AttackedAgent) -> None:
    hanging = Request(model="queued", inputs=(Tensor.of(np.full((1, 64), 3e5, np.float32)),))
    with grpc.insecure_channel(str(device.addresses["grpc"])) as channel:
        call: Any = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=oip.ModelInferRequest.SerializeToString,
            response_deserializer=oip.ModelInferResponse.FromString,
        )
        asked = [call.future(grpc_message(hanging)) for _ in range(8)]
        time.sleep(0.1)
        for one in asked:
            one.cancel()
    device.assert_rests()


@pytest.mark.parametrize("transport", _SOCKETS)
def test_requests_that_do_not_arrive_in_time_end_their_connections(
    device: AttackedAgent, held: list[socket.socket], transport: str
) -> None:
    data = whole_request(transport, long_text(50_000))
    for cut in (2, 30, 2000, len(data) - 1):
        connection = device.connect(transport)
        connection.sendall(data[:cut])
        held.append(connection)
    device.assert_serves(transport)
    for connection in held:
        told = connection.recv(65536)
        assert b"did not arrive within" in told or told == b"", told


@pytest.mark.parametrize("transport", _SOCKETS)
def test_bodies_that_never_come_keep_no_small_request_out(
    device: AttackedAgent, held: list[socket.socket], transport: str
) -> None:
    large, small = whole_request(transport, long_text(1_000_000)), whole_request(transport, Request(model="queued"))
    for _ in range(3):  # as much as all bodies together may take
        held.append(device.connect(transport))
        held[-1].sendall(large[:1000])
    for _ in range(20):  # more than may be worked on at once
        held.append(device.connect(transport))
        held[-1].sendall(small[:-1])
    for each in TRANSPORTS:
        assert device.ask(each, Request(model="queued")).status == 200


@pytest.mark.parametrize("transport", _SOCKETS)
def test_a_drop_at_a_time_is_too_slow_and_others_are_served_meanwhile(
    device: AttackedAgent, held: list[socket.socket], transport: str
) -> None:
    data = whole_request(transport, long_text(50_000))
    drip = device.connect(transport)
    held.append(drip)
    sent = 0
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        for at in range(len(data)):
            drip.sendall(data[at : at + 1])
            sent += 1
            device.assert_serves(transport)
            time.sleep(0.05)
    assert sent < len(data)


@pytest.mark.parametrize("transport", _SOCKETS)
def test_who_never_reads_is_answered_no_further_and_takes_no_memory(
    device: AttackedAgent, held: list[socket.socket], transport: str
) -> None:
    before = device.rss
    data = whole_request(transport, long_text(900_000))

    def ask_without_end(connection: socket.socket) -> None:
        with contextlib.suppress(OSError):  # stopped, then cut off
            for _ in range(100):
                connection.sendall(data)

    greedy = [device.connect(transport) for _ in range(12)]
    held += greedy
    threads = [threading.Thread(target=ask_without_end, args=(connection,)) for connection in greedy]
    for thread in threads:
        thread.start()
    for _ in range(10):
        device.assert_serves(transport)
        assert device.rss - before < 120_000_000
        time.sleep(0.05)
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("transport", _SOCKETS)
def test_thousands_of_requests_in_one_piece_are_all_answered(device: AttackedAgent, transport: str) -> None:
    before, count = device.counts(), 10_000 if transport == "tcp" else 2_000
    data = whole_request(transport, Request())
    with device.connect(transport) as connection, connection.makefile("rb") as reader:
        sender = threading.Thread(target=connection.sendall, args=(data * count,))
        sender.start()
        for _ in range(count):
            if transport == "frames":
                size = reader.read(4)
                assert isinstance(decode_answer(size + reader.read(int.from_bytes(size, "little"))), Inferred)
                continue
            assert reader.readline() == b"HTTP/1.1 200 OK\r\n"
            length = 0
            while (line := reader.readline()) != b"\r\n":
                if line.startswith(b"content-length: "):
                    length = int(line[16:])
            reader.read(length)
        sender.join()
    assert device.counts()["success"] == before["success"] + count
    device.assert_rests()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_crowd_that_says_nothing_keeps_out_only_those_who_come_the_same_way(
    device: AttackedAgent, held: list[socket.socket], transport: str
) -> None:
    limits = resource.prlimit(device.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(device.pid, resource.RLIMIT_NOFILE, (_FEW_FILES, limits[1]))
    try:
        held += [device.connect(transport) for _ in range(300)]
        others = [each for each in TRANSPORTS if each.startswith("grpc") != transport.startswith("grpc")]
        for other in others:
            device.assert_serves(other)
        assert len(os.listdir(f"/proc/{device.pid}/fd")) < _FEW_FILES  # noqa: PTH208 - names alone
    finally:
        for connection in held:
            connection.close()
        resource.prlimit(device.pid, resource.RLIMIT_NOFILE, limits)
    for each in TRANSPORTS:
        device.until(functools.partial(_is_served, device, each), functools.partial("{} to serve again".format, each))


def test_thousands_of_connections_one_after_the_other_leave_nothing_behind(device: AttackedAgent) -> None:
    before = device.rss
    for number in range(3000):
        connection = device.connect(TRANSPORTS[number % len(TRANSPORTS)])
        if number % 3:
            # Where the agent gets no processor for a while, those who left are still counted, and more are sent away.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n")
        if number % 2:
            reset(connection)
        else:
            connection.close()
    device.assert_rests()
    assert device.rss - before < 40_000_000


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_many_large_bodies_at_once_take_little_more_memory_than_a_few(tmp_path: Path, transport: str) -> None:
    wrong = Request(inputs=(Tensor(shape=(1, 3_900_000), data=bytes(15_600_000)),))
    with attacked(tmp_path, body_mib=16) as device:
        device.assert_serves(transport)
        before, peak, over = device.rss, 0, threading.Event()

        def watch() -> None:
            nonlocal peak
            while not over.wait(0.005):
                peak = max(peak, device.rss)

        watcher = threading.Thread(target=watch)
        watcher.start()
        with ThreadPoolExecutor(32) as applications:
            outcomes = list(applications.map(lambda _: device.ask(transport, wrong), range(40)))
        over.set()
        watcher.join()
        # 504: where other programs keep the processors busy, a body may take longer than its deadline.
        assert {outcome.status for outcome in outcomes} <= {400, 503, 504}
        assert peak - before < 300_000_000, peak - before
        device.assert_rests()


@pytest.mark.slow
def test_half_a_connection_to_grpc_is_closed(device: AttackedAgent) -> None:
    with device.connect("grpc") as connection:
        connection.settimeout(30)
        with contextlib.suppress(ConnectionResetError):
            while connection.recv(65536):  # its settings; then nothing more
                pass


def test_a_signal_to_stop_answers_what_is_on_its_way(tmp_path: Path) -> None:
    request = Request(model="queued", inputs=(Tensor.of(np.full((1, 64), 3e5, np.float32)),))
    with attacked(tmp_path) as device, ThreadPoolExecutor(len(TRANSPORTS)) as applications:
        asked = [applications.submit(device.ask, transport, request) for transport in TRANSPORTS]
        device.until(lambda: device.metrics()["shoal_pending_requests"] >= len(asked), lambda: "all to be on their way")
        assert device.device.stop() == 0
        assert [one.result().status for one in asked] == [200] * len(asked)
        device.assert_no_mistake()


def _is_served(device: AttackedAgent, transport: str) -> bool:
    try:
        return device.ask(transport, Request()).status == 200
    except (OSError, json.JSONDecodeError):
        return False
