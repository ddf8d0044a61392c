"""Where frames begin and end, however the stream is cut."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.contract.framing import FrameBuffer

LIMIT = 100_000


def frame(body: bytes) -> bytes:
    return len(body).to_bytes(4, "little") + body


def feed(buffer: FrameBuffer, data: bytes, sizes: list[int]) -> list[bytes]:
    """The frames in ``data``, received in pieces of these sizes (over and over)."""
    found: list[bytes] = []
    at = index = 0
    while at < len(data) and buffer.refusal is None:
        room = buffer.room()
        assert len(room) > 0
        count = min(len(room), sizes[index % len(sizes)], len(data) - at)
        room[:count] = data[at : at + count]
        found += [bytes(each) for each in buffer.received(count)]
        at += count
        index += 1
    return found


@settings(deadline=None)  # a busy machine takes its time
@given(
    st.lists(st.one_of(st.integers(0, 40), st.integers(16_000, 99_000)), max_size=8),
    st.lists(st.one_of(st.integers(1, 50), st.integers(1, 70_000)), min_size=1, max_size=4),
)
def test_frames_come_out_whole_however_the_stream_is_cut(lengths: list[int], sizes: list[int]) -> None:
    buffer = FrameBuffer(LIMIT)
    bodies = [bytes([index + 1]) * length for index, length in enumerate(lengths)]
    assert feed(buffer, b"".join(map(frame, bodies)), sizes) == [frame(body) for body in bodies]
    assert not buffer.partial


def test_a_large_frame_is_received_into_memory_of_its_own_size() -> None:
    buffer = FrameBuffer(LIMIT)
    body = bytes(range(256)) * 200
    first = frame(body)[:1000]
    buffer.room()[:1000] = first
    assert buffer.received(1000) == []
    assert buffer.wanted_bytes == len(body) + 4
    rest = frame(body)[1000:]
    assert (
        len(rest) < len(buffer.room()) < len(rest) + 16
    )  # a read that fills all of it would be followed by another one
    assert buffer.partial
    follows = frame(b"next")
    buffer.room()[: len(rest) + 1] = rest + follows[:1]
    assert [bytes(each) for each in buffer.received(len(rest) + 1)] == [frame(body)]
    assert buffer.partial
    assert feed(buffer, follows[1:], [1000]) == [follows]


def test_each_frame_begins_at_a_multiple_of_eight_bytes_and_is_nobody_elses() -> None:
    buffer = FrameBuffer(LIMIT)
    data = frame(b"abc") + frame(b"defgh") + frame(bytes(50_000))
    room = buffer.room()
    count = min(len(room), len(data))
    room[:count] = data[:count]
    found = buffer.received(count)
    rest = data[count:]
    while rest:
        room = buffer.room()
        count = min(len(room), len(rest))
        room[:count] = rest[:count]
        found += buffer.received(count)
        rest = rest[count:]
    arrays = [np.frombuffer(each, dtype=np.uint8) for each in found]
    assert len(arrays) == 3
    assert all(array.ctypes.data % 8 == 0 for array in arrays)
    assert not any(np.shares_memory(array, np.frombuffer(buffer.room(), dtype=np.uint8)) for array in arrays)


@settings(deadline=None)
@given(
    st.lists(st.lists(st.one_of(st.integers(0, 40), st.integers(10_000, 99_000)), max_size=4), min_size=2, max_size=3),
    st.lists(st.integers(1, 70_000), min_size=1, max_size=4),
)
def test_streams_that_receive_into_the_same_memory_keep_apart(streams: list[list[int]], sizes: list[int]) -> None:
    shared = memoryview(bytearray(30_000))
    buffers = [FrameBuffer(LIMIT, shared) for _ in streams]
    sent = [
        [frame(bytes([10 * stream + index + 1]) * length) for index, length in enumerate(lengths)]
        for stream, lengths in enumerate(streams)
    ]
    left = [b"".join(frames) for frames in sent]
    found: list[list[bytes]] = [[] for _ in streams]
    turn = 0
    while any(left):
        for stream, buffer in enumerate(buffers):
            data = left[stream][: sizes[turn % len(sizes)]]
            room = buffer.room()
            count = min(len(room), len(data))
            if count:
                room[:count] = data[:count]
                found[stream] += [bytes(each) for each in buffer.received(count)]
                left[stream] = left[stream][count:]
        turn += 1
    assert found == sent


def test_a_frame_beyond_the_limit_is_refused_after_those_before_it() -> None:
    buffer = FrameBuffer(10)
    data = frame(b"0123456789") + frame(b"0123456789x")
    assert feed(buffer, data, [1000]) == [frame(b"0123456789")]
    assert buffer.refusal is not None
    assert buffer.refusal.http_status == 413
    assert "a frame of 11 bytes, the limit is 10 (of requests max_body_mib" in str(buffer.refusal)


@pytest.mark.parametrize(
    ("garbage", "why"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "this is HTTP, no frame (it begins with 'GET '): frames are for the socket that"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "this is HTTP, no frame (it begins with 'HTTP')"),
        (b"PRI * HTTP/2.0\r\n\r\n", "this is HTTP, no frame"),
        (b"\xff" * 20, "a frame of 4294967295 bytes"),
    ],
)
def test_another_protocol_is_taken_for_a_frame_that_is_too_large(garbage: bytes, why: str) -> None:
    buffer = FrameBuffer(16 << 20)
    assert feed(buffer, garbage, [1000]) == []
    assert why in str(buffer.refusal)
    assert ("max_body_mib" in str(buffer.refusal)) == ("HTTP" not in why)


def test_an_empty_frame_is_a_frame() -> None:
    assert feed(FrameBuffer(10), frame(b""), [1]) == [frame(b"")]
