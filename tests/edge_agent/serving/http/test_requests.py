"""Requests of every form that HTTP/1.1 has, over real sockets."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from edge_agent.contract.errors import ConfigurationError
from edge_agent.serving.connections import Connections
from edge_agent.serving.http.limits import HttpLimits
from edge_agent.serving.http.protocol import HttpProtocol
from edge_agent.serving.listen import address_of, listen_tcp
from edge_agent.serving.peer import Transport
from edge_agent.serving.server import Listener, Server
from tests.edge_agent.serving.http.device import Client, Device, Routes, chunked, get, post, serving, wait_until


def test_a_connection_serves_one_request_after_the_other(device: Device) -> None:
    with device.connect() as client:
        for body in (b"", b"x", b"y" * 300):
            answer = client.ask(post("/echo", body))
            assert answer.status == 200
            assert answer.headers == {"content-type": "application/json", "content-length": str(len(answer.body))}
            assert answer.json()["sha"] == hashlib.sha256(body).hexdigest()
    device.routes.wait_released()


@pytest.mark.parametrize("size", [16_383, 16_384, 40_000, 600 * 1024, 1_000_000])
def test_a_large_body_arrives_whole_in_memory_of_its_own(device: Device, size: int) -> None:
    bodies = [os.urandom(size) for _ in range(3)]
    with device.connect() as client:
        for body in bodies:
            assert client.ask(post("/echo", body)).json()["sha"] == hashlib.sha256(body).hexdigest()
    # Nothing of an earlier body is overwritten by a later one, while somebody holds it.
    assert [bytes(request.body) for request in device.routes.seen] == bodies


def test_paths_are_decoded_and_queries_are_not(device: Device) -> None:
    for target, path, query in (
        ("/a%20b/%C3%A4?x=%20&y", "/a b/ä", "x=%20&y"),
        ("/a%2Fb%2fc", "/a%2Fb%2fc", ""),  # a slash within a name is not one between names
        ("/a%0d%0Ab%00%7F", "/a%0d%0Ab%00%7F", ""),
        ("/a%zz%", "/a%zz%", ""),
        ("/a?", "/a", ""),
        ("http://example.org:80/p?q=1?2", "/p", "q=1?2"),
        ("HTTP://example.org", "/", ""),
        ("http://example.org?q", "/", "q"),
        ("*", "*", ""),
    ):
        answer = device.ask(get(target, "Connection: close", method="OPTIONS"))[0].json()
        assert (answer["path"], answer["query"]) == (path, query), target


def test_header_names_are_lowercase_and_repeated_ones_joined(device: Device) -> None:
    device.ask(
        get("/echo", "X-One: a", "x-ONE:  b \t", "X-Two: \xe4".encode("latin-1").decode("latin-1"), "Connection: close")
    )
    headers = device.routes.seen[0].headers
    assert headers[b"x-one"] == b"a, b"
    assert headers[b"host"] == b"x"


def test_head_gives_the_length_and_no_body(device: Device) -> None:
    with device.connect() as client:
        client.send(get("/echo", method="HEAD"))
        answer = client.answer(head_only=True)
        assert (answer.status, answer.headers["content-length"] != "0") == (200, True)
        assert client.ask(get("/echo")).json()["method"] == "GET"  # the connection is where it should be
        client.send(get("/forbidden", method="HEAD"))
        assert client.answer(head_only=True).status == 403
        assert client.ask(get("/empty")).headers == {}


def test_connections_stay_open_or_close_as_both_sides_say(device: Device) -> None:
    with device.connect() as client:
        assert "connection" not in client.ask(get("/echo")).headers
        assert client.ask(get("/echo", "Connection: close")).headers["connection"] == "close"
        assert client.is_closed()
    with device.connect() as client:
        client.send(b"GET /echo HTTP/1.0\r\n\r\n")
        assert client.answer().headers["connection"] == "close"
        assert client.is_closed()
    with device.connect() as client:
        for _ in range(2):
            answer = client.ask(post("/echo", b"abc", "Connection: keep-alive", version="1.0"))
            assert answer.headers["connection"] == "keep-alive"
            assert answer.json()["size"] == 3


def test_pipelined_requests_are_answered_in_order_however_long_each_takes(device: Device) -> None:
    paths = ["/later", "/1", "/later", "/2", "/forbidden", "/broken", "/refused", "/3", "/later"]
    stream = b"".join(post(path, b"x" * 50) for path in paths) + get("/last", "Connection: close")
    answers = device.ask(stream)
    assert [answer.status for answer in answers] == [200, 200, 200, 200, 403, 500, 403, 200, 200, 200]
    assert [each.json()["path"] for each in answers if each.status == 200] == [
        "/later", "/1", "/later", "/2", "/3", "/later", "/last",
    ]  # fmt: skip


def test_a_burst_of_requests_behind_a_slow_one_waits_in_the_socket_and_is_answered(device: Device) -> None:
    count = 3000
    with device.connect() as client:
        client.send(post("/stubborn"))
        assert device.routes.working.wait(20)
        device.routes.go_on.set()
        for number in range(count):
            client.send(post(f"/{number}", b"x" * 40))
        answers = [client.answer().json()["path"] for _ in range(count + 1)]
    assert answers == ["/stubborn", *(f"/{number}" for number in range(count))]


def test_chunked_bodies_are_joined(device: Device) -> None:
    body = os.urandom(200_000)
    parts = [body[:1], body[1:17], body[17:150_000], body[150_000:]]
    with device.connect() as client:
        answer = client.ask(chunked("/echo", *parts, trailer=b"X-Check: 1\r\n"))
        assert answer.json()["sha"] == hashlib.sha256(body).hexdigest()
        assert client.ask(chunked("/echo")).json()["size"] == 0
        head = b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: Chunked\r\n\r\n"
        assert client.ask(head + b'5;name="v" ; x\r\nhello\r\n0\r\n\r\n').json()["size"] == 5
    assert device.routes.lengths == [None, None, None]


def test_a_body_is_asked_for_only_once_it_is_admitted(device: Device) -> None:
    with device.connect() as client:
        client.send(post("/echo", b"", "Expect: 100-continue").replace(b"Length: 0", b"Length: 5"))
        assert client.answer().status == 100
        client.send(b"hello")
        assert client.answer().json()["size"] == 5
        # Whoever does not wait needs no invitation.
        assert client.ask(post("/echo", b"hello", "Expect: 100-Continue")).json()["size"] == 5
        whole = chunked("/echo", b"hello", headers=b"Expect: 100-continue\r\n")
        client.send(whole[: whole.index(b"5\r\n")])
        assert client.answer().status == 100
        assert client.ask(whole[whole.index(b"5\r\n") :]).json()["size"] == 5
    with device.connect() as client:
        client.send(post("/forbidden", b"", "Expect: 100-continue").replace(b"Length: 0", b"Length: 5"))
        refused = client.answer()
        assert (refused.status, refused.headers["connection"]) == (403, "close")
    with device.connect() as client:
        assert client.ask(get("/echo", "Expect: a-miracle")).status == 417


def test_offers_to_speak_something_else_are_ignored(device: Device) -> None:
    offer = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__")
    with device.connect() as client:
        assert client.ask(post("/echo", b"abc", *offer)).json()["size"] == 3
        assert client.ask(get("/echo", *offer)).status == 200
        assert client.ask(post("/echo", b"abc")).json()["size"] == 3


@pytest.mark.parametrize(("size", "pieces"), [(100, 1), (100, 4), (15_000, 3), (60_000, 2), (8_000_000, 8)])
def test_answers_come_whole_in_one_piece_or_many(device: Device, size: int, pieces: int) -> None:
    with device.connect() as client:
        for _ in range(2):
            answer = client.ask(get(f"/large?size={size}&pieces={pieces}"))
            assert answer.body == b"".join(bytes([65 + index]) * (size // pieces) for index in range(pieces))
            assert answer.headers["x-pieces"] == str(pieces)
            assert answer.headers["content-type"] == "application/octet-stream"


def test_an_answer_is_one_write(device: Device) -> None:
    # On loopback one write that fits is one read; a head that is sent before its body would come alone now and then.
    with device.connect() as client, device.connect_unix() as local:
        for connection in (client.socket, local.socket):
            for size in (40, 15_000, 30_000):
                for _ in range(100):
                    connection.sendall(get(f"/large?size={size}&pieces=2"))
                    assert connection.recv(65536).endswith(b"B" * 20)


def test_the_unix_socket_names_the_process_and_tcp_names_loopback(device: Device) -> None:
    with device.connect_unix() as local, device.connect() as client:
        assert local.ask(get("/echo")).status == client.ask(get("/echo")).status == 200
    unix, tcp = (request.peer for request in device.routes.seen)
    assert (unix.transport, unix.loopback, unix.pid) == (Transport.UNIX, True, os.getpid())
    assert (unix.uid, unix.gid) == (os.getuid(), os.getgid())
    assert (tcp.transport, tcp.address, tcp.loopback, tcp.uid) == (Transport.TCP, "127.0.0.1", True, None)


def test_ipv6_loopback_is_loopback(tmp_path: Path) -> None:
    try:
        listener = listen_tcp("::1", 0)
    except ConfigurationError:
        pytest.skip("no IPv6 on this machine")
    routes, connections = Routes(), Connections(10)
    address = address_of(listener)
    port = listener.getsockname()[1]
    server = Server(
        [Listener(listener, lambda: HttpProtocol(routes, connections, HttpLimits(), Transport.TCP), address)],
        connections,
    )
    server.start()
    try:
        assert address == f"http://[::1]:{port}"
        with Client(socket.create_connection(("::1", port), timeout=20)) as client:
            assert client.ask(get("/echo")).status == 200
        assert (routes.seen[0].peer.address, routes.seen[0].peer.loopback) == ("::1", True)
    finally:
        server.stop()


def test_delays_of_small_packets_are_off(device: Device) -> None:
    with device.connect() as client:
        client.ask(get("/echo"))
        (connection,) = device.connections._members
        accepted = connection._transport.get_extra_info("socket")  # type: ignore[attr-defined]
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0


def test_ordinary_clients_are_served(device: Device) -> None:
    body = os.urandom(100_000)
    sha = hashlib.sha256(body).hexdigest()
    connection = http.client.HTTPConnection("127.0.0.1", device.port, timeout=20)
    for data in (body, iter([body[:10], body[10:]])):  # of known length, and in chunks
        connection.request("POST", "/echo", data)
        assert sha in connection.getresponse().read().decode()
    connection.close()


def test_httpx_is_served(device: Device) -> None:
    httpx = pytest.importorskip("httpx")
    body = os.urandom(100_000)
    sha = hashlib.sha256(body).hexdigest()
    with httpx.Client(base_url=f"http://127.0.0.1:{device.port}", timeout=20) as client:
        assert client.post("/echo", content=body).json()["sha"] == sha
        assert client.post("/echo", content=iter([body[:10], body[10:]])).json()["sha"] == sha
        assert client.options("/echo").json()["method"] == "OPTIONS"
        assert client.head("/echo").status_code == 200
    transport = httpx.HTTPTransport(uds=device.unix)
    with httpx.Client(base_url="http://localhost", transport=transport, timeout=20) as client:
        assert client.put("/echo?a=b", content=b"x").json()["query"] == "a=b"


def test_headers_as_tritonclient_sends_them_are_read(device: Device) -> None:
    # Its gevent client writes names as they come, an empty user agent, and asks for keep-alive with HTTP/1.1.
    head = (
        b"POST /v2/models/m/infer HTTP/1.1\r\nConnection: keep-alive\r\nHost: localhost:8000\r\n"
        b"user-agent: geventhttpclient\r\nInference-Header-Content-Length: 3\r\ncontent-length: 5\r\n"
        b"accept-encoding: \r\n\r\n"
    )
    with device.connect() as client:
        for _ in range(2):
            assert client.ask(head + b"{} ab").json()["size"] == 5
    assert device.routes.seen[0].headers[b"inference-header-content-length"] == b"3"


def test_curl_is_served(device: Device, tmp_path: Path) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is not installed")
    file = tmp_path / "body"
    file.write_bytes(os.urandom(900_000))  # large enough for curl to expect 100-continue on some versions
    url = f"http://127.0.0.1:{device.port}/echo"
    for extra in ([], ["-H", "Expect: 100-continue"], ["-H", "Transfer-Encoding: chunked"], ["--http1.0"]):
        done = subprocess.run(
            [curl, "-sS", "--max-time", "20", *extra, "--data-binary", f"@{file}", url],
            capture_output=True, check=True,
        )  # fmt: skip
        assert hashlib.sha256(file.read_bytes()).hexdigest() in done.stdout.decode(), extra
    file.write_bytes(bytes(2_000_000))
    done = subprocess.run(
        [curl, "-sS", "--max-time", "20", "-H", "Expect:", "--data-binary", f"@{file}", url],
        capture_output=True,
        check=True,
    )
    assert b"larger than the limit of 1000000 bytes" in done.stdout  # it sends everything first, and still sees why


def test_the_plain_event_loop_serves_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_agent.serving.server._new_loop", asyncio.new_event_loop)
    body = os.urandom(500_000)
    with serving(tmp_path) as device:
        for client in (device.connect(), device.connect_unix()):
            with client:
                assert client.ask(post("/echo", body)).json()["size"] == len(body)
                assert client.ask(post("/later", b"x")).json()["size"] == 1
                assert client.ask(get("/large?size=400000&pieces=4")).body[-1:] == b"D"
                assert client.ask(chunked("/echo", b"abc", b"d")).json()["size"] == 4
                assert client.ask(b"nonsense\r\n\r\n").status == 400
                assert client.is_closed()
        wait_until(lambda: len(device.connections) == 0)
