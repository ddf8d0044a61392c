from __future__ import annotations

import datetime as dt
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper

from edge_agent.contract.checking import InputCheck
from edge_agent.contract.constraint import Constraint, DateFormat, Encoding, NumberFormat, Policy, Rule
from edge_agent.contract.signature import Signature, TensorSpec
from edge_agent.contract.tensors import Datatype
from trainer.errors import RecipeError
from trainer.front_end import MISSING_SECONDS, FrontEnd, check_text, encoded_name
from trainer.recipe import Recipe

_WORDS = Constraint(allowed=("steel", "tin", "brass"), encoding=Encoding.UTF_8, nullable=True)
_OUTPUT = TensorSpec(name="y", datatype=Datatype.FP32, shape=(None,))


def text(name: str, constraint: Constraint, *axes: int | None) -> TensorSpec:
    return TensorSpec(name=name, datatype=Datatype.BYTES, shape=(None, *axes), constraint=constraint)


def front_end(*inputs: TensorSpec) -> FrontEnd:
    return FrontEnd(Signature(inputs=inputs, outputs=(_OUTPUT,)))


def column(*values: bytes) -> NDArray[Any]:
    return np.array(values, dtype=object)


def test_words_become_the_indices_of_categories_and_what_is_unknown_becomes_0() -> None:
    encoder = front_end(text("metal", _WORDS))
    found = encoder.encode({"metal": column(b"tin", b"steel", b"", b"gold", b"brass")})["metal"]
    assert found.dtype == np.int64
    assert found.tolist() == [2, 1, 0, 0, 3]
    assert encoder.categories == {"metal": 4}


def test_numbers_as_text_become_numbers_and_missing_ones_nan() -> None:
    spec = text("weight", Constraint(number=NumberFormat(decimal=",", grouping="."), nullable=True))
    seen = InputCheck(Signature(inputs=(spec,), outputs=(_OUTPUT,)))({"weight": column(b"1.234,5", b"-7e2", b"")})
    found = front_end(spec).encode(seen.inputs)["weight"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.array([1234.5, -700.0, np.nan], np.float32))


_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MOMENTS = st.datetimes(timezones=st.just(dt.UTC))
_DATES = front_end(text("at", Constraint(date=DateFormat(zone="UTC"), nullable=True)))


@given(st.lists(_MOMENTS | st.none(), min_size=1, max_size=20))
def test_dates_become_the_seconds_since_1970_of_pythons_calendar(moments: list[dt.datetime | None]) -> None:
    texts = ["" if moment is None else moment.isoformat() for moment in moments]
    seen = InputCheck(_DATES.signature)({"at": column(*(each.encode() for each in texts))}).inputs
    wanted = [MISSING_SECONDS if each is None else (each - _EPOCH) // dt.timedelta(seconds=1) for each in moments]
    assert _DATES.encode(seen)["at"].tolist() == wanted


def test_text_with_more_axes_than_the_batch_keeps_its_shape() -> None:
    encoder = front_end(text("metals", _WORDS, None), text("at", Constraint(date=DateFormat()), 2))
    days = np.array([[b"1970-01-02T00:00:00Z", b"1970-01-01T00:00:01Z"]], dtype=object)
    found = encoder.encode({"metals": column(b"tin", b"steel", b"tin")[None], "at": days})
    assert found["metals"].tolist() == [[2, 1, 2]]
    assert found["at"].tolist() == [[86_400, 1]]


def test_numbers_are_handed_through_untouched_and_no_rows_are_no_error() -> None:
    number = TensorSpec(name="x", datatype=Datatype.FP32, shape=(None,))
    rows = np.zeros(2, np.float32)
    assert front_end(number).encode({"x": rows})["x"] is rows
    empty = front_end(text("metal", _WORDS)).encode({"metal": np.empty((0,), dtype=object)})
    assert empty["metal"].shape == (0,)
    assert empty["metal"].dtype == np.int64


def test_the_same_graph_stands_before_an_exported_network() -> None:
    encoder = front_end(
        text("metal", _WORDS), TensorSpec(name="x", datatype=Datatype.INT64, shape=(None,)), text("other", _WORDS)
    )
    names = [encoded_name("metal"), "x", encoded_name("other")]
    values = [helper.make_tensor_value_info(name, TensorProto.INT64, ["N"]) for name in names]
    nodes = [helper.make_node("Sum", ["a", "b", "c"], ["y"])]
    nodes = [helper.make_node("Cast", [name], [short], to=1) for name, short in zip(names, "abc", strict=True)] + nodes
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N"])
    model = helper.make_model(
        helper.make_graph(nodes, "sum", values, [result]), opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    )
    encoder.attach(model)
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    assert [node.name for node in session.get_inputs()] == ["metal", "x", "other"]
    given_rows = {
        "metal": np.array(["tin", "?"], object),
        "x": np.array([10, 20]),
        "other": np.array(["tin"] * 2, object),
    }
    assert session.run(None, given_rows)[0].tolist() == [14.0, 22.0]


@pytest.mark.parametrize(
    ("constraint", "said"),
    [
        (Constraint(), "nothing says how this text becomes numbers"),
        (Constraint(encoding=Encoding.UTF_8, max_length=20), "nothing says how this text becomes numbers"),
        (Constraint(date=DateFormat(), policies={Rule.DATE: Policy.FLAG}), r"policies\.date is flag"),
        (Constraint(number=NumberFormat(), nullable=True, fill="none"), "fill 'none' is no number"),
        (Constraint(date=DateFormat(), nullable=True, fill="2025-01-01"), "fill '2025-01-01' is no date as the model"),
    ],
)
def test_text_of_which_the_network_could_get_no_number_is_refused(constraint: Constraint, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check_text(text("note", constraint))


def test_a_recipe_with_free_text_is_refused_as_it_is_read(recipes: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(recipes / "digits", tmp_path / "digits"))
    file = own / "model.toml"
    file.write_text(
        re.sub(
            r'(?s)datatype = "FP32"\nshape.*?\n\n', 'datatype = "BYTES"\nshape = [-1]\n\n', file.read_text(), count=1
        )
    )
    with pytest.raises(RecipeError, match=r"image: nothing says how this text becomes numbers.*allowed words"):
        Recipe.load(own)


def test_a_text_cannot_be_monitored_as_a_number(recipes: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(recipes / "digits", tmp_path / "digits"))
    file = own / "model.toml"
    words = 'datatype = "BYTES"\nshape = [-1]\nconstraint = { allowed = ["a"] }\n\n'
    file.write_text(re.sub(r'(?s)datatype = "FP32"\nshape.*?\n\n', words, file.read_text(), count=1))
    with pytest.raises(RecipeError, match="'image' is text, of which mean is none"):
        Recipe.load(own)
