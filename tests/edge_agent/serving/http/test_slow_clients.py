"""Clients that dribble, fall silent, do not read, vanish, or are too many."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from pathlib import Path

from tests.edge_agent.serving.http.device import Device, chunked, get, post, serving, wait_until


def test_requests_that_arrive_byte_by_byte_are_answered_alike(device: Device) -> None:
    stream = post("/a", b"hello") + chunked("/b", b"wor", b"ld") + get("/c?d", "Connection: close")
    expected = [answer.body for answer in device.ask(stream)]
    with device.connect() as client:
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for index in range(len(stream)):
            client.send(stream[index : index + 1])
        assert [answer.body for answer in client.answers_until_closed()] == expected


def test_a_head_that_does_not_come_is_a_408(tmp_path: Path) -> None:
    with serving(tmp_path, head_timeout_s=0.3, sweep_s=0.02) as device:
        with device.connect() as client:
            assert client.ask(get("/echo")).status == 200
            for _ in range(3):  # dribbling does not buy time
                client.send(b"GET /ec")
                time.sleep(0.02)
            answer = client.answer()
            assert (answer.status, answer.headers["connection"]) == (408, "close")
            assert "head did not arrive within 0.3 s" in answer.error
            assert client.is_closed()
        wait_until(lambda: len(device.connections) == 0)


def test_a_body_that_does_not_come_is_a_408_and_gives_its_room_back(tmp_path: Path) -> None:
    with serving(tmp_path, body_timeout_s=0.3, sweep_s=0.02) as device:
        for data in (post("/echo", b"x" * 100)[:-1], post("/echo", b"x" * 100_000)[:-1], chunked("/echo", b"x")[:-1]):
            with device.connect() as client:
                answer = client.ask(data)
                assert answer.status == 408
                assert "body did not arrive within 0.3 s" in answer.error
        device.routes.wait_released()
        assert device.routes.seen == []


def test_a_silent_connection_is_closed_without_a_word_and_a_busy_one_is_not(tmp_path: Path) -> None:
    with (
        serving(tmp_path, idle_timeout_s=3.0, sweep_s=0.02) as device,  # a machine at work may take one for a request
        device.connect() as silent,
        device.connect() as used,
        device.connect() as busy,
    ):
        busy.send(get("/stubborn"))
        assert silent.ask(get("/echo")).status == 200
        while len(device.connections) > 2:
            assert used.ask(get("/echo")).status == 200
            time.sleep(0.02)
        assert silent.is_closed()
        assert used.ask(get("/echo")).status == 200
        device.routes.go_on.set()
        assert busy.answer().status == 200


def test_an_answer_that_nobody_reads_is_given_up(tmp_path: Path) -> None:
    with serving(tmp_path, body_timeout_s=0.3, sweep_s=0.02) as device, device.connect() as client:
        client.send(get("/large?size=40000000&pieces=2") + get("/echo"))
        wait_until(lambda: len(device.connections) == 1)
        wait_until(lambda: len(device.connections) == 0)
        assert [request.path for request in device.routes.seen] == ["/large"]  # nothing more is done for it meanwhile


def test_work_for_a_client_that_vanishes_is_cancelled(device: Device) -> None:
    for reset in (False, True):
        device.routes.working.clear()
        device.routes.cancelled.clear()
        client = device.connect()
        client.send(post("/never", b"x" * 1000))
        assert device.routes.working.wait(20)
        if reset:
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.socket.close()
        assert device.routes.cancelled.wait(20)
    device.routes.wait_released()
    wait_until(lambda: len(device.connections) == 0)


def test_a_client_that_vanishes_within_a_request_leaves_nothing_behind(device: Device) -> None:
    whole = post("/echo", b"x" * 50_000)
    for cut in (3, 60, 200, 30_000):
        with device.connect() as client:
            client.send(whole[:cut])
        with device.connect() as client:
            client.send(whole + whole[:cut])
    device.routes.wait_released()
    wait_until(lambda: len(device.connections) == 0)
    device.assert_serves()


def test_the_connection_too_many_is_told_so_and_closed(tmp_path: Path) -> None:
    with serving(tmp_path, limit=2) as device:
        with device.connect() as first, device.connect() as second:
            assert first.ask(get("/echo")).status == second.ask(get("/echo")).status == 200
            for _ in range(3):
                with device.connect() as third:
                    answer = third.ask(post("/echo", b"x" * 100_000))
                    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
                    assert "2 connections are open, the limit" in answer.error
                    assert third.is_closed()
            assert first.ask(get("/echo")).status == 200
        wait_until(lambda: len(device.connections) == 0)
        device.assert_serves()


def test_a_crowd_beyond_the_limit_holds_nothing(tmp_path: Path) -> None:
    with serving(tmp_path, limit=1, body_timeout_s=0.3, sweep_s=0.02) as device, device.connect() as first:
        assert first.ask(get("/echo")).status == 200
        crowd = [device.connect() for _ in range(60)]
        for client in crowd:  # those who do not go away by themselves are sent away
            client.answers_until_closed()
            client.socket.close()
        assert first.ask(get("/echo")).status == 200


def test_a_slow_reader_stops_only_itself(device: Device) -> None:
    with device.connect() as slow, device.connect() as quick:
        slow.send(get("/large?size=30000000&pieces=3") * 2)
        for _ in range(20):
            assert quick.ask(get("/echo")).status == 200
        assert [len(slow.answer().body) for _ in range(2)] == [30_000_000] * 2
        assert slow.ask(get("/echo")).status == 200


def test_a_client_that_half_closes_and_does_not_read_is_given_up_as_soon_as_any(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        device = stack.enter_context(serving(tmp_path, body_timeout_s=0.3, idle_timeout_s=600, sweep_s=0.02))
        # Some of these answers leave more unsent than pauses the writing, others less.
        for size in range(180_000, 400_000, 10_000):
            client = stack.enter_context(device.connect_unix())
            client.send(get(f"/large?size={size}&pieces=1"))
            client.half_close()
        wait_until(lambda: len(device.routes.seen) == 22)
        wait_until(lambda: len(device.connections) == 0)


def test_a_body_that_is_cut_off_gives_its_room_back_though_nobody_reads_why(tmp_path: Path) -> None:
    with serving(tmp_path, body_timeout_s=600) as device, device.connect_unix() as client:
        client.send(get("/large?size=230000&pieces=1") + post("/echo", b"x" * 100_000)[:-1])
        client.half_close()
        wait_until(lambda: len(device.routes.rooms) == 2)
        device.routes.wait_released()
        assert [request.path for request in device.routes.seen] == ["/large"]
