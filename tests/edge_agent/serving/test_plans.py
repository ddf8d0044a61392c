"""Remembered heads: a request is read the same whether or not one like it was there before."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_agent.contract.constraint import Constraint, Policy, Rule
from edge_agent.contract.errors import MalformedRequest, ShoalError, SignatureMismatch, UnknownRegion
from edge_agent.contract.signature import Signature
from edge_agent.contract.tensors import Datatype
from edge_agent.serving.codec import decode_request
from edge_agent.serving.plans import Plans
from edge_agent.serving.request import InferenceRequest, WantedOutput
from edge_agent.serving.shared_memory import Regions
from tests.edge_agent.serving.bodies import any_array, binary_body, one_input, signature

_PARAMETERS = st.fixed_dictionaries(
    {},
    optional={
        "binary_data_output": st.booleans(),
        "monitor": st.booleans(),
        "group": st.sampled_from(["", "g"]),
        "priority": st.integers(0, 2),
        "timeout": st.integers(0, 2),
        "sequence_id": st.sampled_from([0, 0, 1]),
    },
)
_OUTPUTS = st.sampled_from(
    [
        [{"name": "y"}],
        [{"name": "y", "parameters": {"binary_data": True}}],
        [{"name": "y", "parameters": {"classification": 1}}],
        [{"name": "y", "parameters": {"shared_memory_region": "r", "shared_memory_byte_size": 8}}],
        [{"name": "z"}],
    ]
)
_FIELDS = st.fixed_dictionaries(
    {}, optional={"id": st.sampled_from(["", "i"]), "parameters": _PARAMETERS, "outputs": _OUTPUTS}
)


def _read(decode: Any, *given_: Any) -> tuple[InferenceRequest | None, str]:
    try:
        return decode(*given_), ""
    except ShoalError as error:
        return None, f"{type(error).__name__}: {error}"


def _same(body: bytes, length: int | None, plans: Plans, of: Signature) -> None:
    """Cold, and twice through the plans, the second time warm: all three are one request, or one refusal."""
    cold, refusal = _read(lambda: decode_request(body, length, of, max_rows=3))
    for _ in range(2):
        warm, again = _read(plans.decode, body, length)
        assert again == refusal
        if cold is None or warm is None:
            assert warm is cold
            continue
        assert dataclasses.replace(warm, inputs={}) == dataclasses.replace(cold, inputs={})
        assert list(warm.inputs) == list(cold.inputs)
        for name, array in cold.inputs.items():
            found = warm.inputs[name]
            np.testing.assert_array_equal(found, array)
            assert (found.dtype, found.shape, found.flags.writeable) == (
                array.dtype,
                array.shape,
                array.flags.writeable,
            )
            assert found.flags.aligned


@given(
    arrays=st.lists(any_array(finite=False), min_size=1, max_size=3),
    beside=st.booleans(),
    fields=_FIELDS,
    odd=st.integers(0, 7),
    other=st.binary(max_size=40),
)
def test_a_request_is_read_the_same_cold_and_warm(
    arrays: list[NDArray[Any]], beside: bool, fields: dict[str, Any], odd: int, other: bytes
) -> None:
    of = signature()
    plans = Plans(of, max_rows=3)
    body, length = binary_body({f"x{index}": array for index, array in enumerate(arrays)}, **fields)
    head, raw = json.loads(body[:length]), body[length:]
    if beside:  # an input in the JSON itself
        head["inputs"].append({"name": "in", "shape": [1], "datatype": "INT8", "data": [1]})
    text = json.dumps(head).encode() + b" " * odd  # moves the numbers to odd addresses
    _same(text + raw, len(text), plans, of)
    # The same head with other numbers, too few bytes, too many, or none.
    replaced = (other + raw)[: len(raw)]
    for rest in (replaced, raw[:-1], raw + b"x", b""):
        _same(text + rest, len(text), plans, of)
    _same(text + raw, None, plans, of)
    _same(text + raw, len(text) - 1, plans, of)


def test_a_head_that_was_there_before_is_not_read_again() -> None:
    plans = Plans(signature(), max_rows=3)
    for value in range(4):
        body, length = binary_body({"x": np.full((1, 2), value, np.float32)})
        assert plans.decode(memoryview(body), length).inputs["x"].tolist() == [[value, value]]
        assert len(plans) == 1


def test_numbers_stay_views_on_what_was_received() -> None:
    plans = Plans(signature(), max_rows=3)
    body, length = binary_body({"x": np.ones((1, 2), np.uint8)})
    for _ in range(2):
        found = plans.decode(body, length).inputs["x"]
        assert np.shares_memory(found, np.frombuffer(body, np.uint8))


@pytest.mark.parametrize("width", [2, 5000])
def test_bodies_of_one_row_come_to_one_batch(width: int) -> None:
    plans = Plans(signature(), max_rows=3)
    rows = [np.full((1, width), value, np.float32) for value in range(3)]
    pairs = [binary_body({"x": row, "y": row[:, :1] + 10}) for row in rows]
    bodies, length = [body for body, _ in pairs], pairs[0][1]
    plans.decode(bodies[0], length)
    plan = plans.plan(bodies[1], length)
    assert plan is not None
    assert plan.one_row
    joined = plan.joined(bodies)
    np.testing.assert_array_equal(joined["x"], np.concatenate(rows))
    assert joined["y"].tolist() == [[10], [11], [12]]


def test_few_heads_are_remembered_and_none_that_is_long() -> None:
    plans = Plans(signature(), max_rows=3)
    for index in range(1000):
        body, length = binary_body({"x": np.ones((1, 2), np.float32)}, mine=index)
        plans.decode(body, length)
        assert 0 < len(plans) <= 64
    before = len(plans)
    for fields in ({"mine": "m" * 5000}, {"id": "i"}, {"parameters": {"group": "g"}}):
        body, length = binary_body({"x": np.ones((1, 2), np.float32)}, **fields)
        plans.decode(body, length)
        assert len(plans) == before


def test_shared_memory_is_looked_for_each_time(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(100))
    regions = Regions(folder=tmp_path)
    plans = Plans(signature(), max_rows=3, regions=regions)
    told = {"shared_memory_region": "r", "shared_memory_byte_size": 8}
    body, length = binary_body({"x": np.ones((1, 2), np.float32)}, outputs=[{"name": "y", "parameters": told}])
    head = one_input(parameters=told, data=...)
    for _ in range(2):
        regions.register("r", "/x", 0, 100)
        assert plans.decode(body, length).outputs == (WantedOutput("y", region="r", size=8),)
        assert plans.decode(head, len(head)).inputs["x"].tolist() == [[0.0, 0.0]]
        regions.unregister("r")
        for asked in ((body, length), (head, len(head))):
            with pytest.raises(UnknownRegion):
                plans.decode(*asked)
    regions.close()


def test_what_lies_in_shared_memory_is_read_anew_each_time(tmp_path: Path) -> None:
    regions = Regions(folder=tmp_path)
    plans = Plans(signature(), max_rows=3, regions=regions)
    place = {"shared_memory_region": "r", "shared_memory_byte_size": 8, "shared_memory_offset": 4}
    head = one_input(parameters=place, data=...)
    for number in range(3):
        (tmp_path / f"x{number}").write_bytes(np.array([9, number, -number, 9], np.float32).tobytes())
        regions.register("r", f"/x{number}", 0, 16)
        request = plans.decode(head, len(head))
        anew = decode_request(head, len(head), signature(), regions=regions)
        assert dataclasses.replace(request, inputs={}) == dataclasses.replace(anew, inputs={})
        assert request.inputs["x"].tolist() == [[number, -number]]
        regions.unregister("r")
    plan = plans.plan(head, len(head))
    assert plan is not None
    assert not plan.one_row  # its rows are not in the body, whence requests are joined
    regions.close()


def test_units_that_differ_are_refused_or_flagged_each_time() -> None:
    def plans(**limits: Any) -> Plans:
        plain = signature()
        spec = msgspec.structs.replace(plain.inputs[0], constraint=Constraint(unit="Cel", **limits))
        return Plans(msgspec.structs.replace(plain, inputs=(spec,)), max_rows=3)

    head = one_input(parameters={"binary_data_size": 8, "unit": "K"}, data=...)
    strict, lenient = plans(), plans(policies={Rule.UNIT: Policy.FLAG})
    for _ in range(3):
        with pytest.raises(SignatureMismatch, match="the model takes 'Cel'"):
            strict.decode(head + bytes(8), len(head))
        (flagged,) = lenient.decode(head + bytes(8), len(head)).flagged
        assert (flagged.tensor, flagged.rule, flagged.rows) == ("x", "unit", 1)


def test_a_raw_body_and_a_length_that_lies_are_read_as_ever() -> None:
    plans = Plans(signature(Datatype.FP32), max_rows=3)
    assert plans.decode(bytes(8), 0).inputs["x"].tolist() == [[0.0, 0.0]]
    with pytest.raises(MalformedRequest, match="truncated"):
        plans.decode(bytes(8), 100)
