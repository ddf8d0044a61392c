"""Remembered answers in frames: an answer is written the same whether or not one like it was there before."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.contract.checking import Violation
from edge_agent.serving.frames.answer_templates import FrameTemplates
from edge_agent.serving.frames.tensors import answer_parts
from edge_agent.serving.request import InferenceAnswer, InferenceRequest
from edge_agent.serving.shared_memory import Regions
from tests.edge_agent.serving.bodies import any_array

_VIOLATION = Violation("x", "range", "clip", 3, 0, "7")
_IDS = st.sampled_from(["a", "feed-1", "request", "\xa7request", "é", "x" * 40]) | st.text(max_size=20)
_NUMBERS = st.integers(1, 300) | st.integers(1, 2**63)


@given(
    arrays=st.lists(any_array(finite=True), min_size=1, max_size=3),
    model=st.sampled_from(["m", "id", "request", "é\xa7request\xa1a"]),
    asked=st.lists(st.tuples(_NUMBERS, _IDS, st.booleans(), st.booleans(), st.integers(0, 3)), min_size=1, max_size=6),
)
def test_a_frame_is_written_the_same_cold_and_warm(
    arrays: list[np.ndarray], model: str, asked: list[tuple[int, str, bool, bool, int]]
) -> None:
    templates = FrameTemplates(Regions())
    for number, request_id, label_wanted, broken, shift in asked:
        outputs = {f"y{index}": np.roll(array, shift) for index, array in enumerate(arrays)}
        answer = InferenceAnswer(model, "1", "d" * 64, request_id, outputs, label_wanted, (_VIOLATION,) * broken)
        request = InferenceRequest("", {}, binary=True)
        expected = b"".join(map(bytes, answer_parts(number, request, answer, regions=Regions())))
        for _ in range(2):
            assert b"".join(map(bytes, templates.encode(number, request, answer))) == expected
