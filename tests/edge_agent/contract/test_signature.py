from __future__ import annotations

import pytest

from edge_agent.contract.errors import ManifestError
from edge_agent.contract.signature import Signature, TensorSpec
from edge_agent.contract.tensors import Datatype
from tests.edge_agent.contract.tensor_requests import (
    OUTPUT,
    spec,
)


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
