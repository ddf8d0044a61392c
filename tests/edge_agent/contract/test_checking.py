from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_agent.contract.checking import InputCheck, Violation, check_unit
from edge_agent.contract.constraint import (
    AxisLimit,
    Constraint,
    DateFormat,
    Encoding,
    ImageLimits,
    NumberFormat,
    Policy,
    Rule,
)
from edge_agent.contract.errors import CallerError, ManifestError, SignatureMismatch
from edge_agent.contract.signature import Signature, TensorSpec
from edge_agent.contract.tensors import Datatype
from tests.edge_agent.contract.strategies import arrays, fast
from tests.edge_agent.contract.tensor_requests import (
    OUTPUT,
    check,
    check_all,
    constrained,
    is_valid,
    refusal,
    spec,
    text,
)


def test_a_good_request_passes_in_the_signature_s_order_and_uncopied() -> None:
    signature = Signature(
        inputs=(spec(), TensorSpec(name="a", datatype=Datatype.INT8, shape=(None,))), outputs=(OUTPUT,)
    )
    x, a = np.zeros((3, 2), np.float32), np.zeros(3, np.int8)
    checked = InputCheck(signature)({"a": a, "x": x}).inputs
    assert list(checked) == ["x", "a"]
    assert checked["x"] is x
    assert checked["a"] is a


def test_an_unknown_or_absent_input_is_named() -> None:
    signature = Signature(inputs=(spec(),), outputs=(OUTPUT,))
    with pytest.raises(SignatureMismatch, match=r"^input 'z': name: the model has no such input; it has: x$"):
        InputCheck(signature)({"x": np.zeros((1, 2), np.float32), "z": np.zeros(1)})
    with pytest.raises(SignatureMismatch, match=r"^input 'x': name: the request lacks this input$"):
        InputCheck(signature)({})


@pytest.mark.parametrize("dtype", ["float64", "float16", "int32", "bool", "complex64", "datetime64[s]", "S3", "O"])
def test_another_datatype_is_the_caller_s_error_even_where_the_protocol_has_no_name_for_it(dtype: str) -> None:
    error = refusal(np.zeros((1, 2), dtype=dtype), spec())
    assert isinstance(error, CallerError)
    assert (error.tensor, error.rule, error.row) == ("x", "datatype", None)
    assert error.detail.startswith("expected FP32, got ")


@pytest.mark.parametrize("shape", [(), (2,), (1, 3), (1, 2, 1), (2, 1)])
def test_another_shape_is_refused_and_never_broadcast(shape: tuple[int, ...]) -> None:
    error = refusal(np.zeros(shape, np.float32), spec())
    assert error.rule == "shape"
    assert error.detail == f"expected [-1, 2], got [{', '.join(map(str, shape))}]"


def test_a_request_without_rows_is_refused() -> None:
    assert refusal(np.zeros((0, 2), np.float32), spec()).detail == "expected [-1, 2], got [0, 2] (no elements)"
    assert refusal(np.zeros((1, 0), np.float32), spec(shape=(None, None))).rule == "shape"
    assert refusal(np.empty((0, 2), object), spec(Datatype.BYTES)).rule == "shape"


def test_inputs_with_different_rows_are_refused_even_if_one_would_broadcast() -> None:
    other = TensorSpec(name="a", datatype=Datatype.FP32, shape=(None,))
    signature = Signature(inputs=(spec(), other), outputs=(OUTPUT,))
    with pytest.raises(SignatureMismatch, match=r"^input 'a': shape: 1 rows, but 'x' has 3$"):
        InputCheck(signature)({"x": np.zeros((3, 2), np.float32), "a": np.zeros(1, np.float32)})


def test_axes_have_limits_of_their_own() -> None:
    words = spec(shape=(None, None), axes=(AxisLimit(axis=0, maximum=2), AxisLimit(axis=1, minimum=2, maximum=3)))
    good = np.zeros((2, 3), np.float32)
    assert check(good, words) is good
    assert refusal(np.zeros((1, 4), np.float32), words).detail == "axis 1 must be at least 2 and at most 3 long, got 4"
    assert refusal(np.zeros((3, 2), np.float32), words).detail == "axis 0 must be at least 1 and at most 2 long, got 3"


def test_another_unit_is_refused_or_flagged_and_the_same_one_or_none_passes() -> None:
    celsius = spec(unit="Cel")
    assert check_unit(celsius, "Cel") is None
    assert check_unit(spec(), "K") is None
    with pytest.raises(SignatureMismatch, match=r"^input 'x': unit: the values are in 'K', the model takes 'Cel'$"):
        check_unit(celsius, "K")
    flagged = check_unit(spec(unit="Cel", policies={Rule.UNIT: Policy.FLAG}), "K", rows=3)
    assert flagged == Violation("x", "unit", "flag", rows=3, first_row=0, value="'K'")


def test_violations_of_several_inputs_come_in_the_signature_s_order() -> None:
    def clipped(name: str) -> TensorSpec:
        limits = Constraint(maximum=1, policies={Rule.RANGE: Policy.CLIP})
        return TensorSpec(name=name, datatype=Datatype.FP32, shape=(None,), constraint=limits)

    two = np.full(3, 2, np.float32)
    seen = InputCheck(Signature(inputs=(clipped("b"), clipped("a")), outputs=(OUTPUT,)))({"a": two, "b": two})
    assert [(one.tensor, one.rows) for one in seen.violations] == [("b", 3), ("a", 3)]
    assert seen.inputs["a"].tolist() == [1, 1, 1]


def test_a_single_number_without_an_axis_is_no_batch() -> None:
    for one in (spec(shape=(None,)), spec(Datatype.BYTES, shape=(None,))):
        assert refusal(np.array(1.0, one.datatype.numpy), one).detail == "expected [-1], got []"


@fast
@given(constrained())
def test_exactly_the_valid_arrays_pass_and_a_bad_row_is_named(case: tuple[TensorSpec, NDArray[Any]]) -> None:
    one, array = case
    bad = [row for row, elements in enumerate(array.tolist()) if not all(is_valid(one, each) for each in elements)]
    if not bad:
        assert check(array, one).shape == array.shape
        return
    assert refusal(array, one).row in bad


_POLICIES = st.sampled_from([Policy.FLAG, Policy.FILL, Policy.CLIP, Policy.REJECT])


@st.composite
def any_limits(draw: st.DrawFn) -> dict[str, Any]:
    """Constraints of every kind, many of them nonsense."""
    limits: dict[str, Any] = draw(
        st.fixed_dictionaries(
            {},
            optional={
                "minimum": st.sampled_from([-1.0, 0.0]),
                "maximum": st.sampled_from([0.5, 2.0]),
                "allowed": st.sampled_from([(0.0, 1.0), ("a", "ab")]),
                "nullable": st.booleans(),
                "fill": st.sampled_from([7.0, "fill"]),
                "encoding": st.sampled_from(Encoding),
                "min_length": st.integers(0, 2),
                "max_length": st.integers(2, 3),
                "number": st.just(NumberFormat(decimal=",", grouping=".")),
                "date": st.just(DateFormat(zone="Europe/Berlin")),
                "image": st.just(ImageLimits(max_width=5)),
            },
        )
    )
    return {**limits, "policies": draw(st.dictionaries(st.sampled_from(Rule), _POLICIES, max_size=3))}


@st.composite
def any_array(draw: st.DrawFn) -> NDArray[Any]:
    """Any numbers of any datatype, or text, also such as formats may like."""
    if draw(st.booleans()):
        return draw(arrays())
    words = st.sampled_from([b"1.234,5", b"2026-03-29T02:30", b"GIF89a", b"\xff\xd8\xff", "ö", "", b"a", None, 5])
    return text(draw(st.lists(words | st.binary(max_size=4) | st.text(max_size=4), min_size=1, max_size=3)))


@fast
@given(any_limits(), any_array(), st.sampled_from(Datatype))
def test_nothing_but_a_mismatch_is_ever_raised_and_nothing_sent_is_changed(
    limits: dict[str, Any], array: NDArray[Any], datatype: Datatype
) -> None:
    if "minimum" in limits and datatype.numpy.kind == "u":
        limits["minimum"] = 0.0
    try:
        one = spec(datatype, shape=(None,) * max(array.ndim, 1), **limits)
    except ManifestError:
        limits = {name: limits[name] for name in ("nullable",) if name in limits}
        one = spec(datatype, shape=(None,) * max(array.ndim, 1), **limits)
    before = array.copy()
    try:
        seen = check_all(array, one)
    except SignatureMismatch:
        pass
    else:
        assert seen.inputs["x"].dtype == datatype.numpy
        assert seen.inputs["x"].shape == array.shape
        assert all(one.rows >= 1 and one.first_row < len(array) for one in seen.violations)
    assert array.tobytes() == before.tobytes() if array.dtype.kind != "O" else array.tolist() == before.tolist()


@fast
@given(arrays(filled=True), st.booleans())
def test_an_input_in_which_nothing_changes_is_the_same_array(array: NDArray[Any], bounded: bool) -> None:
    datatype = Datatype.of(array.dtype)
    assume(array.dtype.byteorder != ">")
    policies = {Rule.RANGE: Policy.FLAG} if bounded and datatype not in {Datatype.BYTES, Datatype.BOOL} else {}
    one = spec(
        datatype,
        shape=(None,) * array.ndim,
        nullable=True,
        minimum=0 if policies else None,
        encoding=Encoding.UTF_8 if datatype is Datatype.BYTES and bounded else None,
        policies=policies if datatype is not Datatype.BYTES or not bounded else {Rule.ENCODING: Policy.FLAG},
    )
    assert check(array, one) is array
