"""What HTTP itself costs: the device's transport beside a bare ASGI callable on uvicorn, both on uvloop, httptools.

Each server is a process on one core, the load generator on another. Both answer a 256-byte POST with 40 bytes of JSON;
rounds alternate, and the median of the rounds' ratios is what counts. "other heads" sends a new header value with each
request, so that no head equals the last one. Needs uvicorn (the extra `server`). Writes build/bench/transport.json.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
import select
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

BODY = b'{"inputs":[{"name":"x","shape":[1,4],"datatype":"FP32","data":[1.0,2.0,3.0,4.0]}]}'.ljust(256)
ANSWER = b'{"outputs":[{"name":"y","data":[0.12]}]}'
IMAGE_BYTES = 600 * 1024
CONNECTIONS = 16


class Room:
    limit_bytes = 16 << 20

    def release(self) -> None:
        pass


class Constant:
    """A handler that answers everything alike."""

    def __init__(self) -> None:
        from edge_agent.serving.http.message import HttpResponse

        self._room, self._kind = Room(), HttpResponse

    def admit(self, _head: Any, _length: int | None) -> Room:
        return self._room

    def express(self, _head: Any, _length: int) -> None:
        """Nothing does: what is measured is the whole way."""

    def handle(self, request: Any) -> Any:
        assert len(request.body) in (len(BODY), IMAGE_BYTES)
        return self._kind(200, ANSWER)


async def bare(_scope: Any, receive: Any, send: Any) -> None:
    """The least that an ASGI callable can do."""
    parts = []
    while True:
        message = await receive()
        parts.append(message["body"])
        if not message.get("more_body"):
            break
    body = parts[0] if len(parts) == 1 else b"".join(parts)
    assert len(body) in (len(BODY), IMAGE_BYTES)
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(ANSWER))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": ANSWER})


def serve_ours(listeners: list[socket.socket], core: int | None) -> None:
    from edge_agent.serving.connections import Connections
    from edge_agent.serving.http.limits import HttpLimits
    from edge_agent.serving.http.protocol import HttpProtocol
    from edge_agent.serving.listen import address_of
    from edge_agent.serving.peer import Transport
    from edge_agent.serving.server import Listener, Server

    _pin(core)
    connections, handler, limits = Connections(256), Constant(), HttpLimits()
    kinds = [Transport.UNIX if each.family == socket.AF_UNIX else Transport.TCP for each in listeners]
    Server(
        [
            Listener(each, functools.partial(HttpProtocol, handler, connections, limits, kind), address_of(each))
            for each, kind in zip(listeners, kinds, strict=True)
        ],
        connections,
        grace_s=0.1,
    ).run()


def serve_uvicorn(listeners: list[socket.socket], core: int | None) -> None:
    import uvicorn

    _pin(core)
    config = uvicorn.Config(
        bare, loop="uvloop", http="httptools", ws="none", lifespan="off", access_log=False, log_config=None,
        server_header=False, date_header=False, proxy_headers=False,
    )  # fmt: skip
    uvicorn.Server(config).run(sockets=listeners)


def _pin(core: int | None) -> None:
    if core is not None:
        os.sched_setaffinity(0, {core})


def request(body: bytes, number: int = 0) -> bytes:
    head = (
        "POST /v2/models/tiny/infer HTTP/1.1\r\nHost: 127.0.0.1:8500\r\nUser-Agent: benchmark\r\nAccept: */*\r\n"
        f"X-Request-Id: {number:08d}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def connect(address: Any) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
    connection.connect(address)
    if not isinstance(address, str):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def load(address: Any, seconds: float, other_heads: bool) -> float:
    """Requests per second over 16 connections with one request at a time each."""
    many = [request(BODY, number) for number in range(256)] if other_heads else [request(BODY)] * 256
    poll, open_ = select.epoll(), {}
    for _ in range(CONNECTIONS):
        connection = connect(address)
        open_[connection.fileno()] = connection
        poll.register(connection, select.EPOLLIN)
        connection.sendall(many[0])
    count, begin = 0, time.perf_counter()
    end = begin + seconds
    while time.perf_counter() < end:
        for fd, _ in poll.poll():
            connection = open_[fd]
            if not connection.recv(4096).endswith(ANSWER):
                continue
            count += 1
            connection.send(many[count & 255])
    elapsed = time.perf_counter() - begin
    for connection in open_.values():
        connection.close()
    return count / elapsed


def latency_us(address: Any, body: bytes, count: int) -> list[float]:
    """One connection, one request after the other."""
    connection, whole, times = connect(address), request(body), []
    for _ in range(count):
        begin = time.perf_counter()
        connection.sendall(whole)
        while not connection.recv(4096).endswith(ANSWER):  # uvicorn writes head and body apart now and then
            pass
        times.append((time.perf_counter() - begin) * 1e6)
    connection.close()
    return times


def measure(servers: dict[str, tuple[Any, str, psutil.Process]], rounds: int, seconds: float) -> list[dict[str, Any]]:
    rows = []
    for other_heads in (False, True):
        rates: dict[str, list[tuple[float, float]]] = {name: [] for name in servers}
        for turn in range(rounds + 1):
            for name, (tcp, _, process) in servers.items():
                before = process.cpu_times()
                rate = load(tcp, seconds, other_heads)
                after = process.cpu_times()
                cpu_us = (after.user + after.system - before.user - before.system) / (rate * seconds) * 1e6
                if turn:  # the first is the warm-up
                    rates[name].append((rate, cpu_us))
        ratio = statistics.median(a[0] / b[0] for a, b in zip(*rates.values(), strict=True))
        cpu_ratio = statistics.median(b[1] / a[1] for a, b in zip(*rates.values(), strict=True))
        for name, found in rates.items():
            rows.append({
                "server": name, "case": "16 connections, " + ("other heads" if other_heads else "same heads"),
                "requests_per_s": statistics.median(rate for rate, _ in found),
                "cpu_us": statistics.median(cpu for _, cpu in found), "ratio": ratio, "cpu_ratio": cpu_ratio,
            })  # fmt: skip
    return rows + latencies(servers, rounds)


def latencies(servers: dict[str, tuple[Any, str, psutil.Process]], rounds: int) -> list[dict[str, Any]]:
    rows = []
    for case, index, body, count in (
        ("tcp 256 B", 0, BODY, 1500), ("unix 256 B", 1, BODY, 1500),
        ("tcp 600 KB", 0, bytes(IMAGE_BYTES), 200), ("unix 600 KB", 1, bytes(IMAGE_BYTES), 200),
    ):  # fmt: skip
        times: dict[str, list[float]] = {name: [] for name in servers}
        for _ in range(rounds + 1):
            for name, server in servers.items():
                times[name] += latency_us(server[index], body, count)[count // 10 :]
        for name, found in times.items():
            rows.append({
                "server": name, "case": case, "p50_us": statistics.median(found),
                "p99_us": statistics.quantiles(found, n=100)[98],
            })  # fmt: skip
    return rows


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=7)
    arguments.add_argument("--seconds", type=float, default=1.0)
    given = arguments.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    server_core, client_core = (cores[1], cores[0]) if len(cores) > 1 else (None, None)
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        servers: dict[str, tuple[Any, str, psutil.Process]] = {}
        processes = []
        serving: tuple[tuple[str, Callable[..., None]], ...] = (("shoal", serve_ours), ("uvicorn", serve_uvicorn))
        for name, target in serving:
            tcp, unix = socket.create_server(("127.0.0.1", 0), backlog=128), socket.socket(socket.AF_UNIX)
            unix.bind(f"{folder}/{name}")
            unix.listen(128)
            process = context.Process(target=target, args=([tcp, unix], server_core), daemon=True)
            process.start()
            processes.append(process)
            assert process.pid is not None
            servers[name] = (tcp.getsockname(), f"{folder}/{name}", psutil.Process(process.pid))
            latency_us(servers[name][0], BODY, 300)
        _pin(client_core)
        try:
            rows = measure(servers, given.rounds, given.seconds)
        finally:
            for process in processes:
                process.terminate()
                process.join(10)
    file = Path("build/bench/transport.json")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(rows, indent=2) + "\n")
    report(rows)


def report(rows: list[dict[str, Any]]) -> None:
    print(f"{'case':<30}{'server':<10}{'req/s':>9}{'CPU us':>8}{'p50 us':>9}{'p99 us':>9}  shoal : uvicorn")
    for row in rows:
        figures = [row.get(key) for key in ("requests_per_s", "cpu_us", "p50_us", "p99_us")]
        cells = [f"{value:,.1f}" if value is not None else "" for value in figures]
        ratio = f"  {row['ratio']:.2f} (CPU {row['cpu_ratio']:.2f})" if "ratio" in row else ""
        print(f"{row['case']:<30}{row['server']:<10}{cells[0]:>9}{cells[1]:>8}{cells[2]:>9}{cells[3]:>9}{ratio}")


if __name__ == "__main__":
    main()
