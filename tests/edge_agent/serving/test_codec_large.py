"""Large requests: decoded in pieces, and refused before much of them is made into objects."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.contract.errors import CallerError, MalformedRequest, SignatureMismatch
from edge_agent.contract.tensors import Datatype
from edge_agent.serving import json_tensors
from edge_agent.serving.codec import decode_request
from tests.edge_agent.serving.bodies import json_body, signature


@pytest.mark.parametrize("datatype", [datatype for datatype in Datatype if datatype is not Datatype.BYTES])
@pytest.mark.parametrize("nested", [True, False])
def test_large_data_come_out_as_small_ones_do(datatype: Datatype, nested: bool) -> None:
    numbers = np.random.default_rng(0).integers(0, 2 if datatype is Datatype.BOOL else 100, (1000, 120))
    array = numbers.astype(datatype.numpy)
    body = json_body(array, nested=nested)
    assert len(body) > 3 * 65536 or datatype is Datatype.BOOL
    request = decode_request(body, None, signature(datatype, (None, 120)))
    np.testing.assert_array_equal(request.inputs["x"], array)
    assert request.inputs["x"].dtype == array.dtype


def _large(elements: list[str], datatype: str = "FP32", shape: str = "[1000, 100]") -> bytes:
    data = ", ".join(elements)
    return f'{{"inputs":[{{"name":"x","shape":{shape},"datatype":"{datatype}","data":[{data}]}}]}}'.encode()


def test_nulls_in_large_data_are_missing_numbers() -> None:
    elements = ["1.5"] * 100_000
    elements[77_777] = "null"
    found = decode_request(_large(elements), None, signature(shape=(None, 100))).inputs["x"].ravel()
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
        decode_request(_large(elements), None, signature(shape=(None, 100)))
    assert text in str(caught.value)


def test_large_data_of_another_shape_than_the_models_are_not_decoded() -> None:
    with pytest.raises(SignatureMismatch, match=r"expected \[-1, 64\], got \[1000, 100\]"):
        decode_request(_large(["1.5"] * 90_000), None, signature(shape=(None, 64)))


def test_more_texts_than_the_shape_are_refused_and_large_text_may_be_nested() -> None:
    words = [f'"{number:0100d}"' for number in range(1000)]
    spec = signature(Datatype.BYTES, (None, 1))
    request = decode_request(_large([f"[{word}]" for word in words], "BYTES", "[1000, 1]"), None, spec)
    assert request.inputs["x"][7, 0] == b"7".rjust(100, b"0")
    with pytest.raises(SignatureMismatch, match=r"shape \[1000, 1\] needs 1000 elements, data has 50000"):
        decode_request(_large(['""'] * 50_000, "BYTES", "[1000, 1]"), None, spec)
    with pytest.raises(SignatureMismatch, match="expected text after 0 elements"):
        decode_request(_large(["[]"] * 500_000, "BYTES", "[1000, 1]"), None, spec)


@given(words=st.lists(st.text(alphabet=st.sampled_from('a"\\[],é\n\U0001f600 '), max_size=6), min_size=1, max_size=40))
def test_text_that_looks_like_json_survives_in_pieces(words: list[str]) -> None:
    array = np.array([word.encode() for word in words], dtype=object).reshape(-1, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_tensors, "_PIECE_ELEMENTS", 7)
        request = decode_request(json_body(array, nested=True), None, signature(Datatype.BYTES, (None, 1)))
    np.testing.assert_array_equal(request.inputs["x"], array)


_ONE_LONG_TEXT = """
import resource, sys
from edge_agent.contract.tensors import Datatype
from edge_agent.serving.codec import decode_request
from tests.edge_agent.serving.bodies import signature

text = eval(sys.argv[1])
body = b'{"inputs":[{"name":"x","shape":[1,1],"datatype":"BYTES","data":["%b"]}]}' % text
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = decode_request(body, None, signature(Datatype.BYTES, (None, 1))).inputs["x"][0, 0]
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(len(body), len(found), (after - before) * 1024)
"""


@pytest.mark.parametrize(("text", "length"), [("a", 1), ('\\\\"', 1), ("\\\\\\\\", 1), ("\\\\u00e9", 2)])
def test_one_long_text_costs_a_few_times_its_length(text: str, length: int) -> None:
    # In a process of its own: what a regular expression remembers to go back to is in nobody's count but the system's.
    program = [sys.executable, "-c", _ONE_LONG_TEXT, f"b'{text}' * 2_000_000"]
    done = subprocess.run(program, capture_output=True, text=True, check=True, timeout=100)
    sent, found, grown = map(int, done.stdout.split())
    assert found == length * 2_000_000
    assert grown < 8 * sent + 4_000_000


@pytest.mark.parametrize("wrong", ["1", "null", '["a"', "{}", '{"a": "b"}'])
def test_what_is_no_text_in_large_text_is_named(wrong: str) -> None:
    elements = ['"text, [and] more"'] * 10_000
    elements[7_777] = wrong
    with pytest.raises(CallerError):
        decode_request(
            _large(elements, "BYTES", "[10000, 1]"), None, signature(Datatype.BYTES, (None, 1)), max_rows=10**6
        )


@pytest.mark.parametrize(
    "body",
    [
        b'{"inputs":[' + b",".join([b'{"name":"x","shape":[1],"datatype":"FP32","data":[1]}'] * 250_000) + b"]}",
        b'{"inputs":[],"outputs":[' + b",".join([b'{"name":"y"}'] * 1_000_000) + b"]}",
        b'{"inputs":[{"name":"x","shape":[' + b",".join([b"1"] * 6_000_000) + b'],"datatype":"FP32","data":[1]}]}',
        b'{"inputs":[],"parameters":{"a":[' + b",".join([b"[]"] * 4_000_000) + b"]}}",
    ],
    ids=["inputs", "outputs", "shape", "parameters"],
)
def test_a_body_full_of_tiny_things_costs_neither_memory_nor_long(body: bytes) -> None:
    tracemalloc.start()
    begin = time.perf_counter()
    try:
        request = decode_request(body, None, signature())
        assert request.inputs == {}  # what is not ours is skipped
    except MalformedRequest:
        pass
    taken_s, peak = time.perf_counter() - begin, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000 + len(body)
    assert taken_s < 2.0  # 0.03 s where nobody else is busy; as a list of inputs it would be objects by the million


def test_a_few_inputs_too_many_are_still_named_by_the_first(  # the model's check says which one
) -> None:
    tensor: dict[str, Any] = {"shape": [1, 2], "datatype": "FP32", "data": [1.0] * 2}
    inputs = [{"name": f"x{index}", **tensor} for index in range(3)]
    inputs.append({"name": "x", "shape": [1, 20_000], "datatype": "FP32", "data": [1.0] * 20_000})
    request = decode_request(json.dumps({"inputs": inputs}).encode(), None, signature(shape=(None, None)))
    assert list(request.inputs) == ["x0", "x1", "x2", "x"]
