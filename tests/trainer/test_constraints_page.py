"""docs/constraints.md tells the truth: what can be said, and what the device answers."""

from __future__ import annotations

import math
import re
import struct
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edge_agent.contract.checking import InputCheck, check_unit
from edge_agent.contract.constraint import (
    Constraint,
    DateFormat,
    Encoding,
    ImageFormat,
    ImageLimits,
    NumberFormat,
    Rule,
)
from edge_agent.contract.errors import SignatureMismatch
from edge_agent.contract.signature import Signature, TensorSpec
from edge_agent.contract.tensors import Datatype
from trainer.recipe_tensors import ConstraintTable, TensorTable

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "constraints.md").read_text("utf-8")
_ROW = r"^\| ([A-Z0-9]+) \| `(\{.*?\})` \| `(.+?)`(?: as the unit)? \| `(input .+)` \|$"
EXAMPLES = re.findall(_ROW, PAGE, re.MULTILINE)


def png(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", width, height)


def answer(spec: TensorSpec, given: Any) -> None:
    if isinstance(given, str):
        check_unit(spec, given)
        return
    output = TensorSpec(name="y", datatype=Datatype.FP32, shape=(None, 2))
    InputCheck(Signature(inputs=(spec,), outputs=(output,)))({"x": np.array(given, spec.datatype.numpy)})


def test_the_page_has_an_example_of_every_rule() -> None:
    rules = {re.search(r": ([a-z]+): ", error)[1] for *_, error in EXAMPLES}  # type: ignore[index]  # all have one
    assert rules == {rule.value for rule in Rule} | {"shape"}


@pytest.mark.parametrize(("datatype", "constraint", "sent", "error"), EXAMPLES, ids=[each[3][:60] for each in EXAMPLES])
def test_the_device_answers_as_the_page_says(datatype: str, constraint: str, sent: str, error: str) -> None:
    limits = msgspec.convert(tomllib.loads(f"constraint = {constraint}")["constraint"], ConstraintTable).plain()
    axis = None if limits.axes else 1
    spec = TensorSpec(name="x", datatype=Datatype(datatype), shape=(None, axis), constraint=limits)
    given: Any = eval(sent, {"nan": math.nan, "png": png})  # noqa: S307  # the page's own literals
    with pytest.raises(SignatureMismatch) as refused:
        answer(spec, given)
    assert str(refused.value) == error


def test_the_recipe_on_the_page_is_read() -> None:
    (block,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    tables = msgspec.convert(tomllib.loads(block)["inputs"], list[TensorTable])
    assert tables[0].spec().constraint.unit == "Cel"


def test_every_word_that_can_be_said_is_on_the_page() -> None:
    words = set(re.findall(r"[A-Za-z0-9_-]+", PAGE))
    for struct_type in (Constraint, NumberFormat, DateFormat, ImageLimits):
        assert set(struct_type.__struct_fields__) <= words
    for enumeration in (Rule, Encoding, ImageFormat):
        assert {str(member.value) for member in enumeration} <= words
