"""Specs and tensors to check: the short words in which the contract's tests speak of one input, and what may come."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_agent.contract.checking import Checked, InputCheck
from edge_agent.contract.constraint import Constraint
from edge_agent.contract.errors import SignatureMismatch
from edge_agent.contract.signature import Signature, TensorSpec
from edge_agent.contract.tensors import Datatype

OUTPUT = TensorSpec(name="y", datatype=Datatype.FP32, shape=(None, 2))
FLOATS = (Datatype.FP16, Datatype.FP32, Datatype.FP64)
INTEGERS = tuple(datatype for datatype in Datatype if "INT" in datatype.value)


def spec(datatype: Datatype = Datatype.FP32, shape: tuple[int | None, ...] = (None, 2), **limits: Any) -> TensorSpec:
    return TensorSpec(name="x", datatype=datatype, shape=shape, constraint=Constraint(**limits))


def check_all(array: NDArray[Any], one: TensorSpec) -> Checked:
    return InputCheck(Signature(inputs=(one,), outputs=(OUTPUT,)))({"x": array})


def check(array: NDArray[Any], one: TensorSpec) -> NDArray[Any]:
    return check_all(array, one).inputs["x"]


def refusal(array: NDArray[Any], one: TensorSpec) -> SignatureMismatch:
    with pytest.raises(SignatureMismatch) as refused:
        check(array, one)
    return refused.value


def text(*rows: list[object]) -> NDArray[Any]:
    out = np.empty((len(rows), len(rows[0])), dtype=object)
    for at, row in enumerate(rows):
        out[at, :] = row
    return out


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
