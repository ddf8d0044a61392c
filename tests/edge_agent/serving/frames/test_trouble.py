"""Connections that go wrong: nothing that comes in stops the agent, and what was held is given back."""

from __future__ import annotations

import os
import random
import socket
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edge_agent.contract import frames
from edge_agent.contract.frame_messages import Failure, Infer, Inferred, Pong
from edge_agent.serving.frames.protocol import FrameLimits
from tests.edge_agent.serving.frames.conftest import Connect
from tests.fakes.frames_device import FramesDevice, serving_frames
from tests.fakes.packages import reference_images

IMAGES = reference_images(4)
PATIENCE_S = 20.0


def until(condition: Callable[[], bool]) -> None:
    """Wait until something has happened."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def nothing_is_held(device: FramesDevice) -> bool:
    leases = [lease for model in device.slots.models() for lease in model.leases]
    return not leases and (device.admission.requests, device.admission.bytes) == (0, 0)


def is_alive(device: FramesDevice, connect: Connect) -> bool:
    raw = connect(device)
    raw.send_map(op="ping", v=1, id=1)
    return isinstance(raw.answer(), Pong)


@pytest.mark.parametrize(
    "body", [b"", b"\xc1", b"\x80", b"\x93\x01\x02\x03", b"\x81\xa2id\x00", b"\xde\xff\xff", b"\x91" * 3000]
)
def test_a_frame_that_is_no_message_ends_its_connection_with_the_reason(
    shared: FramesDevice, connect: Connect, body: bytes
) -> None:
    raw = connect(shared)
    raw.send(len(body).to_bytes(4, "little") + body)
    found = raw.failure()
    assert (found.id, found.status, found.kind) == (0, 400, "MalformedRequest")
    assert raw.is_closed()
    assert is_alive(shared, connect)


def test_a_request_that_lacks_something_costs_only_itself(shared: FramesDevice, connect: Connect) -> None:
    raw = connect(shared)
    raw.send_map(op="infer", v=1, id=1)
    assert "missing required field" in raw.failure().error
    raw.send_map(op="dance", v=1, id=2)
    assert (found := raw.failure()).id == 2
    assert found.error.endswith("'dance' - at `$.op`; there are: infer, feedback, models, metadata, ping")
    tensor = {"name": "image", "type": "FLOAT", "shape": [1, 4], "data": bytes(16)}
    raw.send_map(op="infer", v=1, id=5, model="digits", inputs=[tensor])
    assert "'FLOAT' - at `$.inputs[0].type`; datatypes are BOOL, UINT8, " in raw.failure().error
    raw.send_map(op="ping", v=2, id=3)
    assert (found := raw.failure()).status == 501
    assert "version 2" in found.error
    raw.send_map(op="ping", v=1, id=4)
    assert isinstance(raw.answer(), Pong)


@pytest.mark.parametrize(
    ("hello", "why"),
    [
        (b"GET /v2/health/live HTTP/1.1\r\n\r\n", "this is HTTP, no frame"),
        ((2_000_000).to_bytes(4, "little"), "the limit is 1000000"),
    ],
)
def test_a_frame_beyond_the_limit_is_refused_before_it_is_read(
    shared: FramesDevice, connect: Connect, hello: bytes, why: str
) -> None:
    raw = connect(shared)
    raw.send(hello)
    found = raw.failure()
    assert (found.id, found.status, found.kind) == (0, 413, "FrameTooLarge")
    assert why in found.error
    assert raw.is_closed()
    assert is_alive(shared, connect)


def test_what_came_before_a_wrong_frame_is_answered_first(shared: FramesDevice, connect: Connect) -> None:
    raw = connect(shared)
    good = b"".join(frames.encode_tensors(Infer(v=1, id=1, model="digits", inputs=[]), {"image": IMAGES}))
    raw.send(good + b"\xff\xff\xff\xff")
    assert isinstance(raw.answer(), Inferred)
    assert raw.failure().id == 0


def test_random_bytes_never_stop_the_agent(shared: FramesDevice, connect: Connect) -> None:
    chance = random.Random(3)
    good = b"".join(frames.encode_tensors(Infer(v=1, id=1, model="digits", inputs=[]), {"image": IMAGES}))
    for _ in range(150):
        data = bytearray(good)
        for _ in range(chance.randint(1, 8)):
            data[chance.randrange(4, 110)] = chance.randrange(256)  # 110: past it come pixels
        raw = connect(shared)
        raw.send(bytes(data))
        raw.answer()  # whatever it says, it is an answer
        raw.close()
    assert is_alive(shared, connect)
    until(lambda: nothing_is_held(shared) and len(shared.connections) <= 1)


def test_a_client_that_vanishes_gives_up_what_it_asked_for(device: FramesDevice, connect: Connect) -> None:
    raw = connect(device)
    for number in range(1, 9):
        raw.infer(number, IMAGES, model="slow")
    until(lambda: device.gated.started > 0)
    raw.close()
    until(lambda: len(device.connections) == 0)
    device.gated.gate.set()
    until(lambda: nothing_is_held(device))
    assert device.gated.started < 8  # those that had not begun never did
    assert is_alive(device, connect)


def test_a_client_that_vanishes_within_a_large_frame_leaves_nothing_behind(
    device: FramesDevice, connect: Connect
) -> None:
    raw = connect(device)
    raw.send((900_000).to_bytes(4, "little") + bytes(100_000))
    until(lambda: device.admission.bytes == 900_004)
    raw.close()
    until(lambda: nothing_is_held(device) and len(device.connections) == 0)


def test_a_client_that_sends_too_many_at_once_is_not_read_further(tmp_path: Path, connect: Connect) -> None:
    limits = FrameLimits(frame_bytes=1_000_000, outstanding=4)
    with serving_frames(tmp_path, limits=limits) as device:
        raw = connect(device)
        for number in range(1, 21):
            raw.infer(number, IMAGES, model="slow")
        until(lambda: device.admission.requests == 4)
        time.sleep(0.1)
        assert device.admission.requests == 4
        device.gated.gate.set()
        assert sorted(raw.answer().id for _ in range(20)) == list(range(1, 21))
        until(lambda: nothing_is_held(device))


def test_requests_beyond_the_limit_of_all_connections_are_refused(tmp_path: Path, connect: Connect) -> None:
    with serving_frames(tmp_path, max_pending=2) as device:
        raw = connect(device)
        for number in range(1, 4):
            raw.infer(number, IMAGES, model="slow")
        refused = raw.failure()
        assert (refused.id, refused.status, refused.kind, refused.retry_after_s) == (3, 503, "Busy", 1.0)
        raw.infer(4, IMAGES)  # a quick model needs no room
        assert isinstance(raw.answer(), Inferred)
        device.gated.gate.set()
        assert sorted(raw.answer().id for _ in range(2)) == [1, 2]


def test_a_large_frame_waits_until_there_is_memory_for_it(tmp_path: Path, connect: Connect) -> None:
    with serving_frames(tmp_path, max_pending=1) as device:
        holder = connect(device)
        holder.infer(1, IMAGES, model="slow")
        until(lambda: device.admission.requests == 1)
        raw = connect(device)
        many = np.tile(IMAGES, (200, 1))
        raw.infer(2, many)  # 200 KB
        raw.socket.settimeout(0.2)
        with pytest.raises(TimeoutError):
            raw.answer()
        raw.socket.settimeout(PATIENCE_S)
        device.gated.gate.set()
        found = raw.answer()
        assert isinstance(found, Inferred)
        assert found.outputs[0].shape == (800, 10)
        until(lambda: nothing_is_held(device))


def test_large_frames_that_never_come_keep_no_request_out(tmp_path: Path, connect: Connect) -> None:
    with serving_frames(tmp_path, max_pending=2) as device:
        for _ in range(5):
            connect(device).send((100_000).to_bytes(4, "little") + bytes(70_000))
        until(lambda: device.admission.bytes >= 500_000)
        assert device.admission.requests == 0
        raw = connect(device)
        raw.infer(1, IMAGES, model="slow")
        until(lambda: device.admission.requests == 1)
        device.gated.gate.set()
        assert isinstance(raw.answer(), Inferred)


def test_a_client_that_does_not_read_its_answers_is_not_answered_further_and_then_cut_off(
    tmp_path: Path, connect: Connect
) -> None:
    limits = FrameLimits(frame_bytes=1_000_000, frame_s=0.5)
    with serving_frames(tmp_path, limits=limits) as device:
        raw = connect(device)
        many = np.tile(IMAGES, (250, 1))
        frame = b"".join(frames.encode_tensors(Infer(v=1, id=1, model="digits", inputs=[]), {"image": many}))
        raw.socket.settimeout(PATIENCE_S)
        with pytest.raises(ConnectionError):
            raw.send(frame * 200)
        until(lambda: len(device.connections) == 0 and nothing_is_held(device))
        assert is_alive(device, connect)


def test_a_client_that_half_closes_and_does_not_read_is_cut_off_as_soon_as_any(
    tmp_path: Path, connect: Connect
) -> None:
    limits = FrameLimits(frame_bytes=1_000_000, frame_s=0.3, idle_s=600.0)
    with serving_frames(tmp_path, limits=limits, sweep_s=0.02) as device:
        clients = []
        statistics = device.slots.get("echo").statistics
        # Some of these answers leave more unsent than pauses the writing, others less.
        for size in range(180_000, 400_000, 20_000):
            raw = connect(device)
            clients.append(raw)
            text = {"text": np.array([["x" * size]], dtype=object)}
            raw.send(b"".join(frames.encode_tensors(Infer(v=1, id=1, model="echo", inputs=[]), text)))
            until(lambda: statistics.snapshot().success_count == len(clients))
            raw.socket.shutdown(socket.SHUT_WR)
        until(lambda: len(device.connections) == 0)
        assert nothing_is_held(device)


def test_a_client_that_reads_slowly_gets_every_answer(device: FramesDevice, connect: Connect) -> None:
    raw = connect(device)
    raw.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    for number in range(1, 301):
        raw.infer(number, IMAGES)
    time.sleep(0.2)
    assert sorted(raw.answer().id for _ in range(300)) == list(range(1, 301))


def test_a_frame_that_does_not_arrive_in_time_ends_its_connection(tmp_path: Path, connect: Connect) -> None:
    with serving_frames(tmp_path, limits=FrameLimits(frame_bytes=1_000_000, frame_s=0.2)) as device:
        for begun in (b"\x10", b"\x10\0\0\0ab", (500_000).to_bytes(4, "little") + bytes(20_000)):
            raw = connect(device)
            raw.send(begun)
            found = raw.failure()
            assert (found.id, found.kind) == (0, "DeadlineExceeded")
            assert raw.is_closed()
        until(lambda: nothing_is_held(device))


def test_a_silent_connection_is_closed_and_one_that_waits_for_its_answer_is_not(
    tmp_path: Path, connect: Connect
) -> None:
    with serving_frames(tmp_path, limits=FrameLimits(frame_bytes=1_000_000, idle_s=0.3)) as device:
        silent, waiting = connect(device), connect(device)
        waiting.infer(1, IMAGES, model="slow")
        assert silent.is_closed()
        device.gated.gate.set()
        assert isinstance(waiting.answer(), Inferred)


def test_connections_beyond_the_limit_are_told_so(tmp_path: Path, connect: Connect) -> None:
    with serving_frames(tmp_path, max_connections=2) as device:
        first, _ = connect(device), connect(device)
        until(lambda: len(device.connections) == 2)
        third = connect(device)
        refused = third.failure()
        assert (refused.id, refused.kind) == (0, "Busy")
        assert third.is_closed()
        first.close()
        until(lambda: len(device.connections) == 1)
        assert is_alive(device, connect)


def test_a_server_that_stops_answers_what_is_in_flight(tmp_path: Path, connect: Connect) -> None:
    with serving_frames(tmp_path) as device:
        raw, silent = connect(device), connect(device)
        raw.infer(1, IMAGES, model="slow")
        until(lambda: device.gated.started == 1)
        device.server._loop.call_soon_threadsafe(device.server._request_stop)  # type: ignore[union-attr]
        assert silent.is_closed()
        device.gated.gate.set()
        assert isinstance(raw.answer(), Inferred)
        assert raw.is_closed()


def test_half_a_connection_is_none(shared: FramesDevice, connect: Connect) -> None:
    raw = connect(shared)
    raw.socket.shutdown(socket.SHUT_WR)
    assert raw.is_closed()


def test_only_who_may_write_to_the_socket_reaches_the_models(shared: FramesDevice) -> None:
    assert os.stat(shared.path).st_mode & 0o777 == 0o660  # noqa: PTH116 - one call, no Path needed


def test_a_timeout_that_passes_in_the_queue_is_an_error_of_its_request(device: FramesDevice, connect: Connect) -> None:
    raw = connect(device)
    for number in range(1, 4):  # two threads, and one that waits
        raw.infer(number, IMAGES, model="slow", timeout_us=0 if number < 3 else 50_000)
    late = raw.answer()
    assert isinstance(late, Failure)
    assert (late.id, late.status, late.kind) == (3, 504, "DeadlineExceeded")
    device.gated.gate.set()
    assert sorted(raw.answer().id for _ in range(2)) == [1, 2]
