"""Frames like one that came before are read as the ordinary way reads them, and whatever is unlike goes that way."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_agent.contract import frames
from edge_agent.contract.errors import MessageError
from edge_agent.contract.frame_messages import Infer, Ping, Wanted
from edge_agent.contract.framing import FrameBuffer
from edge_agent.serving.frames.plans import FramePlans

ROWS = 8


def received(data: bytes) -> memoryview:
    """As the connection cuts it out."""
    buffer = FrameBuffer(1 << 20)
    buffer.room()[: len(data)] = data
    (frame,) = buffer.received(len(data))
    return frame


def frame_of(number: int, tensors: dict[str, NDArray[Any]] | None = None, **more: Any) -> bytes:
    given = tensors or {"x": np.full((1, 4), number, np.float32)}
    message = Infer(v=1, id=number, model=more.pop("model", "tiny"), inputs=[], **more)
    return b"".join(bytes(part) for part in frames.encode_tensors(message, given))


@pytest.mark.parametrize("first", [1, 4, 100, 200, 300, 70_000, 1 << 33])
def test_a_frame_like_the_one_before_is_read_with_its_own_id_and_values(first: int) -> None:
    plans = FramePlans(ROWS)
    assert plans.read(received(frame_of(first)))[1] is None
    request, decoded = plans.read(received(frame_of(first + 1, version="")))
    assert request == Infer(v=1, id=first + 1, model="tiny", inputs=[])
    assert decoded is not None
    np.testing.assert_array_equal(decoded.inputs["x"], np.full((1, 4), first + 1, np.float32))
    assert decoded.binary
    assert decoded.monitored


def test_what_stays_the_same_is_what_the_first_frame_said() -> None:
    plans = FramePlans(ROWS)
    more: dict[str, Any] = {"version": "2", "priority": 3, "timeout_us": 9000, "monitor": False}
    plans.read(received(frame_of(1, **more)))
    request, decoded = plans.read(received(frame_of(2, **more)))
    assert isinstance(request, Infer)
    assert (request.version, request.priority, request.timeout_us, request.monitor) == ("2", 3, 9000, False)
    assert decoded is not None
    assert (decoded.priority, decoded.timeout_us, decoded.monitored) == (3, 9000, False)


def test_several_inputs_are_found_each_at_its_place() -> None:
    plans = FramePlans(ROWS)
    for number in range(1, 300):
        tensors: dict[str, NDArray[Any]] = {
            "a": np.full((1, 3), number, np.int64), "b": np.full((1, 2), number % 200, np.uint8),
        }  # fmt: skip
        request, decoded = plans.read(received(frame_of(number, tensors)))
        assert isinstance(request, Infer)
        assert request.id == number
        if decoded is None:
            assert number in (1, 128, 256)  # the id takes another length there
            continue
        for name, array in tensors.items():
            np.testing.assert_array_equal(decoded.inputs[name], array)
            assert decoded.inputs[name].dtype == array.dtype


@pytest.mark.parametrize(
    "other",
    [
        frame_of(7, model="tidy"),
        frame_of(7, {"y": np.ones((1, 4), np.float32)}),
        frame_of(7, {"x": np.ones((1, 4), np.int32)}),
        frame_of(7, {"x": np.ones((2, 2), np.float32)}),
    ],
)
def test_a_frame_of_the_same_length_that_says_something_else_goes_the_ordinary_way(other: bytes) -> None:
    plans = FramePlans(ROWS)
    plans.read(received(frame_of(1)))
    request, decoded = plans.read(received(other))
    assert decoded is None
    assert request == frames.decode_request(other)


def test_an_id_that_is_none_is_refused_as_ever() -> None:
    plans = FramePlans(ROWS)
    plans.read(received(frame_of(1)))
    for byte in (b"\x00", b"\xc0", b"\xff"):
        broken = frame_of(2).replace(b"\xa2id\x02", b"\xa2id" + byte)
        with pytest.raises(MessageError):
            plans.read(received(broken))


@pytest.mark.parametrize(
    "special",
    [
        {"request": "mine"},
        {"group": "patient 7"},
        {"outputs": [Wanted("y")]},
        {"tensors": {"x": np.array([[b"text"]], dtype=object)}},
        {"tensors": {"x": np.ones((ROWS + 1, 4), np.float32)}},
        {"tensors": {"x": np.ones((1, 2), np.bool_)}},
    ],
)
def test_what_needs_a_closer_look_gets_it_each_time(special: dict[str, Any]) -> None:
    plans = FramePlans(ROWS)
    for number in (1, 2, 3):
        request, decoded = plans.read(received(frame_of(number, **special)))
        assert decoded is None
        assert request == frames.decode_request(frame_of(number, **special))


def test_a_client_whose_frames_all_differ_is_not_learned_for_ever() -> None:
    plans = FramePlans(ROWS)
    for number in range(1, 100):
        assert plans.read(received(frame_of(1, model="m" * number)))[1] is None
    assert plans.read(received(frame_of(1, model="m" * 99)))[1] is None
    assert plans.read(received(frame_of(1, model="m")))[1] is not None


def test_other_requests_are_read_as_they_are() -> None:
    plans = FramePlans(ROWS)
    for number in (1, 2):
        assert plans.read(received(frames.encode(Ping(v=1, id=number)))) == (Ping(v=1, id=number), None)
