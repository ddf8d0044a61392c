"""Requests in messages, without a server."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from edge_agent.contract.constraint import Constraint, Policy, Rule
from edge_agent.contract.errors import SignatureMismatch
from edge_agent.contract.signature import Signature
from edge_agent.serving.grpc import oip_pb2 as oip
from edge_agent.serving.grpc.messages import inference_request
from edge_agent.serving.request import InferenceRequest
from edge_agent.serving.shared_memory import Regions
from tests.edge_agent.serving.bodies import signature


def _measured_in(unit: str, **constraint: Any) -> InferenceRequest:
    """A request of three rows whose values are said to be in ``unit``; the model takes degrees Celsius."""
    plain = signature()
    spec = msgspec.structs.replace(plain.inputs[0], constraint=Constraint(unit="Cel", **constraint))
    shape = (3, *(2 if axis is None else axis for axis in spec.shape[1:]))
    message = oip.ModelInferRequest(model_name="m")
    tensor = message.inputs.add(name=spec.name, datatype=spec.datatype.value, shape=shape)
    tensor.parameters["unit"].string_param = unit
    message.raw_input_contents.append(np.zeros(shape, spec.datatype.numpy).tobytes())
    asked = Signature(inputs=(spec,), outputs=plain.outputs)
    return inference_request(message, asked, max_rows=10, regions=Regions())


def test_a_unit_that_differs_is_refused_or_flagged_as_over_http() -> None:
    assert _measured_in("Cel").flagged == ()
    with pytest.raises(SignatureMismatch, match=r"input 'x': unit: the values are in 'K', the model takes 'Cel'"):
        _measured_in("K")
    (flagged,) = _measured_in("K", policies={Rule.UNIT: Policy.FLAG}).flagged
    assert (flagged.tensor, flagged.rule, flagged.policy, flagged.rows) == ("x", "unit", "flag", 3)
