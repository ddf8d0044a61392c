from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_agent.contract.checking import Violation
from edge_agent.contract.constraint import (
    Policy,
    Rule,
)
from edge_agent.contract.errors import ManifestError, SignatureMismatch
from edge_agent.contract.tensors import Datatype
from tests.edge_agent.contract.strategies import arrays, fast
from tests.edge_agent.contract.tensor_requests import (
    FLOATS,
    INTEGERS,
    check,
    check_all,
    refusal,
    spec,
)


@pytest.mark.parametrize("datatype", [d for d in Datatype if d.size_bytes not in (None, 1)])
def test_big_endian_numbers_are_turned_round_not_misread(datatype: Datatype) -> None:
    array = np.array([[1, 2]], dtype=datatype.numpy.newbyteorder(">"))
    checked = check(array, spec(datatype, minimum=1, maximum=2, allowed=(1, 2)))
    assert checked.dtype == datatype.numpy
    assert checked.tolist() == [[1, 2]]


@pytest.mark.parametrize("datatype", FLOATS)
def test_nan_is_missing_before_it_is_out_of_range(datatype: Datatype) -> None:
    array = np.array([[0, 1], [2, math.nan]], dtype=datatype.numpy)
    error = refusal(array, spec(datatype, minimum=0, maximum=3))
    assert (error.rule, error.row) == ("missing", 1)
    assert "value nan at [1, 1]" in error.detail
    assert refusal(array, spec(datatype)).rule == "missing"


def test_a_nullable_tensor_lets_nan_through_and_still_checks_the_rest() -> None:
    array = np.array([[math.nan, 1], [2, math.nan]], np.float32)
    assert check(array, spec(nullable=True, minimum=1, maximum=2, allowed=(1, 2))) is array
    assert refusal(array, spec(nullable=True, maximum=1.5)).row == 1
    assert refusal(array, spec(nullable=True, allowed=(1, 3))).row == 1
    assert check(np.full((1, 2), math.nan, np.float32), spec(nullable=True, minimum=1)).shape == (1, 2)


def test_a_fill_replaces_missing_values_in_a_copy_and_may_lie_outside_the_range() -> None:
    array = np.array([[math.nan, 0.5]], np.float32)
    checked = check(array, spec(nullable=True, fill=-1.0, minimum=0, maximum=1))
    assert checked.tolist() == [[-1.0, 0.5]]
    assert checked.dtype == np.float32
    assert math.isnan(array[0, 0])
    big = array.astype(">f4")
    assert check(big, spec(nullable=True, fill=-1.0)).tolist() == [[-1.0, 0.5]]


def test_infinities_are_beyond_every_bound_and_pass_where_there_is_none() -> None:
    up, down = np.array([[0, math.inf]], np.float32), np.array([[-math.inf, 0]], np.float32)
    for array in (up, down):
        assert check(array, spec()) is array
    assert refusal(up, spec(maximum=1e38)).detail == "value inf at [0, 1] is above the maximum 1e+38"
    assert refusal(up, spec(maximum=1e300)).rule == "range"  # a maximum that FP32 rounds to infinity
    assert refusal(up.astype(np.float16), spec(Datatype.FP16, maximum=70_000)).rule == "range"
    assert refusal(down, spec(minimum=-1e300)).rule == "range"
    assert check(up, spec(minimum=0)) is up


def test_a_bound_counts_as_the_datatype_holds_it() -> None:
    tenth = np.array([[0.1, 0.1]], np.float32)  # 0.100000001490116
    assert check(tenth, spec(minimum=0.1, maximum=0.1)) is tenth
    above = np.nextafter(tenth, np.float32(1))
    assert refusal(above, spec(maximum=0.1)).rule == "range"


def test_integers_are_compared_exactly_however_large() -> None:
    edge = np.array([[2**63 - 1, 0]], np.int64)
    assert refusal(edge, spec(Datatype.INT64, maximum=2.0**62)).row == 0
    assert check(edge, spec(Datatype.INT64, maximum=2.0**63)) is edge
    near = np.array([[2**53 + 1, 0]], np.int64)
    assert refusal(near, spec(Datatype.INT64, maximum=2.0**53)).rule == "range"
    assert refusal(np.array([[0, 3]], np.uint8), spec(Datatype.UINT8, minimum=0.5)).row == 0
    assert refusal(np.array([[0, 3]], np.uint8), spec(Datatype.UINT8, maximum=2.5)).row == 0
    assert check(np.array([[0, 3]], np.uint8), spec(Datatype.UINT8, minimum=-1, maximum=300)).size == 2


def test_the_range_error_names_tensor_row_rule_place_and_value() -> None:
    error = refusal(np.array([[0, 1], [0, 7]], np.int32), spec(Datatype.INT32, maximum=5))
    assert str(error) == "input 'x', row 1: range: value 7 at [1, 1] is above the maximum 5"
    assert (error.tensor, error.row, error.rule) == ("x", 1, "range")


def test_enumerations_of_numbers() -> None:
    for datatype in (*FLOATS, *INTEGERS):
        good = np.array([[1, 2], [2, 1]], dtype=datatype.numpy)
        assert check(good, spec(datatype, allowed=(1, 2))) is good
        error = refusal(good, spec(datatype, allowed=(1, 3)))
        assert (error.rule, error.row) == ("enumeration", 0)
        assert "value 2" in error.detail
        assert "is not one of [1, 3]" in error.detail
    tenth = np.array([[0.1, 0.1]], np.float32)
    assert check(tenth, spec(allowed=(0.1,))) is tenth


def test_clip_puts_the_nearest_bound_in_a_copy_and_says_so() -> None:
    array = np.array([[-3, 0.5], [math.inf, 2]], np.float32)
    clipped = check_all(array, spec(minimum=0, maximum=1, policies={Rule.RANGE: Policy.CLIP}))
    assert clipped.inputs["x"].tolist() == [[0.0, 0.5], [1.0, 1.0]]
    assert clipped.inputs["x"].dtype == np.float32
    assert clipped.violations == (Violation("x", "range", "clip", rows=2, first_row=0, value="-3.0"),)
    assert array[0, 0] == -3


def test_clip_of_whole_numbers_goes_to_the_nearest_whole_number_within() -> None:
    array = np.array([[0, 9]], np.uint8)
    policies = {Rule.RANGE: Policy.CLIP}
    assert check(array, spec(Datatype.UINT8, minimum=0.5, maximum=7.5, policies=policies)).tolist() == [[1, 7]]
    assert check(array, spec(Datatype.UINT8, maximum=7.5, policies=policies)).dtype == np.uint8


def test_fill_as_a_policy_stands_for_what_is_out_of_range_or_of_the_enumeration() -> None:
    array = np.array([[5, 2], [1, 3]], np.float32)
    filled = check_all(
        array,
        spec(maximum=4, allowed=(1, 2), fill=-1, policies={Rule.RANGE: Policy.FILL, Rule.ENUMERATION: Policy.FILL}),
    )
    assert filled.inputs["x"].tolist() == [[-1, 2], [1, -1]]
    assert [(one.rule, one.rows, one.first_row, one.value) for one in filled.violations] == [
        ("range", 1, 0, "5.0"),
        ("enumeration", 1, 1, "3.0"),
    ]


def test_flag_lets_values_through_as_they_are_in_the_same_array() -> None:
    array = np.array([[5, 2], [math.nan, 3]], np.float32)
    flagged = check_all(array, spec(maximum=4, policies={Rule.RANGE: Policy.FLAG, Rule.MISSING: Policy.FLAG}))
    assert flagged.inputs["x"] is array
    assert [(one.rule, one.policy, one.first_row) for one in flagged.violations] == [
        ("missing", "flag", 1),
        ("range", "flag", 0),
    ]


def test_a_missing_value_can_be_filled_and_counted_where_it_is_not_expected() -> None:
    array = np.array([[math.nan, 2], [math.nan, 3]], np.float32)
    filled = check_all(array, spec(fill=0, minimum=1, policies={Rule.MISSING: Policy.FILL}))
    assert filled.inputs["x"].tolist() == [[0, 2], [0, 3]]
    assert filled.violations == (Violation("x", "missing", "fill", rows=2, first_row=0, value="nan"),)
    quiet = check_all(array, spec(fill=0, nullable=True))
    assert quiet.inputs["x"].tolist() == [[0, 2], [0, 3]]
    assert quiet.violations == ()


def test_what_is_clipped_is_looked_up_in_the_enumeration_as_it_now_is() -> None:
    array = np.array([[9, 2]], np.int32)
    limits: dict[str, Any] = {"maximum": 4, "policies": {Rule.RANGE: Policy.CLIP}}
    assert check(array, spec(Datatype.INT32, allowed=(2, 4), **limits)).tolist() == [[4, 2]]
    assert refusal(array, spec(Datatype.INT32, allowed=(2, 9), **limits)).rule == "enumeration"


def test_the_first_row_out_of_range_is_named_whichever_bound_it_breaks() -> None:
    array = np.array([[0, 9], [-9, 0]], np.int64)
    assert (
        refusal(array, spec(Datatype.INT64, minimum=-1, maximum=1)).detail == "value 9 at [0, 1] is above the maximum 1"
    )


def test_enumerations_of_many_values_are_checked_as_those_of_few() -> None:
    array = np.tile(np.array([[1, 2]], np.float32), (500, 1))
    assert check(array, spec(allowed=(1, 2))) is array
    array[321, 1] = 3
    assert refusal(array, spec(allowed=(1, 2))).row == 321


def test_signalling_nans_and_other_odd_patterns_are_missing_values_without_a_warning() -> None:
    for pattern, datatype in (
        (0x7FA00000, Datatype.FP32),
        (0x7C01, Datatype.FP16),
        (0x7FF0000000000001, Datatype.FP64),
    ):
        raw = np.array([[pattern, 0]], dtype=f"<u{datatype.size_bytes}").view(datatype.numpy)
        assert refusal(raw, spec(datatype, minimum=0, maximum=1, allowed=(0,))).rule == "missing"
        assert check(raw, spec(datatype, nullable=True, minimum=0, maximum=1)) is raw


@fast
@given(arrays(st.sampled_from([*INTEGERS, *FLOATS]), filled=True), st.floats(0, 100), st.floats(1, 100))
def test_clip_always_lands_in_range(array: NDArray[Any], low: float, width: float) -> None:
    datatype = Datatype.of(array.dtype)
    low = low if datatype.value.startswith("U") else low - 50.0
    try:
        one = spec(
            datatype,
            shape=(None,) * array.ndim,
            minimum=low,
            maximum=low + width,
            nullable=datatype in FLOATS,
            policies={Rule.RANGE: Policy.CLIP},
        )
    except ManifestError:  # no whole number lies within
        assume(False)
    before = array.copy()
    clipped = check(array, one)
    bounds = (low, low + width) if datatype in INTEGERS else map(datatype.numpy.type, (low, low + width))
    least, most = (bound if isinstance(bound, float) else float(bound) for bound in bounds)
    assert all(math.isnan(value) or least <= value <= most for value in clipped.ravel().tolist())
    assert clipped.dtype == datatype.numpy
    np.testing.assert_array_equal(array, before)


@pytest.mark.parametrize("datatype", FLOATS)
@pytest.mark.parametrize("odd", [None, 1.0, 0.0, -0.0, 1e-7, 1.001, -1e-7, math.nan, -math.nan, math.inf, -math.inf])
def test_a_large_tensor_from_0_on_is_judged_as_a_small_one(datatype: Datatype, odd: float | None) -> None:
    values = np.linspace(0, 1, 20_000).astype(datatype.numpy)[None]
    if odd is not None:
        values[0, 17_000] = odd
    small = values[:, 16_990:17_010]
    outcomes: list[str] = []
    for each in (small, values):
        try:
            outcomes.append(
                "as it is" if check(each, spec(datatype, (None, None), minimum=0, maximum=1)) is each else "changed"
            )
        except SignatureMismatch as error:
            outcomes.append(error.rule)
    assert outcomes[0] == outcomes[1]
    wrong = odd is not None and not 0.0 <= float(datatype.numpy.type(odd)) <= 1.0
    assert (outcomes[0] == "as it is") is not wrong
