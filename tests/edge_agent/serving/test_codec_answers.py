"""The codec writes answers: in JSON and in binary, as applications read them."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import numpy as np
import pytest
import tritonclient.http
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tritonclient.http._utils import _get_inference_request

from edge_agent.contract.checking import Violation
from edge_agent.contract.errors import MalformedRequest
from edge_agent.contract.manifest import Classification
from edge_agent.contract.signature import Signature
from edge_agent.contract.tensors import Datatype
from edge_agent.serving.codec import decode_request, encode_response
from edge_agent.serving.request import InferenceAnswer, InferenceRequest, WantedOutput
from tests.edge_agent.serving.bodies import any_array, signature


def _answer(outputs: dict[str, NDArray[Any]], *violations: Violation) -> InferenceAnswer:
    return InferenceAnswer("m", "1", "0" * 64, "i", outputs, True, violations)


def _written(
    request: InferenceRequest, outputs: dict[str, NDArray[Any]], *, of: Signature | None = None, **named: Any
) -> tuple[bytes, int | None]:
    parts, length = encode_response(request, _answer(outputs), of or signature(), None, **named)
    return b"".join(parts), length


@given(array=any_array(finite=True), binary=st.booleans())
def test_answers_in_both_forms_are_read_back_as_requests(array: NDArray[Any], binary: bool) -> None:
    asked = InferenceRequest(id="i", inputs={}, outputs=(WantedOutput("x", binary),))
    body, length = _written(asked, {"x": array})
    head = json.loads(body if length is None else body[:length])
    assert (head["model_name"], head["model_version"], head["id"]) == ("m", "1", "i")
    assert head["parameters"] == {"package": "0" * 64, "label_wanted": True}
    again = json.dumps({"inputs": head["outputs"]}).encode()
    request = decode_request(again + body[length or len(body) :], len(again), signature())
    np.testing.assert_array_equal(request.inputs["x"], array)


@given(array=any_array(finite=False), binary=st.booleans(), id_=st.text(max_size=20))
def test_what_tritonclient_writes_is_read_and_what_is_written_it_reads(
    array: NDArray[Any], binary: bool, id_: str
) -> None:
    datatype = Datatype.of(array.dtype)
    binary = binary or datatype is Datatype.BYTES or not np.isfinite(array.astype(np.float64)).all()
    sent = tritonclient.http.InferInput("x", list(array.shape), datatype.value)
    sent.set_data_from_numpy(array, binary_data=binary)
    wanted = tritonclient.http.InferRequestedOutput("y", binary_data=binary)
    custom = {"mine": "a"}
    body, length = _get_inference_request([sent], id_, [wanted], 0, False, False, 2, 50, custom)
    request = decode_request(body, length, signature(datatype, (None,) * array.ndim))
    np.testing.assert_array_equal(request.inputs["x"], array)
    assert (request.id, request.priority, request.timeout_us) == (id_, 2, 50)
    answered, length = _written(request, {"y": array})
    result = tritonclient.http.InferResult.from_response_body(answered, header_length=length)
    np.testing.assert_array_equal(result.as_numpy("y"), array)
    assert result.as_numpy("y").dtype == array.dtype


def test_outputs_come_in_the_wanted_order_and_each_in_its_form() -> None:
    outputs = {name: np.full((1, 2), index, dtype=np.float32) for index, name in enumerate("abc")}
    asked = InferenceRequest("i", {}, (WantedOutput("c", binary=True), WantedOutput("a"), WantedOutput("b", True)))
    body, length = _written(asked, outputs)
    head = json.loads(body[:length])
    assert [output["name"] for output in head["outputs"]] == ["c", "a", "b"]
    assert [output.get("data") for output in head["outputs"]] == [None, [0.0, 0.0], None]
    assert np.frombuffer(body[length:], np.float32).tolist() == [2.0, 2.0, 1.0, 1.0]


def test_large_binary_outputs_are_not_copied() -> None:
    array = np.zeros((1, 100_000), dtype=np.float32)
    parts, length = encode_response(InferenceRequest("i", {}, binary=True), _answer({"y": array}), signature(), None)
    assert length == len(parts[0])
    assert np.shares_memory(np.frombuffer(parts[1], np.float32), array)


@pytest.mark.parametrize(
    "array", [np.arange(6.0).reshape(2, 3).T, np.arange(8.0)[::2], np.arange(4, dtype=">f4"), np.zeros((2, 0))]
)
def test_arrays_in_any_memory_order_are_written_row_by_row(array: NDArray[Any]) -> None:
    for binary in (True, False):
        body, length = _written(InferenceRequest("i", {}, binary=binary), {"y": array})
        head = json.loads(body[:length])
        dtype = array.dtype.newbyteorder("<")
        data = np.frombuffer(body[length:], dtype) if binary else np.array(head["outputs"][0]["data"], dtype)
        np.testing.assert_array_equal(data.reshape(head["outputs"][0]["shape"]), array)


@pytest.mark.parametrize("size", [4, 100_000])
def test_nan_and_infinities_are_null_in_json_and_themselves_in_binary(size: int) -> None:
    array = np.zeros((1, size), dtype=np.float32)
    array[0, -3:] = [np.nan, np.inf, -np.inf]
    body, _ = _written(InferenceRequest("i", {}), {"y": array})
    assert json.loads(body)["outputs"][0]["data"][-4:] == [0.0, None, None, None]
    body, length = _written(InferenceRequest("i", {}, binary=True), {"y": array})
    np.testing.assert_array_equal(np.frombuffer(body[length:], np.float32), array[0])


def test_text_that_json_cannot_hold_is_to_be_asked_for_in_binary() -> None:
    with pytest.raises(MalformedRequest, match="binary_data: true"):
        _written(InferenceRequest("i", {}), {"y": np.array([b"\xff"], dtype=object)})


def test_violations_that_were_let_through_are_told_as_text() -> None:
    found = (Violation("x", "range", "clip", 3, 0, "7"), Violation("x", "unit", "flag", 1, 0, "K"))
    answer = _answer({"y": np.zeros((1, 1), np.float32)}, *found)
    parts, _ = encode_response(InferenceRequest("i", {}), answer, signature(), None)
    assert json.loads(bytes(parts[0]))["parameters"]["violations"] == "x/range/clip=3;x/unit/flag=1"


@pytest.mark.parametrize("binary", [True, False])
def test_classification_gives_the_best_classes_as_text_that_tritonclient_reads(binary: bool) -> None:
    scores = np.array([[0.1, 0.7, 0.2], [0.5, 0.25, 0.25]], dtype=np.float32)
    plain = signature(Datatype.FP32, (None, 3))
    named = msgspec.structs.replace(plain.outputs[0], labels=("cat", "dog", "eel"))
    for of, task in (
        (msgspec.structs.replace(plain, outputs=(named,)), None),
        (plain, Classification(output="y", labels=("cat", "dog", "eel"))),
    ):
        sent = tritonclient.http.InferInput("x", [2, 3], "FP32")
        sent.set_data_from_numpy(scores)
        wanted = tritonclient.http.InferRequestedOutput("y", binary_data=binary, class_count=2)
        body, length = _get_inference_request([sent], "", [wanted], 0, False, False, 0, None, None)
        request = decode_request(body, length, of)
        assert request.outputs == (WantedOutput("y", binary, 2),)
        answered, length = _written(request, {"y": scores}, of=of, task=task)
        found = tritonclient.http.InferResult.from_response_body(answered, header_length=length).as_numpy("y")
        text = [[each.decode() if isinstance(each, bytes) else each for each in row] for row in found]
        assert text == [["0.700000:1:dog", "0.200000:2:eel"], ["0.500000:0:cat", "0.250000:1:dog"]]
        head = json.loads(answered[:length])["outputs"][0]
        assert (head["datatype"], head["shape"]) == ("BYTES", [2, 2])


@pytest.mark.parametrize("datatype", [Datatype.BYTES, Datatype.BOOL])
def test_what_has_no_best_class_is_not_classified(datatype: Datatype) -> None:
    tensor = {"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [1]}
    wanted = [{"name": "y", "parameters": {"classification": 1}}]
    with pytest.raises(MalformedRequest, match="output 'y': classification needs numbers"):
        decode_request(json.dumps({"inputs": [tensor], "outputs": wanted}).encode(), None, signature(datatype))
