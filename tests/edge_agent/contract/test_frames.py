"""Frames: what is written is read again, by another library too; large values lie where they can be used."""

from __future__ import annotations

import struct
from typing import Any

import msgpack
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edge_agent.contract import frames
from edge_agent.contract.errors import MessageError
from edge_agent.contract.frame_messages import VERSION, Answer, Infer, Inferred, Request, Values
from edge_agent.contract.tensors import Datatype
from tests.edge_agent.contract.golden_files import FOLDER
from tests.edge_agent.contract.golden_frames import ANSWERS, IMAGE, REQUESTS, WORDS, written

EVERY = {**REQUESTS, **ANSWERS}
each_frame = pytest.mark.parametrize("name", sorted(EVERY))
BOOL_TO_FP64 = st.sampled_from([datatype.numpy for datatype in Datatype if datatype is not Datatype.BYTES])


def read(name: str) -> bytes:
    return (FOLDER / f"{name}.bin").read_bytes()


def decoded(name: str, data: bytes) -> Request | Answer:
    return frames.decode_request(data) if name in REQUESTS else frames.decode_answer(data)


def infer(tensors: dict[str, Any]) -> bytes:
    return b"".join(frames.encode_tensors(Infer(v=VERSION, id=1, model="m", inputs=[]), tensors))


def tensors_of(message: Request | Answer) -> list[Values]:
    if isinstance(message, Infer):
        return message.inputs
    return message.outputs if isinstance(message, Inferred) else []


def without_tensors(message: Request | Answer) -> Request | Answer:
    if isinstance(message, Infer):
        return msgspec.structs.replace(message, inputs=[])
    return msgspec.structs.replace(message, outputs=[]) if isinstance(message, Inferred) else message


@each_frame
def test_each_frame_begins_with_the_length_of_what_follows(name: str) -> None:
    data = read(name)
    assert struct.unpack("<I", data[:4])[0] == len(data) - 4


@each_frame
def test_each_frame_decodes_to_the_message_it_was_made_from(name: str) -> None:
    message, tensors = EVERY[name]
    found = decoded(name, read(name))
    assert without_tensors(found) == message
    assert [values.name for values in tensors_of(found)] == list(tensors)
    for values in tensors_of(found):
        sent = tensors[values.name]
        if isinstance(sent, Values):
            assert values == sent
        elif values.name == "words":
            assert frames.array_of(values).tolist() == [[word.encode()] for [word] in WORDS.tolist()]
        else:
            np.testing.assert_array_equal(frames.array_of(values), sent)


@each_frame
def test_another_library_writes_the_same_bytes(name: str) -> None:
    data = read(name)
    body = msgpack.unpackb(data[4:])
    assert next(iter(body)) == "op"
    packed = msgpack.packb(body)
    # It writes the shortest form of everything; ours differs in one place: the length of values takes four bytes.
    if b"\xa4data\xc6" in data:
        packed = re_headed(packed)
    assert packed == data[4:]


def re_headed(packed: bytes) -> bytes:
    """With bin 32 in front of values, where the other library wrote bin 8."""
    parts = packed.split(b"\xa4data\xc4")
    return parts[0] + b"".join(b"\xa4data\xc6" + bytes(3) + part for part in parts[1:])


@each_frame
def test_what_another_library_writes_decodes_to_the_same_message(name: str) -> None:
    body = msgpack.packb(msgpack.unpackb(read(name)[4:]))
    other = struct.pack("<I", len(body)) + body
    assert decoded(name, other) == decoded(name, read(name))


@each_frame
def test_members_that_are_not_known_are_skipped(name: str) -> None:
    body = msgpack.unpackb(read(name)[4:])
    body["a_later_version"] = {"says": [1, 2.5, None, "more"]}
    data = msgpack.packb(body)
    assert decoded(name, struct.pack("<I", len(data)) + data) == decoded(name, read(name))


@settings(deadline=None)  # a busy machine takes its time
@given(st.lists(st.tuples(BOOL_TO_FP64, st.integers(0, 40)), min_size=1, max_size=4), st.text(max_size=9), st.data())
def test_values_begin_at_a_multiple_of_eight_bytes_and_come_back(
    wanted: list[tuple[np.dtype[Any], int]], name: str, data: st.DataObject
) -> None:
    tensors = {
        f"{name}{index}": data.draw(arrays.arrays(dtype, (rows, 3))) for index, (dtype, rows) in enumerate(wanted)
    }
    frame = bytearray(infer(tensors))
    request = frames.decode_request(frame)
    assert isinstance(request, Infer)
    begin = np.frombuffer(frame, dtype=np.uint8).ctypes.data
    for values in request.inputs:
        assert isinstance(values.data, memoryview)
        if len(values.data):
            at = np.frombuffer(values.data, dtype=np.uint8).ctypes.data
            assert (at - begin) % 8 == 0
        np.testing.assert_array_equal(frames.array_of(values), tensors[values.name])


def test_large_values_are_not_copied() -> None:
    image = np.random.default_rng(1).random((3, 224, 224), dtype=np.float32)
    parts = frames.encode_tensors(Infer(v=VERSION, id=1, model="m", inputs=[]), {"image": image})
    assert any(np.shares_memory(np.frombuffer(part, dtype=np.uint8), image) for part in parts)
    frame = np.frombuffer(b"".join(parts), dtype=np.uint8).copy()
    request = frames.decode_request(frame.data)
    assert isinstance(request, Infer)
    array = frames.array_of(request.inputs[0])
    assert np.shares_memory(array, frame)
    np.testing.assert_array_equal(array, image)


def test_values_that_lie_askew_are_copied() -> None:
    frame = infer({"image": IMAGE})
    shifted = bytearray(b"x" + frame)
    request = frames.decode_request(memoryview(shifted)[1:])
    assert isinstance(request, Infer)
    array = frames.array_of(request.inputs[0])
    assert array.flags.aligned
    np.testing.assert_array_equal(array, IMAGE)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12, dtype=np.float32).reshape(3, 4).T,
        np.arange(12, dtype=">i4").reshape(3, 4),
        np.arange(24, dtype=np.int16).reshape(4, 6)[::2, ::3],
        np.array(2.5),
        np.zeros((0, 4), dtype=np.float32),
        np.array([[True, False]]),
    ],
)
def test_any_memory_layout_and_byte_order_arrives_as_it_was(array: np.ndarray[Any, Any]) -> None:
    request = frames.decode_request(infer({"x": array}))
    assert isinstance(request, Infer)
    np.testing.assert_array_equal(frames.array_of(request.inputs[0]), array)


@pytest.mark.parametrize(
    ("shape", "why"),
    [((1, 5), "needs 20 bytes, got 16"), ((-1, 4), "none negative"), ((2**40, 2**40), "needs"), ((1,) * 40, "32 axes")],
)
def test_values_that_do_not_fill_their_shape_are_refused(shape: tuple[int, ...], why: str) -> None:
    values = Values("image", Datatype.FP32, shape, data=memoryview(bytes(16)))
    with pytest.raises(MessageError, match=why):
        frames.array_of(values)


@pytest.mark.parametrize("datatype", [Datatype.FP32, Datatype.BYTES, Datatype.BOOL])
def test_tensors_without_elements_and_with_axes_beyond_numpy_s_are_refused(datatype: Datatype) -> None:
    with pytest.raises(MessageError, match=f"{datatype.value} of shape"):
        frames.array_over(memoryview(b""), datatype, (2**63, 0))


def test_a_tensor_that_no_datatype_fits_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(MessageError, match="complex64"):
        infer({"x": np.zeros(2, dtype=np.complex64)})


@settings(deadline=None)
@given(st.binary(max_size=64))
def test_bytes_that_are_no_message_are_an_error_of_ours(data: bytes) -> None:
    for decode in (frames.decode_request, frames.decode_answer):
        with pytest.raises(MessageError):
            decode(b"\0\0\0\0" + data)


@pytest.mark.parametrize(
    ("body", "number"),
    [({"op": "infer", "v": 1, "id": 7}, 7), ({"op": "dance", "id": 8}, 8), ({"id": 0}, 0), ({"id": "x"}, 0), ([], 0)],
)
def test_a_frame_that_is_no_request_still_tells_its_number(body: object, number: int) -> None:
    assert frames.number_of(b"\0\0\0\0" + msgpack.packb(body)) == number


def test_a_frame_with_tensors_is_as_long_as_its_parts_together() -> None:
    name = "frame-infer-all-members"
    assert written(*REQUESTS[name]) == read(name)
