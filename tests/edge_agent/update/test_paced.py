"""Answers that dawdle, from a bare socket: heads and bodies that drip, silence, and lengths that lie."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from edge_agent.contract.errors import NetworkError
from edge_agent.update import server_files
from edge_agent.update.server_files import ServerFiles

HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 4000\r\n\r\n"


@contextlib.contextmanager
def answering(data: bytes, *, every_s: float, size: int = 1) -> Iterator[str]:
    """A server that sends ``data`` bit by bit; gives its URL."""
    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def run() -> None:
            with contextlib.suppress(OSError):
                connection, _ = server.accept()
                with connection:
                    connection.recv(4096)
                    for at in range(0, len(data), size):
                        connection.sendall(data[at : at + size])
                        if stop.wait(every_s):
                            return
                    stop.wait(20)

        thread = threading.Thread(target=run)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        stop.set()
        thread.join()


@pytest.fixture
def reading() -> Iterator[Callable[..., ServerFiles]]:
    made: list[ServerFiles] = []

    def new(url: str, **settings: object) -> ServerFiles:
        made.append(ServerFiles(url, "secret", **settings))  # type: ignore[arg-type]
        return made[-1]

    yield new
    for one in made:
        one.close()


@pytest.mark.parametrize("at_once", [1, len(HEAD)], ids=["from the head on", "in the body"])
def test_an_answer_that_drips_ends_at_its_deadline(reading: Callable[..., ServerFiles], at_once: int) -> None:
    with answering(HEAD + bytes(4000), every_s=0.05, size=at_once) as url:
        began = time.monotonic()
        with pytest.raises(NetworkError, match=r"bytes in 1 s; the connection is too slow"):
            reading(url).read(f"{url}/x", limit_bytes=10_000, deadline_s=0.6)
        assert time.monotonic() - began < 15


def test_a_file_without_a_deadline_must_keep_a_rate(
    reading: Callable[..., ServerFiles], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_files, "_WINDOW_S", 0.4)
    with answering(HEAD + bytes(4000), every_s=0.1, size=4) as url:
        files = reading(url)
        with pytest.raises(NetworkError, match="too slow"), files.get(f"{url}/x") as body:
            list(body.chunks)


def test_slow_but_steady_is_let_through(reading: Callable[..., ServerFiles], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_files, "_WINDOW_S", 0.4)
    with answering(HEAD + bytes(4000), every_s=0.1, size=600) as url:
        assert reading(url).read(f"{url}/x", limit_bytes=10_000) == bytes(4000)


def test_time_in_which_the_reader_does_something_else_does_not_count(reading: Callable[..., ServerFiles]) -> None:
    with answering(HEAD + bytes(4000), every_s=0, size=5000) as url:
        files = reading(url)
        with files.get(f"{url}/x", deadline_s=0.5) as body:
            time.sleep(1.0)
            assert b"".join(body.chunks) == bytes(4000)


def test_whoever_waits_can_be_asked_to_stop(reading: Callable[..., ServerFiles]) -> None:
    def stop() -> None:
        raise NetworkError("the agent stops")

    with answering(HEAD, every_s=0, size=5000) as url:
        files = reading(url, while_waiting=stop)
        with pytest.raises(NetworkError, match="the agent stops"):
            files.read(f"{url}/x", limit_bytes=10_000)


def test_what_claims_to_be_compressed_is_not_unfolded(reading: Callable[..., ServerFiles]) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nContent-Encoding: gzip\r\n\r\n"
    with answering(head + b"\x1f\x8b\x08\x00", every_s=0, size=5000) as url:
        assert reading(url).read(f"{url}/x", limit_bytes=10_000) == b"\x1f\x8b\x08\x00"


def test_a_body_shorter_than_it_said_is_an_error(reading: Callable[..., ServerFiles]) -> None:
    with answering(HEAD + bytes(10), every_s=0, size=5000) as url, pytest.raises(NetworkError, match="timed out"):
        reading(url, stall_s=0.3).read(f"{url}/x", limit_bytes=10_000)
