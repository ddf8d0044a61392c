from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

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
from edge_agent.contract.errors import ManifestError
from edge_agent.contract.tensors import Datatype
from tests.edge_agent.contract.tensor_requests import spec


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


def test_a_constraint_of_every_kind_comes_back_from_the_manifest_s_json_and_defaults_take_no_bytes() -> None:
    full = Constraint(
        encoding=Encoding.LATIN_1,
        max_length=20,
        axes=(AxisLimit(axis=1, maximum=7),),
        number=NumberFormat(decimal=","),
        minimum=0,
        policies={Rule.RANGE: Policy.CLIP, Rule.NUMBER: Policy.FLAG},
    )
    written = msgspec.json.encode(full, order="deterministic")
    assert msgspec.json.decode(written, type=Constraint) == full
    assert b'"policies":{"number":"flag","range":"clip"}' in written
    assert msgspec.json.encode(Constraint()) == b"{}"
    for part in (NumberFormat(), DateFormat(), ImageLimits()):
        assert msgspec.json.encode(part) == b"{}"
