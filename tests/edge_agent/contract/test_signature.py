from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_agent.contract.checking import InputCheck
from edge_agent.contract.constraint import Constraint
from edge_agent.contract.errors import CallerError, ManifestError, SignatureMismatch
from edge_agent.contract.signature import Signature, TensorSpec
from edge_agent.contract.tensors import Datatype
from tests.edge_agent.contract.strategies import fast

OUTPUT = TensorSpec(name="y", datatype=Datatype.FP32, shape=(None, 2))
FLOATS = (Datatype.FP16, Datatype.FP32, Datatype.FP64)
INTEGERS = tuple(datatype for datatype in Datatype if "INT" in datatype.value)


def spec(datatype: Datatype = Datatype.FP32, shape: tuple[int | None, ...] = (None, 2), **limits: Any) -> TensorSpec:
    return TensorSpec(name="x", datatype=datatype, shape=shape, constraint=Constraint(**limits))


def check(array: NDArray[Any], one: TensorSpec) -> NDArray[Any]:
    return InputCheck(Signature(inputs=(one,), outputs=(OUTPUT,)))({"x": array}).inputs["x"]


def refusal(array: NDArray[Any], one: TensorSpec) -> SignatureMismatch:
    with pytest.raises(SignatureMismatch) as refused:
        check(array, one)
    return refused.value


def text(*rows: list[object]) -> NDArray[Any]:
    out = np.empty((len(rows), len(rows[0])), dtype=object)
    for at, row in enumerate(rows):
        out[at, :] = row
    return out


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


def test_enumerations_of_text_compare_whole_words_in_every_form_numpy_has_for_text() -> None:
    allowed = spec(Datatype.BYTES, allowed=("day", "nö"))
    for good in (np.array([["day", "nö"]]), text(["day", "nö".encode()]), np.array([[b"day", "nö".encode()]])):
        assert check(good, allowed).tolist() == [[b"day", "nö".encode()]]
    assert refusal(np.array([["d", "d"]]), allowed).rule == "enumeration"  # as <U1, 'day' would be cut to 'd'
    assert refusal(text([b"day", b"day\x00"]), allowed).detail == (
        "value b'day\\x00' at [0, 1] is not one of ['day', 'nö']"
    )


def test_empty_text_is_missing_only_where_something_says_so() -> None:
    empty = text([b"", b"a"])
    assert check(empty, spec(Datatype.BYTES)) is empty
    assert check(empty, spec(Datatype.BYTES, allowed=("", "a"))) is empty
    assert refusal(empty, spec(Datatype.BYTES, allowed=("a",))).rule == "missing"
    assert check(empty, spec(Datatype.BYTES, allowed=("a",), nullable=True)) is empty
    filled = check(empty, spec(Datatype.BYTES, allowed=("a",), nullable=True, fill="n/a\x00"))
    assert filled.tolist() == [[b"n/a\x00", b"a"]]
    assert empty[0, 0] == b""


@pytest.mark.parametrize("element", [5, None, 1.5, [b"a"], "\ud800"])
def test_an_object_that_is_no_text_is_refused_with_its_place(element: object) -> None:
    array = text([b"a", b"b"], [b"c", b"d"])
    array[1, 1] = element
    error = refusal(array, spec(Datatype.BYTES))
    assert (error.rule, error.row) == ("datatype", 1)
    assert error.detail.startswith("element at [1, 1] is ")


def test_a_long_text_is_cut_in_the_error() -> None:
    assert len(refusal(text([b"a" * 100_000, b""]), spec(Datatype.BYTES, allowed=("a", ""))).detail) < 200


@pytest.mark.parametrize(
    ("datatype", "limits", "says"),
    [
        (Datatype.FP32, {"minimum": 2, "maximum": 1}, "minimum 2 is above maximum 1"),
        (Datatype.FP32, {"minimum": math.nan}, "nan bounds no FP32"),
        (Datatype.FP32, {"maximum": math.inf}, "inf bounds no FP32"),
        (Datatype.BYTES, {"minimum": 0}, "0 bounds no BYTES"),
        (Datatype.FP32, {"fill": 0.0}, "fill is given, but the tensor is not nullable"),
        (Datatype.FP32, {"fill": "none", "nullable": True}, "fill 'none' is no value of FP32"),
        (Datatype.FP16, {"fill": 1e6, "nullable": True}, "fill 1000000.0 is no value of FP16"),
        (Datatype.BYTES, {"fill": 0, "nullable": True}, "fill 0 is no value of BYTES"),
        (Datatype.BYTES, {"allowed": (1.0,)}, "allowed value 1.0 is no value of BYTES"),
        (Datatype.INT8, {"allowed": (1, 2.5)}, "allowed value 2.5 is no value of INT8"),
        (Datatype.UINT8, {"allowed": (256,)}, "allowed value 256 is no value of UINT8"),
        (Datatype.INT64, {"allowed": (2.0**60,)}, "is no value of INT64"),
        (Datatype.FP16, {"allowed": (1e5,)}, "is no value of FP16"),
        (Datatype.FP32, {"allowed": (math.nan,)}, "is no value of FP32"),
        (Datatype.BOOL, {"allowed": (2,)}, "is no value of BOOL"),
        (Datatype.FP32, {"allowed": ()}, "allowed values is empty"),
    ],
)
def test_a_constraint_that_makes_no_sense_is_refused_when_it_is_made(
    datatype: Datatype, limits: dict[str, Any], says: str
) -> None:
    with pytest.raises(ManifestError, match=r"^x: ") as refused:
        spec(datatype, **limits)
    assert says in str(refused.value)


def test_a_spec_needs_a_name_and_axes_and_a_signature_needs_tensors() -> None:
    with pytest.raises(ManifestError, match="no name"):
        TensorSpec(name="", datatype=Datatype.FP32, shape=(1,))
    for shape in ((), (0,), (None, -1)):
        with pytest.raises(ManifestError, match="needs at least one axis"):
            spec(shape=shape)
    with pytest.raises(ManifestError, match="3 labels for a last axis of 2"):
        TensorSpec(name="y", datatype=Datatype.FP32, shape=(None, 2), labels=("a", "b", "c"))
    with pytest.raises(ManifestError, match="inputs: needs at least one tensor"):
        Signature(inputs=(), outputs=(OUTPUT,))
    with pytest.raises(ManifestError, match=r"outputs: .* no name twice"):
        Signature(inputs=(spec(),), outputs=(OUTPUT, OUTPUT))


@st.composite
def constrained(draw: st.DrawFn) -> tuple[TensorSpec, NDArray[Any]]:
    """A spec and an array with values at, just beside and far from its limits."""
    datatype = draw(st.sampled_from([d for d in Datatype if d is not Datatype.BOOL]))
    nullable = draw(st.booleans())
    if datatype is Datatype.BYTES:
        words = draw(st.none() | st.lists(st.sampled_from(["", "a", "ab", "ö"]), min_size=1, unique=True))
        limits: dict[str, Any] = {"allowed": None if words is None else tuple(words)}
        elements = st.sampled_from([b"", b"a", b"ab", b"b", "ö".encode(), "ö", "a"])
        array = text(draw(st.lists(elements, min_size=2, max_size=2)), draw(st.lists(elements, min_size=2, max_size=2)))
    else:
        whole = st.integers(0, 100)
        number: st.SearchStrategy[float] = whole if datatype in INTEGERS else whole.map(lambda n: n / 10)
        low, high = sorted((draw(number), draw(number)))
        limits = {
            "minimum": draw(st.sampled_from([None, low])),
            "maximum": draw(st.sampled_from([None, high])),
            "allowed": draw(st.none() | st.lists(number, min_size=1, max_size=3).map(lambda some: (low, high, *some))),
        }
        near = [low, high, low + 1, high - 1, 0, 100] + ([math.nan, math.inf, -math.inf] if datatype in FLOATS else [])
        drawn = draw(
            st.lists(st.sampled_from([n for n in near if not n < 0 or n == -math.inf]), min_size=4, max_size=4)
        )
        array = np.array(drawn, dtype=datatype.numpy).reshape(2, 2)
    return spec(datatype, nullable=nullable, **limits), array


def is_valid(one: TensorSpec, element: Any) -> bool:
    """The rules again, one element at a time, in Python's numbers."""
    limits = one.constraint
    if one.datatype is Datatype.BYTES:
        word = element if isinstance(element, str) else element.decode()
        return (limits.nullable and not word) or limits.allowed is None or word in limits.allowed

    def held(bound: float) -> float:
        return float(one.datatype.numpy.type(bound))

    if math.isnan(element):
        return limits.nullable
    return (
        (limits.minimum is None or element >= held(limits.minimum))
        and (limits.maximum is None or element <= held(limits.maximum))
        and (limits.allowed is None or element in {held(float(value)) for value in limits.allowed})
    )


@fast
@given(constrained())
def test_exactly_the_valid_arrays_pass_and_a_bad_row_is_named(case: tuple[TensorSpec, NDArray[Any]]) -> None:
    one, array = case
    bad = [row for row, elements in enumerate(array.tolist()) if not all(is_valid(one, each) for each in elements)]
    if not bad:
        assert check(array, one).shape == array.shape
        return
    assert refusal(array, one).row in bad
