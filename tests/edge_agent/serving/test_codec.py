"""The codec: what goes in comes out, and what is wrong is named."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from edge_agent.contract.errors import CallerError, MalformedRequest, SignatureMismatch
from edge_agent.contract.signature import Signature, TensorSpec
from edge_agent.contract.tensors import Datatype, pack_bytes
from edge_agent.serving.codec import InferenceRequest, check_outputs, decode_request, encode_response


def _signature(datatype: Datatype = Datatype.FP32, shape: tuple[int | None, ...] = (None, 2)) -> Signature:
    return Signature(
        inputs=(TensorSpec(name="x", datatype=datatype, shape=shape),),
        outputs=(TensorSpec(name="y", datatype=datatype, shape=shape),),
    )


def _arrays(*, finite: bool) -> st.SearchStrategy[NDArray[Any]]:
    def of(datatype: Datatype) -> st.SearchStrategy[NDArray[Any]]:
        shapes = hnp.array_shapes(min_dims=1, max_dims=3, max_side=4)
        if datatype is Datatype.BYTES:
            elements = st.text(max_size=5).map(str.encode) if finite else st.binary(max_size=5)
            return shapes.flatmap(lambda shape: hnp.arrays(object, shape, elements=elements, fill=st.nothing()))
        if finite and datatype.numpy.kind == "f":
            width: Any = datatype.numpy.itemsize * 8
            elements_ = st.floats(width=width, allow_nan=False, allow_infinity=False)
            return shapes.flatmap(lambda shape: hnp.arrays(datatype.numpy, shape, elements=elements_))
        return shapes.flatmap(lambda shape: hnp.arrays(datatype.numpy, shape))

    return st.sampled_from(list(Datatype)).flatmap(of)


def _binary_body(tensors: dict[str, NDArray[Any]], **fields: Any) -> tuple[bytes, int]:
    inputs, raw = [], b""
    for name, array in tensors.items():
        datatype = Datatype.of(array.dtype)
        data = pack_bytes(array) if datatype is Datatype.BYTES else array.tobytes()
        size = {"binary_data_size": len(data)}
        inputs.append({"name": name, "shape": array.shape, "datatype": datatype.value, "parameters": size})
        raw += data
    head = json.dumps({"inputs": inputs, **fields}).encode()
    return head + raw, len(head)


def _json_body(array: NDArray[Any], *, nested: bool, **fields: Any) -> bytes:
    listed = array if array.dtype.kind != "O" else np.vectorize(bytes.decode, otypes=[object])(array)
    data = listed.tolist() if nested else listed.ravel().tolist()
    tensor = {"name": "x", "shape": array.shape, "datatype": Datatype.of(array.dtype).value, "data": data}
    return json.dumps({"inputs": [tensor], **fields}).encode()


def _one_input(**changes: Any) -> bytes:
    tensor = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1.0, 2.0], **changes}
    return json.dumps({"inputs": [{key: value for key, value in tensor.items() if value is not ...}]}).encode()


@given(arrays=st.lists(_arrays(finite=False), min_size=1, max_size=3), odd=st.integers(0, 3))
def test_binary_tensors_of_every_datatype_survive(arrays: list[NDArray[Any]], odd: int) -> None:
    tensors = {f"x{index}": array for index, array in enumerate(arrays)}
    body, length = _binary_body(tensors, id="a" * odd)  # the id moves the raw data to odd addresses
    request = decode_request(body, length, _signature())
    for name, array in tensors.items():
        np.testing.assert_array_equal(request.inputs[name], array)
        assert request.inputs[name].flags.aligned
        assert Datatype.of(request.inputs[name].dtype) is Datatype.of(array.dtype)


@given(array=_arrays(finite=True), nested=st.booleans())
def test_json_tensors_of_every_datatype_survive(array: NDArray[Any], nested: bool) -> None:
    request = decode_request(_json_body(array, nested=nested), None, _signature())
    np.testing.assert_array_equal(request.inputs["x"], array)
    assert request.inputs["x"].dtype == array.dtype


@given(array=_arrays(finite=True), binary=st.booleans())
def test_answers_in_both_forms_are_read_back_as_requests(array: NDArray[Any], binary: bool) -> None:
    asked = InferenceRequest(id="i", inputs={}, outputs=(("x", binary),))
    body, length = encode_response(
        asked, {"x": array}, model="m", version="1", request_id="i", parameters={"label_wanted": True}
    )
    head = json.loads(body if length is None else body[:length])
    assert (head["model_name"], head["model_version"], head["id"]) == ("m", "1", "i")
    head["inputs"] = head.pop("outputs")
    again = json.dumps({"inputs": head["inputs"]}).encode()
    request = decode_request(again + body[length or len(body) :], len(again), _signature())
    np.testing.assert_array_equal(request.inputs["x"], array)


@given(body=st.binary(max_size=200), length=st.none() | st.integers(0, 300))
def test_no_bytes_at_all_raise_anything_but_our_errors(body: bytes, length: int | None) -> None:
    with pytest.raises(CallerError):
        decode_request(body + b"}", length, _signature(shape=(7, 11)))


@given(cut=st.integers(0, 200), flip=st.integers(0, 200), value=st.integers(0, 255))
def test_damaged_requests_are_refused_or_read_but_never_crash(cut: int, flip: int, value: int) -> None:
    body, length = _binary_body({"x": np.ones((1, 2), dtype=np.float32)}, id="request")
    damaged = bytearray(body)
    damaged[flip % len(damaged)] = value
    damaged = damaged[: len(damaged) - cut % 20]
    with contextlib.suppress(CallerError):
        decode_request(bytes(damaged), length, _signature())


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
        ({"datatype": "BF16"}, "Invalid enum value 'BF16'"),
        ({"shape": [-1, 2]}, "input 'x': shape: needs 1 to 32 axes, each at least 1"),
        ({"shape": [0, 10**30], "data": []}, "input 'x': shape"),
        ({"shape": [1] * 40}, "input 'x': shape"),
        ({"shape": [1, 2**62, 2**62]}, "needs 21267647932558653966460912964485513216 elements"),
        ({"data": ...}, "has neither data nor binary_data_size"),
        ({"parameters": {"binary_data_size": 8}}, "has both data and binary_data_size"),
        ({"parameters": {"binary_data_size": 8}, "data": ...}, "binary_data_size is 8, but 0 bytes are left"),
        ({"parameters": {"binary_data_size": -8}, "data": ...}, "must be a size in bytes, got -8"),
        ({"parameters": {"binary_data_size": "8"}, "data": ...}, "must be a size in bytes, got '8'"),
        ({"parameters": {"shared_memory_region": "r"}}, "shared memory is not supported"),
        ({"name": ...}, "missing required field `name`"),
    ],
)
def test_a_wrong_input_is_named_with_what_is_wrong(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(CallerError) as caught:
        decode_request(_one_input(**changes), None, _signature())
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("datatype", "data", "text"),
    [
        ("FP32", b"[1e400]", "Number out of range"),
        ("FP32", b"[1e400, null]", "Number out of range"),
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
        decode_request(body, None, _signature(Datatype(datatype), (None,)))
    assert text in str(caught.value)


def test_data_nested_without_end_is_refused() -> None:
    deep = b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":' + b"[" * 500 + b"]" * 500 + b"}]}"
    with pytest.raises(MalformedRequest, match="nested deeper than 32"):
        decode_request(deep, None, _signature())


def test_null_is_a_missing_number() -> None:
    request = decode_request(_one_input(data=[None, 2.0]), None, _signature())
    np.testing.assert_array_equal(request.inputs["x"], np.array([[np.nan, 2.0]], dtype=np.float32))


@pytest.mark.parametrize(("length", "text"), [(10_000, "truncated"), (5, "JSON")])
def test_a_lying_header_length_is_refused(length: int, text: str) -> None:
    with pytest.raises(MalformedRequest, match=text):
        decode_request(_one_input(), length, _signature())


def test_bytes_that_belong_to_no_input_are_refused() -> None:
    body, length = _binary_body({"x": np.ones((1, 2), dtype=np.float32)})
    with pytest.raises(MalformedRequest, match="3 bytes are left over after the 8 bytes"):
        decode_request(body + b"abc", length, _signature())


def test_a_binary_size_that_does_not_fill_the_shape_is_refused() -> None:
    head = _one_input(parameters={"binary_data_size": 12}, data=...)
    with pytest.raises(SignatureMismatch, match=r"FP32 of shape \[1, 2\] needs 8 bytes, got 12"):
        decode_request(head + b"\0" * 12, len(head), _signature())


def test_binary_text_whose_lengths_lie_is_refused() -> None:
    head = _one_input(parameters={"binary_data_size": 9}, data=..., datatype="BYTES")
    with pytest.raises(SignatureMismatch, match="BYTES element 0 reaches to byte 103"):
        decode_request(head + b"\x63\0\0\0abcde", len(head), _signature(Datatype.BYTES))


def test_any_byte_but_zero_is_true() -> None:
    head = _one_input(parameters={"binary_data_size": 2}, data=..., datatype="BOOL")
    request = decode_request(head + b"\x02\x00", len(head), _signature(Datatype.BOOL))
    assert request.inputs["x"].tolist() == [[True, False]]


def test_an_input_given_twice_is_refused() -> None:
    tensor = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1.0, 2.0]}
    with pytest.raises(SignatureMismatch, match="twice"):
        decode_request(json.dumps({"inputs": [tensor, tensor]}).encode(), None, _signature())


def test_a_raw_body_takes_its_shape_from_the_signature() -> None:
    images = np.arange(6, dtype=np.float32).reshape(3, 2)
    request = decode_request(images.tobytes(), 0, _signature())
    np.testing.assert_array_equal(request.inputs["x"], images)
    assert request.binary
    with pytest.raises(SignatureMismatch, match="a row has 8 bytes, the body 9"):
        decode_request(b"123456789", 0, _signature())
    with pytest.raises(SignatureMismatch, match="several dynamic axes"):
        decode_request(b"12345678", 0, _signature(shape=(None, None)))
    assert decode_request(b"text", 0, _signature(Datatype.BYTES, (None, 1))).inputs["x"].tolist() == [[b"text"]]


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"parameters": {"monitor": "no"}}, "monitor must be true or false"),
        ({"parameters": {"group": 3}}, "group must be text"),
        ({"parameters": [1]}, "parameters: Expected `object`, got `array`"),
        ({"parameters": {"a": [[]] * 10_000}}, "parameters: take 40007 bytes, the limit is 16384"),
        ({"id": "i" * 129}, "id: at most 128"),
        ({"outputs": [{"name": "y"}, {"name": "y"}]}, "wants it twice"),
        ({"outputs": [{"name": "y", "parameters": {"classification": 3}}]}, "classification is not supported"),
        ({"outputs": [{"name": "y", "parameters": {"binary_data": 1}}]}, "binary_data must be true or false"),
    ],
)
def test_wrong_parameters_are_named(fields: dict[str, Any], text: str) -> None:
    body = json.dumps({"inputs": [], **fields}).encode()
    with pytest.raises(MalformedRequest) as caught:
        decode_request(body, None, _signature())
    assert text in str(caught.value)


def test_an_unknown_output_is_named_with_those_there_are() -> None:
    request = InferenceRequest(id="", inputs={}, outputs=(("z", False),))
    with pytest.raises(MalformedRequest, match="output 'z': the model has no such output; it has: y"):
        check_outputs(request, _signature())


def test_text_that_json_cannot_hold_is_to_be_asked_for_in_binary() -> None:
    array = np.array([b"\xff"], dtype=object)
    with pytest.raises(MalformedRequest, match="binary_data: true"):
        encode_response(
            InferenceRequest(id="", inputs={}), {"y": array}, model="m", version="1", request_id="i", parameters={}
        )


def test_rows_beyond_the_limit_are_refused_whether_or_not_the_data_are_there() -> None:
    said = r"input 'x': 1025 rows, the limit is 1024 \(max_rows under \[api\]"
    for body in (_one_input(shape=[1025, 2]), _json_body(np.ones((1025, 2), np.float32), nested=True)):
        with pytest.raises(MalformedRequest, match=said):
            decode_request(body, None, _signature())
    body, length = _binary_body({"x": np.ones((1025, 2), np.float32)})
    with pytest.raises(MalformedRequest, match=said):
        decode_request(body, length, _signature())
    with pytest.raises(MalformedRequest, match=said):
        decode_request(bytes(1025 * 8), 0, _signature())
    assert len(decode_request(bytes(1024 * 8), 0, _signature()).inputs["x"]) == 1024
    assert len(decode_request(bytes(1025 * 8), 0, _signature(), max_rows=2000).inputs["x"]) == 1025


@pytest.mark.parametrize("datatype", [datatype for datatype in Datatype if datatype is not Datatype.BYTES])
@pytest.mark.parametrize("nested", [True, False])
def test_large_data_come_out_as_small_ones_do(datatype: Datatype, nested: bool) -> None:
    numbers = np.random.default_rng(0).integers(0, 2 if datatype is Datatype.BOOL else 100, (1000, 120))
    array = numbers.astype(datatype.numpy)
    body = _json_body(array, nested=nested)
    assert len(body) > 3 * 65536 or datatype is Datatype.BOOL
    request = decode_request(body, None, _signature(datatype, (None, 120)))
    np.testing.assert_array_equal(request.inputs["x"], array)
    assert request.inputs["x"].dtype == array.dtype


def _large(elements: list[str], datatype: str = "FP32", shape: str = "[1000, 100]") -> bytes:
    data = ", ".join(elements)
    return f'{{"inputs":[{{"name":"x","shape":{shape},"datatype":"{datatype}","data":[{data}]}}]}}'.encode()


def test_nulls_in_large_data_are_missing_numbers() -> None:
    elements = ["1.5"] * 100_000
    elements[77_777] = "null"
    found = decode_request(_large(elements), None, _signature(shape=(None, 100))).inputs["x"].ravel()
    assert np.flatnonzero(np.isnan(found)).tolist() == [77_777]
    assert found[77_778] == 1.5


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ('"a,b"', "data has 100001"),
        ('"a"', "datatype: FP32: Expected `float | null`, got `str`"),
        ("[]", "datatype: FP32"),
        ("{}", "datatype: FP32"),
        ("true", "got `bool`"),
        ("1e39", "a value does not fit in FP32"),
        ("1, 1", "shape [1000, 100] needs 100000 elements, data has 100001"),
    ],
)
def test_what_is_wrong_in_large_data_is_named(wrong: str, text: str) -> None:
    elements = ["1.5"] * 100_000
    elements[77_777] = wrong
    with pytest.raises(SignatureMismatch, match=r"^input 'x'") as caught:
        decode_request(_large(elements), None, _signature(shape=(None, 100)))
    assert text in str(caught.value)


def test_large_data_of_another_shape_than_the_models_are_not_decoded() -> None:
    with pytest.raises(SignatureMismatch, match=r"expected \[-1, 64\], got \[1000, 100\]"):
        decode_request(_large(["1.5"] * 90_000), None, _signature(shape=(None, 64)))


def test_more_texts_than_the_shape_are_refused_and_large_text_may_be_nested() -> None:
    words = [f'"{number:0100d}"' for number in range(1000)]
    signature = _signature(Datatype.BYTES, (None, 1))
    request = decode_request(_large([f"[{word}]" for word in words], "BYTES", "[1000, 1]"), None, signature)
    assert request.inputs["x"][7, 0] == b"7".rjust(100, b"0")
    with pytest.raises(SignatureMismatch, match=r"shape \[1000, 1\] needs 1000 elements, data has 50000"):
        decode_request(_large(['""'] * 50_000, "BYTES", "[1000, 1]"), None, signature)
    with pytest.raises(SignatureMismatch, match="send so much text in binary"):
        decode_request(_large(["[]"] * 500_000, "BYTES", "[1000, 1]"), None, signature)
