"""Remembered answers: an answer is written the same whether or not one like it was there before."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_agent.contract.checking import Violation
from edge_agent.contract.signature import Signature, TensorSpec
from edge_agent.contract.tensors import Datatype
from edge_agent.serving.answer_templates import AnswerTemplates
from edge_agent.serving.codec import encode_response
from edge_agent.serving.request import InferenceAnswer, InferenceRequest, WantedOutput
from tests.edge_agent.serving.bodies import any_array, signature

_IDS = st.sampled_from(["a", "feed-1", '","parameters":{', "\\", "\n", "é", "\x7f", " ", "</b>"]) | st.text(max_size=20)
_VIOLATION = Violation("x", "range", "clip", 3, 0, "7")


def _signature(outputs: dict[str, NDArray[Any]]) -> Signature:
    specs = [
        TensorSpec(name=name, datatype=Datatype.of(array.dtype), shape=(None,) * array.ndim)
        for name, array in outputs.items()
    ]
    return Signature(inputs=(specs[0],), outputs=tuple(specs))


@given(
    arrays=st.lists(any_array(finite=True), min_size=1, max_size=3),
    model=st.sampled_from(["m", 'a "name" with "id":"a"', "é"]),
    asked=st.lists(
        st.tuples(
            _IDS,
            st.booleans(),
            st.none() | st.lists(st.tuples(st.integers(0, 2), st.booleans(), st.sampled_from([0, 0, 1]))),
        ),
        min_size=1,
        max_size=5,
    ),
    label_wanted=st.booleans(),
    violations=st.sampled_from([(), (), (_VIOLATION,)]),
)
def test_an_answer_is_written_the_same_cold_and_warm(
    arrays: list[NDArray[Any]],
    model: str,
    asked: list[tuple[str, bool, list[tuple[int, bool, int]] | None]],
    label_wanted: bool,
    violations: tuple[Violation, ...],
) -> None:
    outputs = {f"y{index}": array for index, array in enumerate(arrays)}
    of = _signature(outputs)
    templates = AnswerTemplates(of)
    for request_id, binary, chosen in asked:
        wanted = None
        if chosen is not None:
            kinds = {f"y{index}": arrays[index].dtype.kind for index, _, _ in chosen if index < len(arrays)}
            wanted = tuple(
                WantedOutput(f"y{index}", in_binary, 0 if kinds[f"y{index}"] in "Ob" else classes)
                for index, in_binary, classes in chosen
                if index < len(arrays)
            )
        request = InferenceRequest("", {}, wanted, binary)
        for wanting in (label_wanted, not label_wanted):
            answer = InferenceAnswer(model, "1", "0" * 64, request_id, outputs, wanting, violations)
            cold, length = encode_response(request, answer, of)
            for _ in range(2):
                warm, again = templates.encode(request, answer)
                assert (b"".join(warm), again) == (b"".join(cold), length)


def _answer(array: NDArray[Any], request_id: str = "i") -> InferenceAnswer:
    return InferenceAnswer("m", "1", "0" * 64, request_id, {"y": array}, False, ())


def test_other_numbers_shapes_and_datatypes_are_written_as_they_are() -> None:
    templates = AnswerTemplates(signature())
    request = InferenceRequest("", {}, binary=True)
    base = np.arange(12.0).reshape(3, 4)
    for array in (base, base + 1, base.T, base[:, ::2], base[:1], base.astype(">f8"), base.astype(np.int8), base > 3):
        for request_id in ("a", "another"):
            parts, length = templates.encode(request, _answer(array, request_id))
            body = b"".join(parts)
            head = json.loads(body[:length])
            (output,) = head["outputs"]
            assert (head["id"], output["shape"]) == (request_id, list(array.shape))
            found = np.frombuffer(body[length:], Datatype(output["datatype"]).numpy).reshape(output["shape"])
            np.testing.assert_array_equal(found, array)


def test_few_forms_of_answers_are_remembered_and_none_that_is_large_or_in_json() -> None:
    templates = AnswerTemplates(signature())
    for rows in range(1, 200):
        templates.encode(InferenceRequest("", {}, binary=True), _answer(np.zeros((rows, 1), np.float32)))
        assert 0 < len(templates) <= 64
    before = len(templates)
    templates.encode(InferenceRequest("", {}), _answer(np.zeros((1, 1), np.float32)))
    large = np.zeros((1, 100_000), np.float32)
    parts, _ = templates.encode(InferenceRequest("", {}, binary=True), _answer(large))
    assert np.shares_memory(np.frombuffer(parts[1], np.float32), large)
    assert len(templates) == before
