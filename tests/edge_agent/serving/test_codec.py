"""The codec reads requests: what was put in comes out, and what is wrong is named."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_agent.contract.constraint import Constraint, Encoding, Policy, Rule
from edge_agent.contract.errors import CallerError, MalformedRequest, SignatureMismatch, Unsupported
from edge_agent.contract.signature import Signature, TensorSpec
from edge_agent.contract.tensors import Datatype
from edge_agent.serving.codec import decode_request
from edge_agent.serving.request import WantedOutput
from tests.edge_agent.serving.bodies import any_array, binary_body, json_body, one_input, signature


@given(arrays=st.lists(any_array(finite=False), min_size=1, max_size=3), odd=st.integers(0, 3))
def test_binary_tensors_of_every_datatype_survive(arrays: list[NDArray[Any]], odd: int) -> None:
    tensors = {f"x{index}": array for index, array in enumerate(arrays)}
    body, length = binary_body(tensors, id="a" * odd)  # the id moves the raw data to odd addresses
    request = decode_request(body, length, signature())
    for name, array in tensors.items():
        np.testing.assert_array_equal(request.inputs[name], array)
        assert request.inputs[name].flags.aligned
        assert Datatype.of(request.inputs[name].dtype) is Datatype.of(array.dtype)


@given(array=any_array(finite=True), nested=st.booleans())
def test_json_tensors_of_every_datatype_survive(array: NDArray[Any], nested: bool) -> None:
    request = decode_request(json_body(array, nested=nested), None, signature())
    np.testing.assert_array_equal(request.inputs["x"], array)
    assert request.inputs["x"].dtype == array.dtype


@given(body=st.binary(max_size=200), length=st.none() | st.integers(0, 300))
def test_no_bytes_at_all_raise_anything_but_our_errors(body: bytes, length: int | None) -> None:
    with pytest.raises(CallerError):
        decode_request(body + b"}", length, signature(shape=(7, 11)))


@given(cut=st.integers(0, 200), flip=st.integers(0, 200), value=st.integers(0, 255))
def test_damaged_requests_are_refused_or_read_but_never_crash(cut: int, flip: int, value: int) -> None:
    body, length = binary_body({"x": np.ones((1, 2), dtype=np.float32)}, id="request")
    damaged = bytearray(body)
    damaged[flip % len(damaged)] = value
    damaged = damaged[: len(damaged) - cut % 20]
    with contextlib.suppress(CallerError):
        decode_request(bytes(damaged), length, signature())


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"data": [1.0]}, "input 'x': shape: shape [1, 2] needs 2 elements, data has 1"),
        ({"data": [1.0, "a"]}, "input 'x': datatype: FP32: Expected `float | null`, got `str` - at `$[1]`"),
        ({"data": [True, 1.0]}, "got `bool`"),
        ({"data": 3}, "input 'x': data must be a list"),
        ({"data": [1e39, 0]}, "does not fit in FP32"),
        ({"data": [1, 256], "datatype": "UINT8"}, "value 256 does not fit in UINT8"),
        ({"data": [1, -1], "datatype": "UINT64"}, "value -1 does not fit in UINT64"),
        ({"data": [1, 0], "datatype": "BOOL"}, "input 'x': datatype: BOOL"),
        ({"data": [1, 0], "datatype": "BYTES"}, "input 'x': datatype: BYTES"),
        ({"datatype": "BF16"}, "BF16 is not served here: send FP32"),
        ({"datatype": "FP8"}, "Invalid enum value 'FP8' - at `$.inputs[0].datatype`; datatypes are BOOL, UINT8"),
        ({"shape": [-1, 2]}, "input 'x': shape: needs 1 to 32 axes, each at least 1"),
        ({"shape": [0, 10**30], "data": []}, "input 'x': shape"),
        ({"shape": [1] * 40}, "input 'x': shape"),
        ({"shape": [1, 2**62, 2**62]}, "needs 21267647932558653966460912964485513216 elements"),
        ({"data": ...}, "has neither data nor binary_data_size"),
        ({"parameters": {"binary_data_size": 8}}, "has both data and binary_data_size"),
        ({"parameters": {"shared_memory_region": "r"}}, "has both data and shared_memory_region"),
        ({"parameters": {"binary_data_size": 8}, "data": ...}, "binary_data_size is 8, but 0 bytes are left"),
        (
            {"parameters": {"binary_data_size": -8}, "data": ...},
            "Expected `int` >= 0 - at `$.inputs[0].parameters.binary_data_size`",
        ),
        (
            {"parameters": {"binary_data_size": "8"}, "data": ...},
            "Expected `int | null`, got `str` - at `$.inputs[0].parameters.binary_data_size`",
        ),
        ({"parameters": {"shared_memory_region": "r"}, "data": ...}, "needs a shared_memory_byte_size"),
        ({"data": {"a": 1}}, "input 'x': data must be a list"),
        ({"data": [[1.0], [[]]]}, "input 'x'"),
        ({"name": ...}, "missing required field `name`"),
    ],
)
def test_a_wrong_input_is_named_with_what_is_wrong(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(CallerError) as caught:
        decode_request(one_input(**changes), None, signature())
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("datatype", "data", "text"),
    [
        ("FP32", b"[1e400]", "Number out of range"),
        ("FP32", b"[[1e400]]", "Number out of range"),
        ("INT64", b"[1" + b"0" * 5000 + b"]", "Integer value out of range"),
        ("BYTES", b'["\xff"]', "can't decode byte 0xff"),
        ("BYTES", b'[["\xff"]]', "can't decode byte 0xff"),
    ],
)
def test_data_that_no_json_reader_takes_are_refused_by_the_name_of_their_input(
    datatype: str, data: bytes, text: str
) -> None:
    body = b'{"inputs":[{"name":"x","shape":[1],"datatype":"%s","data":%s}]}' % (datatype.encode(), data)
    with pytest.raises(SignatureMismatch, match=r"^input 'x'") as caught:
        decode_request(body, None, signature(Datatype(datatype), (None,)))
    assert text in str(caught.value)


def test_data_nested_without_end_is_refused() -> None:
    deep = b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":' + b"[" * 500 + b"]" * 500 + b"}]}"
    with pytest.raises(SignatureMismatch, match=r"shape \[1\] needs 1 elements, data has 0"):
        decode_request(deep, None, signature())
    with pytest.raises(MalformedRequest, match="recursion"):
        decode_request(deep.replace(b"[]", b"[" * 50_000 + b"]" * 50_000), None, signature())


def test_null_is_a_missing_number() -> None:
    request = decode_request(one_input(data=[None, 2.0]), None, signature())
    np.testing.assert_array_equal(request.inputs["x"], np.array([[np.nan, 2.0]], dtype=np.float32))


@pytest.mark.parametrize(("length", "text"), [(10_000, "truncated"), (5, "JSON")])
def test_a_lying_header_length_is_refused(length: int, text: str) -> None:
    with pytest.raises(MalformedRequest, match=text):
        decode_request(one_input(), length, signature())


def test_bytes_that_belong_to_no_input_are_refused() -> None:
    body, length = binary_body({"x": np.ones((1, 2), dtype=np.float32)})
    with pytest.raises(MalformedRequest, match="3 bytes are left over after the 8 bytes"):
        decode_request(body + b"abc", length, signature())


def test_a_binary_size_that_does_not_fill_the_shape_is_refused() -> None:
    head = one_input(parameters={"binary_data_size": 12}, data=...)
    with pytest.raises(SignatureMismatch, match=r"FP32 of shape \[1, 2\] needs 8 bytes, got 12"):
        decode_request(head + b"\0" * 12, len(head), signature())


def test_binary_text_whose_lengths_lie_is_refused() -> None:
    head = one_input(parameters={"binary_data_size": 9}, data=..., datatype="BYTES")
    with pytest.raises(SignatureMismatch, match="BYTES element 0 reaches to byte 103"):
        decode_request(head + b"\x63\0\0\0abcde", len(head), signature(Datatype.BYTES))


def test_any_byte_but_zero_is_true() -> None:
    head = one_input(parameters={"binary_data_size": 2}, data=..., datatype="BOOL")
    request = decode_request(head + b"\x02\x00", len(head), signature(Datatype.BOOL))
    assert request.inputs["x"].tolist() == [[True, False]]


def test_an_input_given_twice_is_refused() -> None:
    tensor = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1.0, 2.0]}
    with pytest.raises(SignatureMismatch, match="twice"):
        decode_request(json.dumps({"inputs": [tensor, tensor]}).encode(), None, signature())


def test_a_raw_body_takes_its_shape_from_thesignature() -> None:
    images = np.arange(6, dtype=np.float32).reshape(3, 2)
    request = decode_request(images.tobytes(), 0, signature())
    np.testing.assert_array_equal(request.inputs["x"], images)
    assert request.binary
    with pytest.raises(SignatureMismatch, match="a row has 8 bytes, the body 9"):
        decode_request(b"123456789", 0, signature())
    with pytest.raises(SignatureMismatch, match="several dynamic axes"):
        decode_request(b"12345678", 0, signature(shape=(None, None)))
    assert decode_request(b"text", 0, signature(Datatype.BYTES, (None, 1))).inputs["x"].tolist() == [[b"text"]]


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"parameters": {"monitor": "no"}}, "Expected `bool`, got `str` - at `$.parameters.monitor`"),
        ({"parameters": {"group": 3}}, "at `$.parameters.group`"),
        ({"parameters": {"group": "g" * 129}}, "at `$.parameters.group`"),
        ({"parameters": {"priority": -1}}, "Expected `int` >= 0 - at `$.parameters.priority`"),
        ({"parameters": {"priority": "1"}}, "Expected `int`, got `str` - at `$.parameters.priority`"),
        ({"parameters": {"timeout": 1.5}}, "at `$.parameters.timeout`"),
        ({"parameters": {"timeout": 2**80}}, "at `$.parameters.timeout`"),
        ({"parameters": [1]}, "Expected `object | null`, got `array` - at `$.parameters`"),
        ({"id": "i" * 129}, "Expected `str` of length <= 128 - at `$.id`"),
        ({"id": 7}, "at `$.id`"),
        ({"outputs": [{"name": "y"}, {"name": "y"}]}, "wants it twice"),
        ({"outputs": [{"name": "z"}]}, "output 'z': the model has no such output; it has: y"),
        ({"outputs": [{"name": "y", "parameters": {"classification": -3}}]}, "parameters.classification`"),
        ({"outputs": [{"name": "y", "parameters": {"binary_data": 1}}]}, "outputs[0].parameters.binary_data`"),
    ],
)
def test_wrong_parameters_are_named(fields: dict[str, Any], text: str) -> None:
    body = json.dumps({"inputs": [], **fields}).encode()
    with pytest.raises(MalformedRequest) as caught:
        decode_request(body, None, signature())
    assert text in str(caught.value)


def test_rows_beyond_the_limit_are_refused_whether_or_not_the_data_are_there() -> None:
    said = r"input 'x': 1025 rows, the limit is 1024 \(max_rows under \[api\]"
    for body in (one_input(shape=[1025, 2]), json_body(np.ones((1025, 2), np.float32), nested=True)):
        with pytest.raises(MalformedRequest, match=said):
            decode_request(body, None, signature())
    body, length = binary_body({"x": np.ones((1025, 2), np.float32)})
    with pytest.raises(MalformedRequest, match=said):
        decode_request(body, length, signature())
    with pytest.raises(MalformedRequest, match=said):
        decode_request(bytes(1025 * 8), 0, signature())
    assert len(decode_request(bytes(1024 * 8), 0, signature()).inputs["x"]) == 1024
    assert len(decode_request(bytes(1025 * 8), 0, signature(), max_rows=2000).inputs["x"]) == 1025


def test_parameters_are_read_and_those_of_others_are_ignored() -> None:
    others: dict[str, Any] = {"mine": [[]] * 10_000, "headers": {"a": 1}, "triton_x": None}
    told = {"priority": 1, "timeout": 1_000, "group": "g", "monitor": False, "binary_data_output": True, **others}
    wanted = [{"name": "y"}, {"name": "z", "parameters": {"binary_data": False, "other": {}}}]
    tensor = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2], "parameters": {"other": 1}}
    two = signature()
    two = msgspec.structs.replace(two, outputs=(*two.outputs, msgspec.structs.replace(two.outputs[0], name="z")))
    body = json.dumps({"inputs": [tensor], "id": "i", "parameters": told, "outputs": wanted, "x": 1}).encode()
    request = decode_request(body, None, two)
    assert (request.id, request.priority, request.timeout_us, request.group) == ("i", 1, 1_000, "g")
    assert (request.monitored, request.binary) == (False, True)
    assert request.outputs == (WantedOutput("y", binary=True), WantedOutput("z", binary=False))


@pytest.mark.parametrize(
    "told", [{"sequence_id": 3}, {"sequence_id": "a", "sequence_start": True}, {"sequence_end": True}]
)
def test_stateful_sequences_are_said_not_to_be_there(told: dict[str, Any]) -> None:
    tensor = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}
    with pytest.raises(Unsupported, match="stateful sequences"):
        decode_request(json.dumps({"inputs": [tensor], "parameters": told}).encode(), None, signature())
    nothing = {"sequence_id": 0, "sequence_start": False}
    decode_request(json.dumps({"inputs": [tensor], "parameters": nothing}).encode(), None, signature())


def test_a_unit_that_differs_is_refused_or_flagged_as_the_constraint_says() -> None:
    def asking(unit: str) -> bytes:
        return one_input(parameters={"unit": unit})

    def of(**constraint: Any) -> Any:
        plain = signature()
        spec = msgspec.structs.replace(plain.inputs[0], constraint=Constraint(unit="Cel", **constraint))
        return msgspec.structs.replace(plain, inputs=(spec,))

    assert decode_request(asking("Cel"), None, of()).flagged == ()
    assert decode_request(asking("K"), None, signature()).flagged == ()
    with pytest.raises(SignatureMismatch, match=r"input 'x': unit: the values are in 'K', the model takes 'Cel'"):
        decode_request(asking("K"), None, of())
    (flagged,) = decode_request(asking("K"), None, of(policies={Rule.UNIT: Policy.FLAG})).flagged
    assert (flagged.tensor, flagged.rule, flagged.policy, flagged.rows) == ("x", "unit", "flag", 1)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_bodies_may_be_any_buffer_and_aligned_numbers_are_not_copied(kind: Any) -> None:
    array = np.arange(20_000, dtype=np.float32).reshape(1, -1)
    body, length = binary_body({"x": array})
    body = b" " * (-length % 64) + body
    length += -length % 64
    given_ = kind(body)
    found = decode_request(given_, length, signature(shape=(None, 20_000))).inputs["x"]
    np.testing.assert_array_equal(found, array)
    if np.frombuffer(given_, np.uint8).ctypes.data % 4 == 0:
        assert np.shares_memory(found, np.frombuffer(given_, np.uint8))


@pytest.mark.parametrize("datatype", [Datatype.FP16, Datatype.FP32])
@pytest.mark.parametrize("count", [1, 3000, 100_000])
def test_numbers_that_do_not_fit_are_refused_however_many_there_are(datatype: Datatype, count: int) -> None:
    array = np.zeros((1, count)).tolist()[0]
    array[-1] = 1e39
    tensor = {"name": "x", "shape": [1, count], "datatype": datatype.value, "data": array}
    with pytest.raises(SignatureMismatch, match=f"a value does not fit in {datatype.value}"):
        decode_request(json.dumps({"inputs": [tensor]}).encode(), None, signature(datatype, (None, None)))


@given(array=any_array(finite=True), other=st.sampled_from(list(Datatype)))
def test_data_are_read_as_the_request_says_whatever_the_model_takes(array: NDArray[Any], other: Datatype) -> None:
    request = decode_request(json_body(array, nested=False), None, signature(other, (None, None)))
    np.testing.assert_array_equal(request.inputs["x"], array)
    assert request.inputs["x"].dtype == array.dtype


def test_text_in_json_is_read_in_the_encoding_of_its_constraint() -> None:
    """As if it had come in binary: a model, a sample and the trainer all see the same bytes."""
    limits = Constraint(encoding=Encoding.LATIN_1)
    spec = TensorSpec(name="x", datatype=Datatype.BYTES, shape=(None, 1), constraint=limits)
    taken = Signature(inputs=(spec,), outputs=(spec,))
    body = json_body(np.array([["grün".encode()]], dtype=object), nested=False)
    assert decode_request(body, None, taken).inputs["x"].tolist() == [["grün".encode("latin-1")]]
    with pytest.raises(SignatureMismatch, match=r"row 0: encoding: .* cannot be written in latin-1"):
        decode_request(json_body(np.array([["→".encode()]], dtype=object), nested=False), None, taken)
