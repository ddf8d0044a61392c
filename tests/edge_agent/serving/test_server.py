"""Listening, stopping and failing to accept: sockets and signals of real processes."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from edge_agent.contract.errors import AddressInUse, ConfigurationError
from edge_agent.serving.connections import Connections
from edge_agent.serving.listen import address_of, listen_tcp, listen_unix
from edge_agent.serving.server import Listener, Server
from tests.edge_agent.serving.http.device import get, post, serving, wait_until

_PROGRAM = """
import resource, sys
from pathlib import Path
from edge_agent.serving.connections import Connections
from edge_agent.serving.http.limits import HttpLimits
from edge_agent.serving.http.protocol import HttpProtocol
from edge_agent.serving.listen import address_of, listen_unix
from edge_agent.serving.peer import Transport
from edge_agent.serving.server import Listener, Server
from tests.edge_agent.serving.http.device import Routes

path, routes, connections = sys.argv[1], Routes(), Connections(1000)
if len(sys.argv) > 3:
    resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[3]), int(sys.argv[3])))
listener = listen_unix(path)
factory = lambda: HttpProtocol(routes, connections, HttpLimits(), Transport.UNIX)
server = Server([Listener(listener, factory, address_of(listener), path)], connections, grace_s=float(sys.argv[2]))
print("ready", flush=True)
server.run()
print("stopped", Path(path).exists(), flush=True)
"""


def _start(path: Path, grace_s: float, *, descriptors: int | None = None) -> subprocess.Popen[str]:
    # The process sets its own limit: other tests have left threads here, and code between fork and exec may hang then.
    limit = [] if descriptors is None else [str(descriptors)]
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, str(path), str(grace_s), *limit],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def _connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(20)
    connection.connect(str(path))
    return connection


def _ask(connection: socket.socket, data: bytes) -> bytes:
    connection.sendall(data)
    return connection.recv(65536)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_run_return_after_the_last_answer(tmp_path: Path, number: signal.Signals) -> None:
    path = tmp_path / "api.sock"
    with _start(path, 20) as process, _connect(path) as idle, _connect(path) as later:
        assert _ask(idle, get("/echo")).startswith(b"HTTP/1.1 200")
        invited = _ask(later, post("/echo", b"x" * 100, "Expect: 100-continue")[:-100])
        assert invited == b"HTTP/1.1 100 Continue\r\n\r\n"  # in flight: its body is still to come
        process.send_signal(number)
        assert idle.recv(1) == b""  # closed at once
        wait_until(lambda: not path.exists())  # nobody new comes in
        answer = _ask(later, b"x" * 100)
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"connection: close" in answer
        assert process.wait(20) == 0
        assert process.communicate() == ("stopped False\n", "")


@pytest.mark.parametrize("again", [False, True])
def test_the_grace_ends_with_its_time_or_a_second_signal(tmp_path: Path, *, again: bool) -> None:
    path = tmp_path / "api.sock"
    with _start(path, 600 if again else 0.3) as process, _connect(path) as client:
        client.sendall(post("/never"))
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        if again:
            wait_until(lambda: not path.exists())
            process.send_signal(signal.SIGTERM)
        assert client.recv(1) == b""
        assert process.wait(20) == 0
        output, errors = process.communicate()
        assert output == "stopped False\n"
        assert "Traceback" not in errors


_EARLY = """
import os, signal, sys
import uvloop
from edge_agent.serving import server
from edge_agent.serving.connections import Connections

class Loop(uvloop.Loop):
    def run_until_complete(self, future):
        os.kill(os.getpid(), signal.SIGTERM)
        return super().run_until_complete(future)

server._new_loop = Loop
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
server.Server([], Connections(10)).run()
"""


def test_a_signal_just_before_the_loop_runs_is_not_lost() -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run([sys.executable, "-c", _EARLY], env=environment, capture_output=True, timeout=60, check=False)
    assert done.returncode == 7, done.stderr


def test_running_out_of_file_descriptors_ends_nothing_and_burns_nothing(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    with _start(path, 1, descriptors=40) as process:
        crowd = [_connect(path) for _ in range(60)]  # the backlog takes whom the process cannot accept
        assert _ask(crowd[0], get("/echo")).startswith(b"HTTP/1.1 200")
        before = _cpu_s(process.pid)
        time.sleep(1.0)
        assert _cpu_s(process.pid) - before < 0.5
        assert _ask(crowd[0], get("/echo")).startswith(b"HTTP/1.1 200")
        for connection in crowd[:40]:
            connection.close()
        assert _ask(crowd[59], get("/echo")).startswith(b"HTTP/1.1 200")  # it has waited, and is served
        for connection in crowd[40:]:
            connection.close()
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=20)
    assert output == "stopped False\n"
    assert "cannot accept connections now" in errors
    assert "Traceback" not in errors


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_stopping_answers_what_is_in_flight_and_refuses_what_comes_later(tmp_path: Path) -> None:
    with serving(tmp_path) as device, device.connect() as client, device.connect() as idle:
        assert idle.ask(get("/echo")).status == 200
        client.send(post("/stubborn"))
        assert device.routes.working.wait(20)
        stopping = threading.Thread(target=device.server.stop)
        stopping.start()
        assert idle.is_closed()
        with pytest.raises(OSError, match="refused"):
            device.connect()
        device.routes.go_on.set()
        answer = client.answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        stopping.join(20)
        assert not stopping.is_alive()
    device.server.stop()  # once more does no harm


def test_stopping_waits_for_who_reads_slowly_and_no_longer(tmp_path: Path) -> None:
    with serving(tmp_path, grace_s=600.0) as device, device.connect() as client:
        client.send(get("/large?size=30000000&pieces=2"))
        wait_until(lambda: device.routes.releases == 1)  # written, as far as it could be
        with ThreadPoolExecutor(1) as thread:
            stopping = thread.submit(device.server.stop, 60.0)
            wait_until(lambda: not Path(device.unix).exists())
            assert len(client.answer().body) == 30_000_000
            assert client.is_closed()
            stopping.result()


def test_a_server_that_never_ran_gives_its_addresses_back(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    for _ in range(2):
        listener = listen_unix(str(path))
        accepted = Listener(listener, lambda: pytest.fail("nobody is let in"), address_of(listener), str(path))
        server = Server([accepted], Connections(1))
        server.stop()
        assert not path.exists()
        assert listener.fileno() == -1
        server.start()  # too late: it was told to stop
        server.stop()


def test_a_socket_in_a_folder_that_is_not_there_says_who_makes_folders(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"the folder .*/shoal is not there: make it$"):
        listen_unix(str(tmp_path / "shoal" / "api.sock"))
    with pytest.raises(ConfigurationError, match=r"the folder /run/shoal-of-nobody .*RuntimeDirectory=shoal-of-nobody"):
        listen_unix("/run/shoal-of-nobody/api.sock")


class _Service:
    """Listens for nothing; may fail to begin."""

    def __init__(self, log: list[str], name: str, error: Exception | None = None) -> None:
        self._log, self._name, self._error = log, name, error

    async def start(self) -> None:
        if self._error is not None:
            raise self._error
        self._log.append(f"{self._name} starts")

    async def stop(self, grace_s: float) -> None:
        self._log.append(f"{self._name} stops within {grace_s:g} s")


@pytest.mark.parametrize("apart", [True, False], ids=["in a thread", "here"])
def test_a_service_that_cannot_start_is_an_error_and_leaves_nothing_behind(tmp_path: Path, apart: bool) -> None:
    path, log = tmp_path / "api.sock", list[str]()
    listener, connections = listen_unix(str(path)), Connections(1)
    services = [_Service(log, "one"), _Service(log, "two", AddressInUse("8001: taken")), _Service(log, "three")]
    accepted = Listener(listener, lambda: pytest.fail("nobody is let in"), address_of(listener), str(path))
    server = Server([accepted], connections, services=services)
    with pytest.raises(AddressInUse, match="8001: taken"):
        server.start() if apart else server.run()
    assert log == ["one starts", "one stops within 0 s"]
    assert not path.exists()
    server.stop()  # harmless


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666])
@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_a_unix_socket_has_its_mode_before_anybody_can_connect(tmp_path: Path, mode: int, umask: int) -> None:
    path, seen, done = tmp_path / "api.sock", set(), threading.Event()

    def watch() -> None:
        while not done.is_set():
            try:
                seen.add(stat.S_IMODE(path.stat().st_mode))
            except FileNotFoundError:
                continue

    watcher = threading.Thread(target=watch)
    before = os.umask(umask)
    try:
        watcher.start()
        for _ in range(50):
            listener = listen_unix(str(path), mode)
            assert stat.S_IMODE(path.stat().st_mode) == mode
            listener.close()
    finally:
        os.umask(before)
        done.set()
        watcher.join()
    assert all(found & ~mode == 0 for found in seen), [oct(found) for found in seen]


def test_a_dead_socket_is_taken_over_and_a_live_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    listen_unix(str(path)).close()
    live = listen_unix(str(path))
    with pytest.raises(AddressInUse, match="already in use"):
        listen_unix(str(path))
    live.close()
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(ConfigurationError, match="no socket"):
        listen_unix(str(file))
    assert file.read_text() == "mine"
    for wrong in (str(tmp_path / "no" / "folder"), str(tmp_path / ("x" * 200)), "a\0b"):
        with pytest.raises(ConfigurationError):
            listen_unix(wrong)


def test_a_socket_that_another_has_put_in_its_place_is_left_alone(tmp_path: Path) -> None:
    with serving(tmp_path) as device:
        path = Path(device.unix)
        path.unlink()
        other = listen_unix(str(path))
    assert path.exists()
    other.close()


def test_tcp_addresses_are_taken_or_refused_with_a_reason() -> None:
    listener = listen_tcp("127.0.0.1", 0)
    port = listener.getsockname()[1]
    assert address_of(listener) == f"http://127.0.0.1:{port}"
    with pytest.raises(AddressInUse, match="already in use"):
        listen_tcp("127.0.0.1", port)
    listener.close()
    for host, wrong in (("192.0.2.1", 0), ("no such host.invalid", 0), ("127.0.0.1", 70_000)):
        with pytest.raises(ConfigurationError):
            listen_tcp(host, wrong)
