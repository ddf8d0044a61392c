"""However the network cuts a stream of requests, the answers are the same."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.edge_agent.serving.http.device import Device, chunked, get, post, serving

_STREAM = (
    post("/one", b"12345")
    + get("/two?q=%20")
    + b"\r\n"
    + chunked("/three", b"a" * 10, b"b" * 17, trailer=b"X: y\r\n")
    + post("/forbidden", b"thrown away")
    + post("/later", b"x" * 33, "Expect: 100-continue")
    + post("/four", b"GET /no HTTP/1.1\r\n\r\n")
    + get("/later", "Connection: close")
)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    with serving(tmp_path_factory.mktemp("splitting")) as device:
        yield device


def _answers(device: Device, parts: list[bytes]) -> list[tuple[int, bytes]]:
    with device.connect() as client:
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for part in parts:
            client.send(part)
        # Whether 100 Continue is worth saying depends on what has arrived.
        return [(each.status, each.body) for each in client.answers_until_closed() if each.status != 100]


def test_cut_in_two_at_every_position(shared: Device) -> None:
    expected = _answers(shared, [_STREAM])
    assert [status for status, _ in expected] == [200, 200, 200, 403, 200, 200, 200]
    for cut in range(1, len(_STREAM)):
        assert _answers(shared, [_STREAM[:cut], _STREAM[cut:]]) == expected, cut


@pytest.mark.parametrize("size", [60_000, 70_000, 200_000])
def test_a_request_right_behind_a_large_body_is_the_next_one(shared: Device, size: int) -> None:
    first, rest = post("/one", bytes(size)), post("/two", b"12") + get("/three", "Connection: close")
    expected = _answers(shared, [first, rest])
    assert [status for status, _ in expected] == [200, 200, 200]
    for behind in (0, 1, 2, 20, len(rest)):
        for begin in (1, 100, 1000, 65_000):
            parts = [first[:begin], first[begin:] + rest[:behind], rest[behind:]]
            assert _answers(shared, [part for part in parts if part]) == expected, (behind, begin)


@st.composite
def _streams(draw: st.DrawFn) -> tuple[bytes, list[int]]:
    requests = draw(
        st.lists(
            st.one_of(
                st.builds(get, st.sampled_from(["/a", "/later", "/forbidden", "/broken"])),
                st.builds(post, st.sampled_from(["/a", "/later", "/forbidden"]), st.binary(max_size=300)),
                st.builds(post, st.just("/a"), st.integers(16_000, 200_000).map(bytes)),
                st.lists(st.binary(min_size=1, max_size=50), max_size=5).map(lambda parts: chunked("/a", *parts)),
            ),
            max_size=5,
        )
    )
    stream = b"".join(requests) + get("/end", "Connection: close")
    return stream, draw(st.lists(st.integers(1, len(stream) - 1), max_size=12))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(case=_streams())
def test_cut_in_any_way(shared: Device, case: tuple[bytes, list[int]]) -> None:
    stream, cuts = case
    edges = [0, *sorted(set(cuts)), len(stream)]
    parts = [stream[begin:end] for begin, end in itertools.pairwise(edges)]
    assert _answers(shared, parts) == _answers(shared, [stream])


def test_nothing_is_held_after_all_of_them(tmp_path: Path) -> None:
    with serving(tmp_path) as device:
        for cut in range(1, len(_STREAM), 7):
            with device.connect() as client:
                client.send(_STREAM[:cut])
        device.routes.wait_released()
